"""What GitHub and contributors' tools read: workflows, issue forms, hooks, attributes. No workflow ever ran here."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.plain_install import tracked_files
from vllm_vitals.alerts import build as alerts
from vllm_vitals.compose import kibana_objects, log_store
from vllm_vitals.dashboards import build as dashboards

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
BIN = Path(sys.executable).parent
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
WORKFLOW_SCHEMAS = ("vendor.github-workflows", "custom.github-workflows-require-timeout")
FORMS = [path for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
SCHEMAS = [
    *((path, schema) for path in WORKFLOWS for schema in WORKFLOW_SCHEMAS),
    *((path, "vendor.github-issue-forms") for path in FORMS),
    (GITHUB / "ISSUE_TEMPLATE/config.yml", "vendor.github-issue-config"),
    (GITHUB / "dependabot.yml", "vendor.dependabot"),
]

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def judged(*command: object) -> tuple[int, str]:
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def steps(path: Path) -> list[dict]:
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize(("path", "schema"), SCHEMAS, ids=lambda part: part if isinstance(part, str) else part.name)
def test_a_file_for_github_is_valid_by_its_schema(path, schema):
    code, said = judged(BIN / "check-jsonschema", "--builtin-schema", schema, path)
    assert code == 0, said


def test_the_schema_of_workflows_finds_a_wrong_key(tmp_path):
    (tmp_path / "w.yml").write_text("on: push\njobs: {a: {runs-on: x, stepz: []}}\n")
    code, said = judged(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", tmp_path / "w.yml")
    assert (code, "stepz" in said) == (1, True)


@each_workflow
def test_a_workflow_may_only_read_and_a_job_says_what_more_it_needs(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    more = {right for job in workflow["jobs"].values() for right in job.get("permissions", {}).items()}
    assert more <= ({("id-token", "write"), ("packages", "write")} if path.name == "release.yml" else set())


@each_workflow
def test_actions_are_pinned_by_major_version(path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    assert not [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", name)]


@each_workflow
def test_scripts_of_a_workflow_pass_shellcheck_and_take_no_text_from_outside(path, tmp_path):
    """`${{ }}` in a script is pasted before the shell reads it: whoever names a branch could write commands."""
    for number, step in enumerate(step for step in steps(path) if "run" in step):
        assert "${{" not in step["run"]
        (tmp_path / f"{number}.sh").write_text("#!/bin/bash\nset -e\n" + step["run"])
        code, said = judged(BIN / "shellcheck", tmp_path / f"{number}.sh")
        assert code == 0, said


@each_workflow
def test_commands_of_a_workflow_have_the_flags_that_it_gives(path):
    for step in steps(path):
        for line in re.findall(r"(?m)^\./vitals (?!test)(.+)$", step.get("run", "")):
            words = shlex.split(line)
            code, said = judged(BIN / "vllm-vitals", *words[:2], "--help")
            assert code == 0, said
            assert not [word for word in words if word.startswith("--") and word not in said]


def test_the_settings_that_the_nightly_run_changes_are_those_of_the_bundle():
    script = " ".join(step.get("run", "") for step in steps(GITHUB / "workflows/nightly.yml"))
    changed = re.findall(r"s\|\^(\w+)=", script)
    assert changed
    known = re.findall(r"(?m)^(\w+)=", (ROOT / "compose/.env.example").read_text())
    assert set(changed) <= set(known)


def test_checks_run_on_the_pythons_that_we_support():
    matrix = yaml.safe_load((GITHUB / "workflows/checks.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()
    assert {"run": "./vitals test"} in steps(GITHUB / "workflows/checks.yml")


def test_the_form_for_bugs_asks_for_the_doctor():
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE/bug.yml").read_text())
    (field,) = [field for field in form["body"] if field.get("id") == "doctor"]
    assert "`vllm-vitals doctor --json`" in field["attributes"]["description"]
    assert field["validations"]["required"] is True


def test_hooks_run_programs_that_the_tests_install():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy", "import-linter", "shellcheck"]
    for hook in hooks:
        (program,) = [word for word in shlex.split(hook["entry"]) if word.startswith(".venv/bin/")]
        assert (BIN / Path(program).name).is_file(), program
        assert hook["language"] == "system"


def generated() -> set[str]:
    """Every file that a generator of this repository writes, as it says itself."""
    found = {path.relative_to(ROOT) for path in log_store.files() if path.suffix == ".json"}
    found |= {kibana_objects.FILE.relative_to(ROOT)}
    for folder in (
        alerts.GENERATED,
        dashboards.GENERATED,
        ROOT / "docs/runbooks",
    ):  # other tests compare what lies there
        found |= {path.relative_to(ROOT) for path in folder.iterdir() if path.is_file()}
    found |= {Path(path) for path in tracked_files() if path.suffix == ".png"}
    found |= {Path(path) for path in tracked_files() if path.match("tests/data/*")}
    return {path.as_posix() for path in found} | {"docs/metrics.md"}


def test_generated_files_are_marked_and_no_others():
    names = [path.as_posix() for path in tracked_files()]
    done = subprocess.run(
        ["git", "check-attr", "--stdin", "linguist-generated"],
        cwd=ROOT, input="\n".join(names), capture_output=True, text=True, check=True,
    )  # fmt: skip
    marked = {line.split(": ")[0] for line in done.stdout.splitlines() if line.endswith(": set")}
    assert marked == generated()

"""What to type to install more of this package: one place knows, and what it says works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_vitals.settings import installation
from vllm_vitals.settings.installation import Source, checkout, documented, install_command, require, source_of
from vllm_vitals.settings.invocation import COMMAND_VARIABLE, COMMANDS, as_called, called
from vllm_vitals.settings.scalars import ConfigError

ROOT = Path(__file__).parents[1]
DOCS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "compose").rglob("*.md")]


def test_the_command_names_the_checkout_that_this_python_has_it_from():
    assert install_command("rules") == f"{sys.executable} -m pip install -e '{ROOT}[rules]'"
    assert install_command("tracing", python="/opt/v/python") == f"/opt/v/python -m pip install '{ROOT}[tracing]'"
    assert checkout() == ROOT


@pytest.mark.parametrize(
    ("noted", "root", "source"),
    [
        ({"url": "file:///", "dir_info": {}}, None, Source("/")),
        ({"url": "file:///", "dir_info": {"editable": True}}, None, Source("/", editable=True)),
        ({"url": "file:///gone/x.whl", "archive_info": {}}, None, Source("/path/to/vllm-vitals")),
        ({"url": "file:///gone/x.whl", "archive_info": {}}, Path("/src"), Source("/src")),
        ({"url": "https://x.example/x.whl", "archive_info": {}}, None, Source("vllm-vitals @ https://x.example/x.whl")),
        (
            {"url": "https://x.example/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}, None,
            Source("vllm-vitals @ git+https://x.example/r.git@abc"),
        ),
        ({}, None, Source("/path/to/vllm-vitals")),
        ({}, Path("/src"), Source("/src")),
    ],
)  # fmt: skip
def test_pips_own_note_says_where_it_came_from(noted, root, source):
    assert source_of(noted, root, published=False) == source


def test_a_path_with_a_space_can_be_pasted(tmp_path):
    wheel = tmp_path / "my wheels/x.whl"
    wheel.parent.mkdir()
    wheel.touch()
    assert source_of({"url": wheel.as_uri()}, None, published=False).what == str(wheel)


def test_once_it_is_published_its_name_is_enough(monkeypatch):
    assert source_of({}, None, published=True) == Source("vllm-vitals")
    monkeypatch.setattr(installation, "PUBLISHED", True)
    assert documented("tracing") == "pip install 'vllm-vitals[tracing]'"


def test_what_is_missing_is_named_with_the_command():
    require("x", "rules", {"json": "json"})
    with pytest.raises(ConfigError) as caught:
        require("x y", "rules", {"nowhere_a": "some-a", "json": "json", "nowhere_b": "some-b"})
    assert str(caught.value) == f"x y: expected some-a, some-b, found none; {install_command('rules')}"


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_docs_install_what_can_be_had(page):
    text = page.read_text()
    for said in re.findall(r"pip install[^`&\n]*vllm-vitals(?:\[[a-z]+\])?'?", text):
        extra = re.search(r"\[([a-z]+)\]", said)
        options = "--upgrade" if "--upgrade" in said else ""
        assert said == documented(extra[1] if extra else "", options)


def test_no_file_leads_to_a_repository_that_does_not_exist():
    """What is published here one day is told by installation.PUBLISHED first."""
    found = subprocess.run(
        ["git", "grep", "-l", "github.com/vllm" + "-vitals"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert found.returncode in {0, 1}, found.stderr
    assert found.stdout.split() == []


# --- how we were called -----------------------------------------------------------------------------------------------


def test_a_script_that_runs_us_says_its_own_name(monkeypatch):
    monkeypatch.setenv(COMMAND_VARIABLE, "./vitals")
    text = "no page; vllm-vitals doctor, `vllm-vitals up --demo`, a && vllm-vitals bundle up"
    assert as_called(text) == "no page; ./vitals doctor, `./vitals up --demo`, a && ./vitals bundle up"
    other = "vllm-vitals: x, pip install /path/to/vllm-vitals && vllm-vitals, 'vllm-vitals[rules]', job=\"vllm-vitals\""
    assert as_called(other) == other


def test_a_program_off_path_is_called_by_its_path(tmp_path, monkeypatch):
    program = tmp_path / ".venv/bin/vllm-vitals"
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.chdir(tmp_path)
    assert called(str(program), lambda _: None) == ".venv/bin/vllm-vitals"
    assert called(str(program), lambda _: "/usr/bin/vllm-vitals") == ".venv/bin/vllm-vitals"
    assert called(str(program), lambda _: str(program)) == "vllm-vitals"
    monkeypatch.chdir("/")
    assert called(str(program), lambda _: None) == str(program).removeprefix("/")
    assert called("/somewhere/pytest", lambda _: None) == "vllm-vitals"


def test_help_and_errors_can_be_pasted(command, monkeypatch):
    monkeypatch.setenv(COMMAND_VARIABLE, "./vitals")
    _, out, _ = command("rules", "explain", "--help")
    assert "usage: ./vitals rules explain" in out
    assert "\n  ./vitals rules explain VLLMTTFTBudgetBurn sla.yaml" in out
    _, _, err = command("bundle", "up", "--dir", "none")
    assert err.startswith("vllm-vitals: --dir: expected a bundle, found none in none; ./vitals bundle init none")
    _, out, _ = command("doctor", "--gpus", "off")
    assert "is not known" not in out


def test_files_that_come_along_are_where_the_code_looks_for_them():
    from vllm_vitals.alerts import build, sla_file
    from vllm_vitals.compose import folder_docs, kibana_objects, log_store, manifests
    from vllm_vitals.dashboards import build as dashboards
    from vllm_vitals.exporter.live import runbook_pages

    folders = (build.GENERATED, dashboards.GENERATED, folder_docs.DOCS, log_store.FOLDER, manifests.SOURCE)
    assert [path for path in (*folders, runbook_pages.SHIPPED) if not path.is_dir()] == []
    assert [path for path in (sla_file.DEFAULT, log_store.DOCS, kibana_objects.FILE) if not path.is_file()] == []


def test_every_command_is_known_where_texts_name_what_to_type_and_a_sentence_stays(monkeypatch):
    from vllm_vitals.cli.main import _parser

    (commands,) = [action.choices for action in _parser()._actions if isinstance(action.choices, dict)]
    assert sorted(COMMANDS) == sorted(commands)
    monkeypatch.setenv(COMMAND_VARIABLE, "./vitals")
    assert as_called("an empty folder or one that vllm-vitals made") == "an empty folder or one that vllm-vitals made"

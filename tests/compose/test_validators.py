"""Every file of the bundle as its own program or schema reads it; each judge is shown a fault first."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.compose_files import compose_config, read_compose
from vllm_vitals.compose.bundle import PROFILES, SHIPPED

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
COMPOSE_FILES = sorted(SHIPPED.glob("compose*.yaml"))
DOCKERFILES = sorted(SHIPPED.rglob("*Dockerfile"))
SCRIPTS = [ROOT / "vitals", ROOT / ".ci/run", *sorted(SHIPPED.rglob("*.sh")), *sorted((ROOT / "tests").rglob("*.sh"))]


def judged(*command: object) -> tuple[int, str]:
    said = subprocess.run(
        [*map(str, command)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
    )
    return said.returncode, said.stdout


def compose_spec(document: object, folder: Path) -> tuple[int, str]:
    plain = folder / "plain.yaml"  # without Compose's own tags !reset and !override
    plain.write_text(yaml.safe_dump(document))
    return judged(PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", plain)


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_compose_files_are_valid_by_the_compose_specification(path, tmp_path):
    code, said = compose_spec(read_compose(path), tmp_path)
    assert code == 0, said


def test_the_compose_specification_finds_an_unknown_key(tmp_path):
    document = read_compose(SHIPPED / "compose.yaml")
    document["services"]["prometheus"]["mem_limitt"] = "1g"
    code, said = compose_spec(document, tmp_path)
    assert code == 1
    assert "mem_limitt" in said


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path):
    code, said = judged(PROGRAMS / "hadolint", path)
    assert code == 0, said


def test_hadolint_finds_a_fault(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && pip install x\n")
    code, said = judged(PROGRAMS / "hadolint", tmp_path / "Dockerfile")
    assert code == 1
    assert "DL3006" in said


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_scripts_pass_shellcheck(path):
    code, said = judged(PROGRAMS / "shellcheck", "--external-sources", "--severity", "warning", path)
    assert code == 0, said


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_itself_takes_each_profile(programs, fresh_bundle, profile):
    said = compose_config(programs, fresh_bundle, "--quiet", files="compose.yaml", profiles=profile)
    assert said.returncode == 0, said.stderr


def test_compose_itself_finds_a_fault(programs, fresh_bundle, tmp_path):
    (tmp_path / "fault.yaml").write_text("services: {prometheus: {mem_limitt: 1g}}\n")
    files = f"compose.yaml:{tmp_path}/fault.yaml"
    said = compose_config(programs, fresh_bundle, "--quiet", files=files, profiles="all")
    assert said.returncode != 0
    assert "mem_limitt" in said.stderr

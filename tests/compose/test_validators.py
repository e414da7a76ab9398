"""Every file of the bundle as its own program or schema reads it; each judge is shown a fault first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.compose_files import read_compose
from vllm_vitals.compose.bundle import PROFILES, SHIPPED

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
COMPOSE_FILES = sorted(SHIPPED.glob("compose*.yaml"))
DOCKERFILES = sorted(SHIPPED.rglob("*Dockerfile"))
SCRIPTS = [ROOT / "vitals", ROOT / ".ci/run", *sorted(SHIPPED.rglob("*.sh")), *sorted((ROOT / "tests").rglob("*.sh"))]
OVERLAYS = [path.name for path in COMPOSE_FILES if path.name != "compose.yaml"]


def judged(*command: object, cwd: Path = ROOT, env: dict[str, str] | None = None) -> tuple[int, str]:
    said = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
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
    code, said = judged(PROGRAMS / "shellcheck", "--severity", "warning", path)
    assert code == 0, said


def compose_config(programs: Path, bundle: Path, *, files: str, profiles: str) -> tuple[int, str]:
    config = bundle.parent / f"{bundle.name}-docker"
    config.mkdir(exist_ok=True)
    plugins = config / "cli-plugins"
    if not plugins.exists():
        plugins.symlink_to(programs / "cli-plugins")
    env = {**os.environ, "DOCKER_CONFIG": str(config), "COMPOSE_FILE": files, "COMPOSE_PROFILES": profiles}
    return judged(programs / "bin/docker", "compose", "config", "--quiet", cwd=bundle, env=env)


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_itself_takes_each_profile(programs, fresh_bundle, profile):
    code, said = compose_config(programs, fresh_bundle, files="compose.yaml", profiles=profile)
    assert code == 0, said


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_compose_itself_takes_each_overlay(programs, fresh_bundle, overlay):
    below = "compose.yaml:compose.tls.yaml" if overlay == "compose.expose.yaml" else "compose.yaml"
    code, said = compose_config(programs, fresh_bundle, files=f"{below}:{overlay}", profiles="all,demo,vllm")
    assert code == 0, said


def test_compose_itself_finds_a_fault(programs, fresh_bundle, tmp_path):
    (tmp_path / "fault.yaml").write_text("services: {prometheus: {mem_limitt: 1g}}\n")
    code, said = compose_config(programs, fresh_bundle, files=f"compose.yaml:{tmp_path}/fault.yaml", profiles="all")
    assert code != 0
    assert "mem_limitt" in said

"""The wheel without an extra, in an empty folder: what README lists works, the rest says what to install."""

import argparse
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.http import free_port
from support.programs import Program
from vllm_vitals.alerts.alert_names import ALERTS
from vllm_vitals.cli.main import _parser

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.waits

KEY = "openssl-rand-hex-32-would-be-better"
LOCAL = "--host off --gpus off"
NEEDS = {"rules check": "rules", "rules simulate": "rules", "dashboards build": "dashboards",
         "dashboards check": "dashboards"}  # fmt: skip
# Every command that ends by itself: its arguments, the exit codes that are right, words that it says.
ENDS = {
    "version": ("", {0}, "vllm-vitals "),
    "logging-config": ("", {0}, '"version": 1'),
    "doctor": (f"{LOCAL} --listen 127.0.0.1:0", {0}, "[ok]  Python"),
    "audit verify": ("--key-file key empty", {1}, "EMPTY"),
    "rules build": ("sla.yaml --out rules --runbooks pages", {0}, "rules.yml"),
    "rules check": ("", {2}, "expected promql-parser, found none"),
    "rules test": ("", {0}, "0 files failed"),
    "rules simulate": ('--traffic "0.5 rps, diurnal" --plot a.png', {2}, "expected numpy, matplotlib, found none"),
    "rules explain": ("", {0}, ALERTS[0].name),
    "dashboards build": ("--out made", {2}, "expected grafanalib, promql-parser, found none"),
    "dashboards check": ("", {2}, "expected grafanalib, promql-parser, found none"),
    "dashboards push": ("--grafana http://127.0.0.1:1", {1}, "refused"),
    "bundle init": ("b --profile demo", {0}, "next      "),
    "bundle kubernetes": ("k", {0}, "kubectl apply"),
    "bundle check": ("--dir b", {0}, "[ok]"),
    "bundle upgrade": ("--dir b --no-start", {0}, "as they were"),
    "bundle up": ("--dir none", {2}, "bundle init none"),
    "bundle down": ("--dir none", {2}, "bundle init none"),
    "bundle status": ("--dir none", {2}, "bundle init none"),
    "bundle logs": ("--dir none", {2}, "bundle init none"),
    "bundle smoke": ("--dir b --timeout 1s --engine http://127.0.0.1:1", {1}, "refused"),
}
RUNS_ON = {
    "exporter": LOCAL,
    "demo": "--base-port 0 --host off",
    "up": "--demo --host off --no-prometheus",
}


def leaves(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[str]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for name, sub in action.choices.items():
            yield from leaves(sub, (*path, name))
    if not below:
        yield " ".join(path)


def package_files(plain_install: Path) -> dict[Path, int]:
    """Return what is installed with the time of its last change, without the interpreter's caches."""
    package = next(plain_install.parents[1].glob("lib/python*/site-packages/vllm_vitals"))
    files = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="session")
def empty(tmp_path_factory, plain_install) -> Path:
    """The folder in which it runs: nothing but what commands are given."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "key").write_text(KEY)
    (folder / "key").chmod(0o600)
    (folder / "empty").touch()
    (folder / "sla.yaml").write_text(run(plain_install, folder, "rules build --print-default").stdout)
    run(plain_install, folder, "bundle init b --profile demo")
    return folder


def run(plain_install: Path, folder: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "PYTHON"))}
    return subprocess.run(
        [plain_install, *shlex.split(arguments)],
        cwd=folder, env=clean, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_each_command_is_tried_here():
    assert {*ENDS, *RUNS_ON} == {*leaves(_parser())}


@pytest.mark.parametrize("name", sorted({*ENDS, *RUNS_ON}))
def test_its_help_comes(plain_install, empty, name):
    done = run(plain_install, empty, f"{name} --help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f" {name}" in done.stdout


@pytest.mark.parametrize("name", ENDS)
def test_it_works_or_says_in_one_line_what_to_install(plain_install, empty, name):
    arguments, codes, words = ENDS[name]
    before = package_files(plain_install)
    done = run(plain_install, empty, f"{name} {arguments}")
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert (done.returncode in codes, words in said) == (True, True), f"{done.returncode}: {said}"
    if name in NEEDS:
        wheel = next(plain_install.parents[2].glob("*.whl"))
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)
        assert done.stderr.endswith(f"{plain_install.with_name('python')} -m pip install '{wheel}[{NEEDS[name]}]'\n")
        assert not [path for path in (empty / "made", empty / "a.png") if path.exists()]
    assert package_files(plain_install) == before, "it wrote into the package"


def test_what_the_redirection_gets_is_what_vllm_can_read(plain_install, empty):
    done = run(plain_install, empty, "logging-config --names flat --redact email")
    assert json.loads(done.stdout)["version"] == 1
    assert done.stderr == ""


@pytest.mark.parametrize("name", RUNS_ON)
def test_what_runs_on_serves_its_pages_and_the_runbooks(plain_install, empty, tmp_path, name):
    address = f"127.0.0.1:{free_port()}"
    program = Program([plain_install, name, *RUNS_ON[name].split(), "--listen", address], tmp_path / "log", cwd=empty)
    try:
        program.ready(f"http://{address}/healthz")
        program.ready(f"http://{address}/docs/runbooks/{ALERTS[0].name}.md")
        program.ready(f"http://{address}/metrics")
        assert program.interrupt() == 0
        assert "Traceback" not in program.output
    finally:
        program.stop()

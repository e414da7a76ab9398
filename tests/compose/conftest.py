import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from docker_engine import images
from support.compose_files import read_compose
from support.fixtures import CACHE
from vllm_vitals.compose import env_file
from vllm_vitals.compose.bundle import SHIPPED, init

ENGINE = Path(__file__).parents[1] / "docker_engine"
PINS = env_file.settings((SHIPPED / ".env.example").read_text())
WEBHOOK = "http://127.0.0.1:9999/"


@pytest.fixture(scope="session")
def compose_file() -> dict:
    """The shipped compose.yaml as data."""
    return read_compose(SHIPPED / "compose.yaml")


@pytest.fixture(scope="session")
def fresh_bundle(tmp_path_factory) -> Path:
    """A bundle as `init` writes it, to be copied."""
    folder = tmp_path_factory.mktemp("fresh") / "bundle"
    init(folder)
    return folder


@pytest.fixture(scope="session")
def programs() -> Path:
    """Docker's programs, unpacked from Debian's packages."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("Docker's programs come from Debian's packages, and this system has no apt")
    unpacked = subprocess.run([ENGINE / "unpack.sh", CACHE / "docker"], capture_output=True, text=True)
    if unpacked.returncode:
        pytest.skip(f"Debian gave no Docker that runs here: {unpacked.stderr.strip().splitlines()[-1:]}")
    return CACHE / "docker"


@pytest.fixture(scope="session")
def docker(programs: Path, tmp_path_factory) -> Iterator[images.Docker]:
    """A Docker daemon of this run's own, with an image for each pin of the profiles metrics and demo."""
    if os.geteuid() != 0:
        pytest.skip("a Docker daemon of our own needs root")
    folder = Path(tempfile.mkdtemp(prefix="vitals-docker.", dir="/tmp"))  # short: it holds a unix socket
    started = subprocess.run([ENGINE / "engine.sh", programs, folder, "start"], capture_output=True, text=True)
    if started.returncode:
        pytest.skip(f"dockerd does not run here: {started.stderr.strip().splitlines()[-1:]}")
    try:
        docker = images.Docker(programs, folder)
        wheels = images.collect_wheels(CACHE)
        images.make(docker, PINS, tmp_path_factory.mktemp("images"), wheels)
        yield docker
    finally:
        subprocess.run([ENGINE / "engine.sh", programs, folder, "stop"], check=True)


def offline(services: dict) -> str:
    """Return the overlay that lets the shipped file run without bridges: one loopback for all, nothing published.

    It also adds a receiver of alerts. What users run is in the shipped file, and that stays as it is.
    """
    sink = (
        "import http.server as h\n"
        "class S(h.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        print(self.rfile.read(int(self.headers['Content-Length'])).decode(), flush=True)\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "h.HTTPServer(('127.0.0.1', 9999), S).serve_forever()\n"
    )
    added = {
        "netns": {
            "image": PINS["PROMETHEUS_IMAGE"],
            "entrypoint": ["/bin/sleep", "infinity"],
            "init": True,
            "network_mode": "none",
            "extra_hosts": [f"{name}:127.0.0.1" for name in services],
        },
        "webhook": {
            "image": PINS["GRAFANA_IMAGE"],
            "entrypoint": ["/usr/local/bin/python", "-c", sink],
            "init": True,
            "network_mode": "service:netns",
        },
    }
    lines = [yaml.safe_dump({"services": added}).rstrip()]
    for name, service in services.items():
        if service.get("network_mode") == "none":
            continue
        # Written out for each: YAML's anchors lose these tags.
        lines += [
            f"  {name}:",
            "    network_mode: service:netns",
            "    networks: !reset null",
            "    ports: !reset null",
        ]
        lines += ["    extra_hosts: !reset null"] if "extra_hosts" in service else []
        lines += ["    build: {network: none}"] if "build" in service else []
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def running_bundle(docker: images.Docker, compose_file: dict, tmp_path_factory) -> Iterator["Bundle"]:
    """A bundle of the profiles metrics and demo, started by the command; what it printed stands in `.output`."""
    sla = tmp_path_factory.mktemp("sla") / "sla.yaml"
    promises = (SHIPPED.parent / "alerts/sla.yaml").read_text()
    sla.write_text(
        re.sub(r"(?ms)^receivers:.*", "", promises)
        + f'receivers:\n  page: {{type: webhook, url: "{WEBHOOK}"}}\n  ticket: {{}}\n'
    )
    bundle = Bundle(docker, tmp_path_factory.mktemp("running") / "bundle")
    init(bundle.folder, profiles=["metrics", "demo"], sla=sla)
    (bundle.folder / "compose.offline.yaml").write_text(offline(compose_file["services"]))
    bundle.set(COMPOSE_FILE="compose.yaml:compose.offline.yaml", DEMO_SCENE="xid")
    bundle.started, bundle.output = bundle.command("up", "--timeout", "5m")
    yield bundle
    docker("compose", "down", "--volumes", "--timeout", "2", check=False, cwd=bundle.folder)


class Bundle:
    """A bundle in a folder, and the command line on it."""

    started: int
    output: str

    def __init__(self, docker: images.Docker, folder: Path):
        self.docker = docker
        self.folder = folder

    def set(self, **values: str) -> None:
        env = self.folder / ".env"
        env.write_text(env_file.with_settings(env.read_text(), values))

    def command(self, name: str, *arguments: object, timeout: float = 300) -> tuple[int, str]:
        """Run `vllm-vitals bundle NAME`; returns (exit code, everything printed)."""
        vitals = Path(sys.executable).with_name("vllm-vitals")
        said = subprocess.run(
            [vitals, "bundle", name, "--dir", self.folder, *map(str, arguments)], env=self.docker.env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, cwd="/",
        )  # fmt: skip
        return said.returncode, said.stdout

    def compose(self, *arguments: object, check: bool = True) -> str:
        return self.docker("compose", *arguments, check=check, cwd=self.folder)

    def get(self, url: str) -> str:
        """Return a page, as seen from inside the bundle."""
        return self.compose("exec", "-T", "netns", "wget", "-q", "-O", "-", url)

"""A Docker Engine of our own, and bundles on it: for tests and for benchmarks/bundle_idle.py."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from vllm_vitals.compose import env_file
from vllm_vitals.compose.bundle import SHIPPED

from . import images

HERE = Path(__file__).parent
PINS = env_file.settings((SHIPPED / ".env.example").read_text())
# Containers share one loopback, and these two listen on the same ports: each has an address of its own on it.
ADDRESSES = {"collector": "127.0.0.2", "jaeger": "127.0.0.3"}


class NoDockerError(Exception):
    """A Docker Engine of our own cannot run here, and this says why."""


def unpacked(cache: Path) -> Path:
    """Return Docker's programs, unpacked from Debian's packages; raises NoDockerError."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NoDockerError("Docker's programs come from Debian's packages, and this system has no apt")
    said = subprocess.run([HERE / "unpack.sh", cache / "docker"], capture_output=True, text=True)
    if said.returncode:
        raise NoDockerError(f"Debian gave no Docker that runs here: {said.stderr.strip().splitlines()[-1:]}")
    return cache / "docker"


@contextmanager
def engine(programs: Path, cache: Path) -> Iterator[images.Docker]:
    """Run a Docker daemon with an image for each pin; raises NoDockerError."""
    if os.geteuid() != 0:
        raise NoDockerError("a Docker daemon of our own needs root")
    if missing := [name for name in ("bash", "curl", "unshare") if shutil.which(name) is None]:
        raise NoDockerError(f"missing: {', '.join(missing)}; apt-get install bash curl util-linux")
    folder = Path(tempfile.mkdtemp(prefix="vitals-docker.", dir="/tmp"))  # short: it holds a unix socket
    started = subprocess.run([HERE / "engine.sh", programs, folder, "start"], capture_output=True, text=True)
    if started.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise NoDockerError(f"dockerd does not run here: {started.stderr.strip().splitlines()[-1:]}")
    try:
        docker = images.Docker(programs, folder)
        with tempfile.TemporaryDirectory() as work:
            images.make(docker, PINS, Path(work), images.collect_wheels(cache))
        yield docker
    finally:
        subprocess.run([HERE / "engine.sh", programs, folder, "stop"], check=True)


def offline(services: Mapping[str, Any], added: Mapping[str, Any]) -> str:
    """Return the overlay that lets the shipped file run without bridges: one loopback for all, nothing published.

    What users run is in the shipped file, and that stays as it is.

    Args:
        services: of the shipped file.
        added: more services, or more of one, which share the loopback, too.
    """
    own = {
        "netns": {
            "image": PINS["PROMETHEUS_IMAGE"],
            "entrypoint": ["/bin/sleep", "infinity"],
            "init": True,
            "network_mode": "none",
            "extra_hosts": [f"{name}:{ADDRESSES.get(name, '127.0.0.1')}" for name in services],
        },
        **{name: service for name, service in added.items() if name not in services},
    }
    lines = [yaml.safe_dump({"services": own}).rstrip()]
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
        lines += ["    build: {network: none}"] if "build" in service and name not in added else []
        lines += [f"    {line}" for line in added[name]] if name in added else []
    return "\n".join(lines) + "\n"


class Bundle:
    """A bundle in a folder, and the command line on it; whatever was printed stands in `said`."""

    def __init__(self, docker: images.Docker, folder: Path):
        self.docker = docker
        self.folder = folder
        self.said = ""

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
        self.said += said.stdout
        return said.returncode, said.stdout

    def compose(self, *arguments: object, check: bool = True) -> str:
        return self.docker("compose", *arguments, check=check, cwd=self.folder)

    def get(self, url: str) -> str:
        """Return a page, as seen from inside the bundle."""
        return self.compose("exec", "-T", "netns", "wget", "-q", "-O", "-", url)

    def containers(self) -> dict[str, dict]:
        """Return what Docker says of each service's container, those that ended included."""
        found = json.loads(self.docker("inspect", *self.compose("ps", "-aq").split()))
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in found}

    def container(self, service: str) -> dict:
        (one,) = json.loads(self.docker("inspect", self.compose("ps", "-aq", service).strip()))
        return one

    def query(self, expression: str) -> list[dict]:
        answer = json.loads(self.get(f"http://prometheus:9090/api/v1/query?query={expression}"))
        return answer["data"]["result"]

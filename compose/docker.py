"""Docker Compose as a program: found or explained, run in a bundle's folder, its services' state read."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..settings.scalars import ConfigError

_SHORT: Final = 60.0
_STATS: Final = 15.0  # it looks at two moments, a second or two apart
_GET_DOCKER: Final = (
    "see https://docs.docker.com/engine/install/ (Debian 13, Ubuntu: apt install docker.io docker-compose)"
)
_GET_COMPOSE: Final = "see https://docs.docker.com/compose/install/linux/ (Docker's packages: docker-compose-plugin)"
_GET_DAEMON: Final = "is it running, and may you use it? systemctl start docker; usermod -aG docker $USER"
OLDEST_COMPOSE: Final = (2, 26)  # subpath of volumes, `!reset` and `!override` in overlays


@dataclass(frozen=True, slots=True)
class Service:
    """A service's container.

    Attributes:
        state: created, running, restarting, exited ...
        health: starting, healthy, unhealthy; empty without a healthcheck.
        container: its name.
        identity: another one once Compose made the container anew.
    """

    name: str
    state: str
    health: str
    exit_code: int
    container: str = ""
    identity: str = ""

    @property
    def settled(self) -> bool:
        """Whether it is as it shall be: healthy, or done."""
        if self.state == "exited":
            return self.exit_code == 0
        return self.state == "running" and self.health in {"", "healthy"}

    @property
    def words(self) -> str:
        """Its state as a person reads it."""
        if self.state == "exited":
            return "done" if self.exit_code == 0 else f"failed with exit code {self.exit_code}"
        return self.health if self.state == "running" and self.health else self.state


def program(*, daemon: bool = True) -> str:
    """Return the path of `docker`; raises ConfigError with what to do when it, Compose or the daemon is missing."""
    found = shutil.which("docker")
    if found is None:
        raise ConfigError(f"docker: expected Docker Engine, found none on PATH; {_GET_DOCKER}")
    said = _run([found, "compose", "version", "--short"])
    if said.returncode:
        raise ConfigError(f"docker: expected Compose v2, found a docker without it; {_GET_COMPOSE}")
    version = said.stdout.strip().removeprefix("v")
    numbers = tuple(int(part) for part in version.split("-")[0].split("+")[0].split(".")[:2] if part.isdecimal())
    if numbers < OLDEST_COMPOSE:
        oldest = ".".join(map(str, OLDEST_COMPOSE))
        raise ConfigError(f"docker: expected Compose {oldest} or newer, found {version}; {_GET_COMPOSE}")
    if daemon:
        said = _run([found, "version", "--format", "{{.Server.Version}}"])
        if said.returncode:
            reason = said.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise ConfigError(f"docker: the daemon does not answer: {reason[0]}; {_GET_DAEMON}")
    return found


@dataclass(frozen=True, slots=True)
class Compose:
    """Docker Compose in a bundle's folder."""

    docker: str
    folder: Path

    def command(self, *arguments: str) -> list[str]:
        """Return a command line."""
        return [self.docker, "compose", "--project-directory", str(self.folder), *arguments]

    def environment(self) -> Mapping[str, str]:
        """Return the environment for it: ours, without what would win over the bundle's .env."""
        return {name: value for name, value in os.environ.items() if name not in {"COMPOSE_FILE", "COMPOSE_PROFILES"}}

    def run(self, *arguments: str, deadline: float = _SHORT) -> "subprocess.CompletedProcess[str]":
        """Run it and return what it said."""
        return _run(self.command(*arguments), self.folder, self.environment(), deadline)

    def start(self, *arguments: str, output: Any) -> "subprocess.Popen[bytes]":
        """Start it, and let it write to an open file."""
        return subprocess.Popen(
            self.command(*arguments), cwd=self.folder, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=output, stderr=output,
        )  # fmt: skip

    def attached(self, *arguments: str) -> int:
        """Run it on our terminal and return its exit code."""
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment(), check=False
        ).returncode  # fmt: skip

    def services(self) -> list[Service]:
        """Return the containers that there are, those that ended included; raises ConfigError when it cannot say."""
        said = self.run("ps", "--all", "--format", "json")
        if said.returncode:
            raise ConfigError(f"docker compose ps: {_last(said.stderr)}")
        return sorted((_service(one) for one in _documents(said.stdout)), key=lambda service: service.name)

    def readers(self, changed: Iterable[str]) -> set[str]:
        """Return the services that mount one of these files of the bundle; raises ConfigError when it cannot say."""
        said = self.run("config", "--format", "json")
        if said.returncode:
            raise ConfigError(f"docker compose config: {_last(said.stderr)}")
        files = [self.folder / path for path in changed]
        return {
            name
            for name, service in json.loads(said.stdout)["services"].items()
            for mount in service.get("volumes", [])
            if mount["type"] == "bind" and any(self._holds(Path(mount["source"]), file) for file in files)
        }

    def _holds(self, mounted: Path, file: Path) -> bool:
        """Whether a mount brings a file of ours; one of the whole machine, as node_exporter's, is not meant."""
        return mounted.is_relative_to(self.folder) and file.is_relative_to(mounted)

    def stats(self, containers: Sequence[str], deadline: float = _STATS) -> str:
        """Return what `docker stats` says of containers, a line of JSON each; empty when it fails or is slow."""
        try:
            said = _run([self.docker, "stats", "--no-stream", "--format", "json", *containers], deadline=deadline)
        except ConfigError:
            return ""
        return said.stdout if said.returncode == 0 else ""

    def logs(self, service: str, lines: int = 15) -> str:
        """Return the last lines that a service wrote."""
        return self.run("logs", "--no-color", "--no-log-prefix", "--tail", str(lines), service).stdout


def _documents(text: str) -> Sequence[Mapping[str, Any]]:
    """Return what `ps` printed: a line per container, or one list as before Compose 2.21."""
    stripped = text.strip()
    if stripped.startswith("["):
        listed: list[Mapping[str, Any]] = json.loads(stripped)
        return listed
    return [json.loads(line) for line in stripped.splitlines() if line]


def _service(one: Mapping[str, Any]) -> Service:
    return Service(
        one["Service"], one["State"], one.get("Health", ""), int(one.get("ExitCode", 0)), one.get("Name", ""),
        one.get("ID", ""),
    )  # fmt: skip


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


def _run(
    command: Sequence[str],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    deadline: float = _SHORT,
) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=deadline, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{' '.join(command[:4])}: no answer within {deadline:.0f} s") from None

"""What can be said about a bundle without starting it: its files, secrets, settings, what programs' checkers say."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ..alerts.sla_file import load
from ..settings.config import load as load_settings
from ..settings.finding import Finding
from ..settings.scalars import ConfigError
from . import bundle, docker, engine_addresses, env_file
from .passwords import loose

_DEADLINE: Final = 60.0
_PROMTOOL: Final = ("promtool",)
_AMTOOL: Final = ("amtool",)


def check(folder: Path) -> list[Finding]:
    """Return everything looked at; raises ConfigError when there is no bundle."""
    require(folder)
    return [
        *_files(folder),
        *_secrets(folder),
        *_env(folder),
        *_own_files(folder),
        *engine_addresses.notes_on(folder, bundle.profiles_of(folder)),
        *_programs(folder),
        *_compose(folder),
    ]


def require(folder: Path) -> None:
    """Raise ConfigError when the folder holds no bundle."""
    if not (folder / "compose.yaml").is_file():
        raise ConfigError(f"--dir: expected a bundle, found none in {folder}; vllm-vitals bundle init {folder}")
    if not (folder / ".env").is_file():
        raise ConfigError(f"--dir: expected {folder}/.env, found none; vllm-vitals bundle init {folder}")


def _files(folder: Path) -> Iterator[Finding]:
    again = f"vllm-vitals bundle init {folder}"
    missing = [file.path for file in bundle.shipped() if not (folder / file.path).is_file()]
    if missing:
        yield Finding("problem", "files", f"missing: {', '.join(missing)}", again)
    else:
        yield Finding("ok", "files", f"complete, of version {bundle.version_of(folder) or 'unknown'}")
    backups = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.bak-*"))
    if backups:
        some = ", ".join(backups[:3]) + (" ..." if len(backups) > 3 else "")
        yield Finding("note", "backups", f"{len(backups)}: {some}", "compare them, then remove them")


def _secrets(folder: Path) -> Iterator[Finding]:
    problems = loose(folder)
    for problem in problems:
        found, _, advice = problem.partition("; ")
        yield Finding("problem", "secrets", found, advice)
    if not problems:
        yield Finding("ok", "secrets", "there, and nobody else can read them")


def _env(folder: Path) -> Iterator[Finding]:
    known = env_file.settings((bundle.SHIPPED / ".env.example").read_text(encoding="utf-8"))
    found = env_file.read(folder)
    missing = [name for name in known if name not in found]
    if missing:
        yield Finding("problem", ".env", f"lacks {', '.join(missing)}", f"vllm-vitals bundle init {folder}")
    wrong = [name for name in bundle.profiles_of(folder) if name not in bundle.PROFILES]
    if wrong or not bundle.profiles_of(folder):
        expected = f"expected some of {', '.join(bundle.PROFILES)}, found {', '.join(wrong) or 'none'}"
        yield Finding("problem", ".env", f"COMPOSE_PROFILES: {expected}", "edit .env")
    latest = [name for name, image in found.items() if name.endswith("_IMAGE") and _floating(image)]
    if latest:
        yield Finding(
            "note", ".env", f"without a fixed version: {', '.join(latest)}", "name a tag: a restart must not upgrade"
        )
    address = found.get("BIND_ADDRESS", "127.0.0.1")
    if address not in {"127.0.0.1", "::1", "[::1]", "localhost"}:
        yield Finding(
            "problem", ".env", f"BIND_ADDRESS={address}: pages without a login would be open to the network",
            "leave it at 127.0.0.1 and add compose.tls.yaml:compose.expose.yaml to COMPOSE_FILE",
        )  # fmt: skip
    if not missing:
        yield Finding("ok", ".env", f"profiles {', '.join(bundle.profiles_of(folder))}")


def _floating(image: str) -> bool:
    name = image.rsplit("/", 1)[-1]
    return "@sha256:" not in image and (":" not in name or name.endswith(":latest"))


def _own_files(folder: Path) -> Iterator[Finding]:
    for name, read in (("sla.yaml", load), ("exporter/vitals.yaml", lambda path: load_settings(path, {}, {}))):
        try:
            read(folder / name)
        except ConfigError as error:
            yield Finding("problem", name, str(error), f"edit {folder / name}")
        else:
            yield Finding("ok", name, "can be read")


def _programs(folder: Path) -> Iterator[Finding]:
    prometheus = folder / "prometheus"
    for config in ("prometheus.yml", "prometheus.remote-write.yml"):
        yield _asked(_PROMTOOL, ("check", "config", str(prometheus / config)), f"prometheus/{config}")
    yield _asked(_AMTOOL, ("check-config", str(folder / "alertmanager/alertmanager.yml")), "alertmanager.yml")


def _asked(programs: Sequence[str], arguments: Sequence[str], what: str) -> Finding:
    found = next((path for name in programs if (path := shutil.which(name))), None)
    if found is None:
        return Finding(
            "note", what, f"not looked at: {programs[0]} is not on PATH", "its container says at `up` what is wrong"
        )
    try:
        said = subprocess.run(
            [found, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("problem", what, f"{programs[0]} gave no answer within {_DEADLINE:.0f} s")
    if said.returncode == 0:
        return Finding("ok", what, f"{programs[0]} accepts it")
    lines = [line.strip() for line in (said.stdout + said.stderr).splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if "FAILED" in line), 0)
    return Finding(
        "problem", what, " ".join(lines[first : first + 4]) or f"{programs[0]} refuses it", f"edit {arguments[-1]}"
    )


def _compose(folder: Path) -> Iterator[Finding]:
    try:
        compose = docker.Compose(docker.program(daemon=False), folder)
    except ConfigError as error:
        found, _, advice = str(error).partition("; ")
        yield Finding("note", "compose.yaml", f"not looked at: {found}", advice)
        return
    said = compose.run("config", "--quiet")
    if said.returncode:
        reason = " ".join(said.stderr.split()) or "docker compose refuses it"
        yield Finding("problem", "compose.yaml", reason, "see .env and the files of COMPOSE_FILE")
    else:
        yield Finding("ok", "compose.yaml", "docker compose accepts it")

"""The bundle's secrets: made once, as files that only their owner can read."""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import bcrypt

FOLDER: Final = "secrets"
_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700


def _password() -> str:
    return secrets.token_urlsafe(24)


# Who logs in with what, and Kibana's key for what it saves; an empty one is the user's to fill.
SECRETS: Final[Mapping[str, Callable[[], str]]] = {
    "es_elastic_password": _password,
    "es_kibana_password": _password,
    "es_filebeat_password": _password,
    "es_jaeger_password": _password,
    "es_grafana_password": _password,
    "es_retention_password": _password,
    "grafana_admin_password": _password,
    "kibana_encryption_key": lambda: secrets.token_hex(32),
    "proxy_password": _password,
    "hf_token": str,
}
PROXY_USERS: Final = "proxy_users"  # made of proxy_password
RECEIVERS: Final = "receivers"  # what the SLA's receivers name as files


def make_missing(bundle: Path) -> list[str]:
    """Make what is missing below secrets/, and return its names; what is there stays, and its mode becomes 0600."""
    folder = bundle / FOLDER
    for one in (folder, folder / RECEIVERS):
        one.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        one.chmod(_FOLDER_MODE)
    made = []
    for name, make in SECRETS.items():
        if not (folder / name).exists():
            _write(folder / name, make())
            made.append(name)
    if not (folder / PROXY_USERS).exists() or "proxy_password" in made:
        password = (folder / "proxy_password").read_text(encoding="utf-8").strip()
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt()).decode()
        _write(folder / PROXY_USERS, f"admin {hashed}\n")
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(_MODE)
    return made


def loose(bundle: Path) -> list[str]:
    """Return what is wrong with the secrets, in words: missing, empty, readable by others."""
    found = []
    for name, make in [*SECRETS.items(), (PROXY_USERS, _password)]:
        path = bundle / FOLDER / name
        if not path.is_file():
            found.append(f"{FOLDER}/{name}: missing; vllm-vitals bundle init makes it")
            continue
        if path.stat().st_mode & 0o077:
            found.append(
                f"{FOLDER}/{name}: others can read it (mode {path.stat().st_mode & 0o777:o}); chmod 600 {path}"
            )
        if path.stat().st_size == 0 and make is not str:
            found.append(f"{FOLDER}/{name}: empty; remove it, vllm-vitals bundle init makes a new one")
    return found


def _write(path: Path, text: str) -> None:
    """Write a file that nobody else could read at any time."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)

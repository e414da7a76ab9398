"""Which engines a bundle's exporter is told to watch, and which of their addresses lead nowhere from a container."""

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from ..settings.config import EngineSettings, load
from ..settings.finding import Finding
from ..settings.scalars import ConfigError

FROM_A_CONTAINER: Final = "host.docker.internal"
_FILE: Final = "exporter/vitals.yaml"
_OWN_NAMES: Final = {"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"}


def notes_on(folder: Path, profiles: Iterable[str]) -> list[Finding]:
    """Return what keeps a bundle's exporter from its engines; nothing where none runs or all is well."""
    chosen = set(profiles)
    if not chosen & {"metrics", "all"}:
        return []
    try:
        settings = load(folder / _FILE, {}, {})
    except ConfigError:
        return []  # `bundle check` says what is wrong with it
    found = [*unreachable(settings.engines)]
    elsewhere = settings.discovery.files or settings.discovery.dns
    if not settings.engines and not elsewhere and not chosen & {"demo", "vllm"}:
        advice = f"add one there, such as http://{FROM_A_CONTAINER}:8000 for a vLLM on this machine"
        found.append(Finding("note", _FILE, "no engine is named: there is nothing to watch but this machine", advice))
    return found


def unreachable(engines: Iterable[EngineSettings]) -> Iterator[Finding]:
    """Yield a finding for each engine whose address means the exporter's own container, with one that works."""
    for engine in engines:
        parts = urlsplit(engine.url)
        if not is_own(parts.hostname or ""):
            continue
        port = f":{parts.port}" if parts.port else ""
        instead = urlunsplit(parts._replace(netloc=f"{FROM_A_CONTAINER}{port}"))
        found = f"{engine.url} is the exporter's own container: no engine answers there"
        advice = f"write {instead}, and let vLLM listen on more than loopback (--host 0.0.0.0)"
        yield Finding("problem", _FILE, found, advice)


def is_own(host: str) -> bool:
    """Whether a host is the machine, or the container, that asks."""
    name = host.rstrip(".").lower()
    if name in _OWN_NAMES or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return _is_short_form(name) or _is_this_machine(name)
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _is_short_form(name: str) -> bool:
    """Whether it is 127.1, 0x7f.1, 2130706433, 0, ...: what resolvers read as an address of this machine."""
    try:
        return socket.inet_aton(name)[0] in {0, 127}
    except (OSError, UnicodeError):
        return False


def _is_this_machine(name: str) -> bool:
    """Whether it is this machine's own name and stands for loopback here, as in Debian's /etc/hosts."""
    if name not in {socket.gethostname().lower(), socket.getfqdn().lower()}:
        return False
    try:
        return ipaddress.ip_address(socket.gethostbyname(name)).is_loopback
    except (OSError, UnicodeError):
        return False

"""The list of servers: those in the config, plus file_sd files and DNS names that are looked at again and again."""

import dataclasses
import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...runtime.log_once import LogOnce
from ...settings.config import Discovery, DnsDiscovery, EngineSettings
from ...settings.scalars import ConfigError
from ...settings.typed_yaml import read_plain_yaml

log = logging.getLogger("vllm_vitals")

MAX_SERVERS: Final = 1000
_DNS_SECONDS: Final = 3.0


# Looks for servers on this machine; gets the HOST:PORT of those known.
Finder = Callable[[frozenset[str]], list[EngineSettings]]


class ServerList:
    """All servers, refreshed from where they come; what fails keeps its last good list.

    Args:
        static: servers of the config.
        discovery: files and DNS names.
        finder: looks for servers on this machine; what it found once stays, so that a crash shows as down.

    Attributes:
        failures: refreshes that failed, by origin.
    """

    def __init__(self, static: Sequence[EngineSettings], discovery: Discovery, finder: Finder | None = None) -> None:
        self._static = [(engine, "config") for engine in static]
        self._discovery = discovery
        self._finder = finder
        self._found: dict[str, list[tuple[EngineSettings, str]]] = {}
        self._said = LogOnce()
        self.failures: Counter[str] = Counter()

    @property
    def dynamic(self) -> bool:
        """Whether there is anything to refresh."""
        return bool(self._discovery.files or self._discovery.dns or self._finder)

    def refresh(self) -> None:
        """Look at files and names; blocking, within a few seconds, never raises."""
        for pattern in self._discovery.files:
            self._try("file", pattern, partial(_from_files, pattern))
        for entry in self._discovery.dns:
            self._try("dns", entry.name, partial(_from_dns, entry))
        if self._finder is not None:
            self._try("process", "this machine", partial(self._with_known, self._finder))

    def servers(self) -> list[tuple[EngineSettings, str]]:
        """Return (server, origin), each name once, the config's own first.

        Of two addresses under one name the later one goes by its address, so that neither is lost.
        """
        unique: dict[str, tuple[EngineSettings, str]] = {}
        for engine, origin in (*self._static, *(item for found in self._found.values() for item in found)):
            first, _ = unique.setdefault(engine.server, (engine, origin))
            if first.url != engine.url:
                nameless = dataclasses.replace(engine, name="")
                unique.setdefault(nameless.server, (nameless, origin))
        return list(unique.values())[:MAX_SERVERS]

    def _with_known(self, finder: Finder) -> list[EngineSettings]:
        known = [engine for engine, _ in self._found.get("process this machine", ())]
        return known + finder(frozenset(engine.server for engine in known))

    def _try(self, origin: str, what: str, look: Callable[[], Iterable[EngineSettings]]) -> None:
        key = f"{origin} {what}"
        try:
            self._found[key] = [(engine, origin) for engine in look()]
            self._said.forget(key)
        except Exception as error:
            self.failures[origin] += 1
            if self._said.is_news(key, str(error)):
                log.warning("discovery by %s: %s; the last good list stays", key, error)


def _from_files(pattern: str) -> list[EngineSettings]:
    """Return the servers of file_sd files: JSON or YAML lists of {targets: [...], labels: {...}}.

    Of the labels `server` (or `name`), `__scheme__` and `__metrics_path__` have a meaning here.
    """
    paths = sorted(glob.glob(pattern))  # noqa: PTH207  patterns may be absolute
    if not paths and not glob.has_magic(pattern):
        raise ConfigError(f"{pattern}: no such file")
    return [engine for path in paths for engine in _from_file(path)]


def _from_file(path: str) -> list[EngineSettings]:
    groups: Any = read_plain_yaml(Path(path))  # JSON is YAML
    if groups is None:
        return []
    if not isinstance(groups, list):
        raise ConfigError(f"{path}: expected a list of groups with targets, found {type(groups).__name__}")
    engines = []
    for number, group in enumerate(groups, start=1):
        if isinstance(group, dict) and group.get("targets", "") is None:
            continue  # all of them are commented out
        if not isinstance(group, dict) or not isinstance(group.get("targets"), list):
            raise ConfigError(f"{path}: group {number}: expected a list under 'targets'")
        labels = group.get("labels") or {}
        if not isinstance(labels, dict):
            raise ConfigError(f"{path}: group {number}: expected a mapping under 'labels'")
        name = str(labels.get("server") or labels.get("name") or "")
        for target in group["targets"]:
            text = str(target) if "://" in str(target) else f"{labels.get('__scheme__', 'http')}://{target}"
            engine = EngineSettings.from_scalar(text, f"{path}: group {number}")
            engines.append(
                EngineSettings(
                    url=engine.url,
                    name=name if len(group["targets"]) == 1 else "",
                    metrics_path=str(labels.get("__metrics_path__", "")),
                )
            )
    return engines


def _from_dns(entry: DnsDiscovery) -> list[EngineSettings]:
    import dns.resolver  # noqa: PLC0415  4 MiB that most installations never need

    if entry.nameserver is None:
        resolver = dns.resolver.Resolver()
    else:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = [entry.nameserver.host]
        resolver.port = entry.nameserver.port
    answer = resolver.resolve(entry.name, entry.type, lifetime=_DNS_SECONDS, search=True)
    if entry.type == "SRV":
        targets = sorted((str(record.target).rstrip("."), int(record.port)) for record in answer)
    else:
        targets = sorted((str(record.address), entry.port) for record in answer)
    return [
        EngineSettings.from_scalar(
            f"{entry.scheme}://{f'[{host}]' if ':' in host else host}:{port}", f"dns {entry.name}"
        )
        for host, port in targets
    ]

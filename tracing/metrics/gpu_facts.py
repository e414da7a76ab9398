"""The GPUs that this engine runs on, as the exporter last told: asked by a thread of its own, never by a request."""

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from ...runtime.background import Background
from ...runtime.exchange import exchange
from ...runtime.log_once import LogOnce
from ...settings.tracing import GpuFactSettings
from ..counters import Counters
from ..request.records import Gpu

log = logging.getLogger("vllm_vitals.tracing")

GPU_FACTS_FAILURES: Final = "gpu_facts_failures"  # the exporter did not answer, or not with what it should

_DEADLINE_SECONDS: Final = 2.0
_STALE_SECONDS: Final = 30.0
_LIMIT_BYTES: Final = 4 * 1024 * 1024


class KnownEngine(NamedTuple):
    """An engine that the exporter knows, with its GPUs; host and port of its URL."""

    host: str
    port: int
    gpus: tuple[Gpu, ...]


class GpuFactsWatch:
    """Asks the exporter every few seconds.

    The exporter's /api/vitals is asked, not its /metrics: that one would fetch vLLM's own page each time. We find
    ourselves in it by address: a URL with our port whose host is this machine. Where that leaves a doubt
    nothing is told.

    Args:
        settings: where the exporter is; without a URL nothing is asked.
        counters: count what fails.
    """

    def __init__(self, settings: GpuFactSettings, counters: Counters) -> None:
        self._settings = settings
        self._counters = counters
        self._background = Background("vllm-vitals-gpu-facts", self._ask, settings.interval, on_error=self._fail)
        self._answer: tuple[float, tuple[KnownEngine, ...]] = (0.0, ())
        self._said = LogOnce()

    def start(self) -> None:
        """Begin to ask."""
        if self._settings.exporter_url is not None:
            self._background.start()

    def close(self) -> None:
        """Stop asking; does not wait."""
        self._background.stop(patience=0)

    def current(self, port: int | None) -> tuple[Gpu, ...]:
        """Return this engine's GPUs, none when not known or told more than 30 s ago.

        Args:
            port: that this engine listens on, None when not known: then the machine must have one engine only.
        """
        at, engines = self._answer
        if not engines or time.monotonic() - at > _STALE_SECONDS:
            return ()
        found = [engine for engine in engines if port is None or engine.port == port]
        return found[0].gpus if len(found) == 1 else ()

    def _ask(self) -> None:
        address = self._settings.exporter_url or ""
        started = time.monotonic()
        url = urlsplit(address if "://" in address else f"http://{address}")
        engines = told(json.loads(_fetch(url)), exporter_is_here=is_this_machine(url.hostname or ""))
        self._answer = (started, engines)
        self._said.forget(self._settings.exporter_url)

    def _fail(self, error: Exception) -> None:
        self._counters.add(GPU_FACTS_FAILURES)
        address = self._settings.exporter_url
        if self._said.is_news(address):
            log.warning("the exporter at %s does not tell this engine's GPUs: %r", address, error)


def told(
    vitals: Mapping[str, Any], *, exporter_is_here: bool, is_here: Callable[[str], bool] | None = None
) -> tuple[KnownEngine, ...]:
    """Return the engines on this machine of an answer of /api/vitals; raises for one of another form.

    A loopback address in it means the exporter's machine, which may be another one than ours.
    """
    is_here = is_here or is_this_machine
    gpus = {row["uuid"]: row for row in vitals["gpus"]}
    engines = []
    for engine in vitals["engines"]:
        url = urlsplit(engine["url"])
        host = url.hostname or ""
        if exporter_is_here if is_loopback(host) else is_here(host):
            uuids = [row["uuid"] for row in engine["gpus"]]
            placed = tuple(_gpu(uuid, gpus.get(uuid, {})) for uuid in uuids)
            engines.append(KnownEngine(host, url.port or (443 if url.scheme == "https" else 80), placed))
    return tuple(engines)


def is_loopback(host: str) -> bool:
    """Tell whether a URL's host means whoever reads it."""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def is_this_machine(host: str) -> bool:
    """Tell whether a host's name or address is one of this machine, or container: whether one can bind to it."""
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, _, _, address in addresses:
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(address)
            return True
    return False


def _gpu(uuid: str, row: Mapping[str, Any]) -> Gpu:
    memory, power = row.get("memory_used_bytes"), row.get("power_watts")
    return Gpu(
        uuid=str(uuid),
        model=str(row.get("name", "")),
        memory_used=None if memory is None else int(memory),
        power=None if power is None else float(power),
    )


def _fetch(url: SplitResult) -> bytes:
    """Return the exporter's answer; raises within the deadline, however slowly bytes drip."""
    answer = exchange(
        f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}/api/vitals?history=off",
        headers={"User-Agent": "vllm-vitals"},
        deadline=_DEADLINE_SECONDS,
        limit=_LIMIT_BYTES + 1,
    )
    if answer.status != 200 or len(answer.body) > _LIMIT_BYTES:
        raise OSError(f"HTTP {answer.status} with {len(answer.body)} bytes")
    return answer.body

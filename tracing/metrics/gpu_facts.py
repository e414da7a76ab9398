"""The GPUs that this engine runs on, as the exporter last told: asked by a thread of its own, never by a request."""

import contextlib
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from ...settings.tracing import GpuFactSettings
from ..counters import Counters
from ..request.records import Gpu

log = logging.getLogger("vllm_vitals.tracing")

GPU_FACTS_FAILURES: Final = "gpu_facts_failures"  # the exporter did not answer, or not with what it should

_DEADLINE_SECONDS: Final = 2.0
_STALE_SECONDS: Final = 30.0
_LIMIT_BYTES: Final = 4 * 1024 * 1024
_READ_BYTES: Final = 64 * 1024


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
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._answer: tuple[float, tuple[KnownEngine, ...]] = (0.0, ())
        self._failed = False

    def start(self) -> None:
        """Begin to ask."""
        if self._settings.exporter_url is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vllm-vitals-gpu-facts", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop asking; does not wait."""
        self._stop.set()

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

    def _run(self) -> None:
        address = self._settings.exporter_url or ""
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                url = urlsplit(address if "://" in address else f"http://{address}")
                engines = told(json.loads(_fetch(url)), exporter_is_here=is_this_machine(url.hostname or ""))
                self._answer = (started, engines)
                self._failed = False
            except Exception as error:  # this thread must go on, whatever answers there
                self._counters.add(GPU_FACTS_FAILURES)
                if not self._failed:
                    log.warning("the exporter at %s does not tell this engine's GPUs: %r", address, error)
                self._failed = True
            self._stop.wait(max(0.1, self._settings.interval - (time.monotonic() - started)))


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
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=_DEADLINE_SECONDS)
    watch = threading.Timer(_DEADLINE_SECONDS, _hang_up, (connection,))
    watch.daemon = True
    watch.start()
    try:
        connection.request(
            "GET", f"{url.path.rstrip('/')}/api/vitals?history=off", headers={"User-Agent": "vllm-vitals"}
        )
        answer = connection.getresponse()
        body = answer.read(_LIMIT_BYTES + 1)
        if answer.status != http.client.OK or len(body) > _LIMIT_BYTES:
            raise OSError(f"HTTP {answer.status} with {len(body)} bytes")
        return body
    finally:
        watch.cancel()
        connection.close()


def _hang_up(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)

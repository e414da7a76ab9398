"""The metrics of all API server processes behind one port: each leaves its values in a folder, who is asked adds up.

With `--api-server-count` above 1 a scrape hits any one of the processes. A counter must not fall from one scrape to the
next, whoever answers: so a process writes its own values before it answers with them, and whoever is asked next finds
at least those. (Scrapes that overlap have no order, and no promise.) What a dead process left stays. Without an own
answer the others see a process's values a second late.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from ...runtime.log_once import LogOnce
from ...vocabulary.exposition_formats import OPENMETRICS_TYPE, TEXT_TYPE, accepts_openmetrics
from .openmetrics import render
from .self_metrics import SelfMetrics
from .values import Values, from_json, merged, to_json

log = logging.getLogger("vllm_vitals.tracing")

_EVERY_SECONDS: Final = 1.0
_LIMIT_BYTES: Final = 8 * 1024 * 1024  # of one process's file
_LIMIT_FILES: Final = 256
_PREFIX: Final = "vllm_vitals_requests_"
_SUFFIX: Final = ".json"  # prometheus_client reads every *.db of this folder


def shared_folder() -> Path | None:
    """Return the folder that vLLM's API server processes share, None where there is a single one."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


class MetricsPage:
    """What /metrics/requests answers.

    Args:
        requests: returns the request metrics of this process, from any thread.
        own_work: what the plugin did itself. It stands on vLLM's /metrics; with several API servers that page shows
            only files of prometheus_client, and the counts stand here instead.
        fatal_counts: returns kind -> count of errors that kill an engine, over all processes of this server.
    """

    def __init__(
        self, requests: Callable[[], Values], own_work: SelfMetrics, fatal_counts: Callable[[], Mapping[str, int]]
    ) -> None:
        self._requests = requests
        self._own_work = own_work
        self._fatal_counts = fatal_counts
        self._folder = shared_folder()
        self._file = f"{_PREFIX}{os.getpid()}"
        self._server = _server_of_this_process()
        self._lock = threading.Lock()  # an older snapshot must not replace a newer one
        self._written = b""
        self._due = 0.0
        self._said = LogOnce()
        self._minute_line = ""
        if self._folder is None:
            own_work.register()

    def idle(self) -> None:
        """Let the other processes see what was counted, once a second."""
        if self._folder is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + _EVERY_SECONDS
            self._write()

    def close(self) -> None:
        """Leave what was counted to the other processes."""
        self._write()

    def page(self, accept: str) -> tuple[str, bytes]:
        """Return content type and body for an Accept header.

        Takes a millisecond; with several API servers a small write and a read for each of them, too. Not for the event
        loop.
        """
        openmetrics = accepts_openmetrics(accept)
        values = merged((self._write(), *self._others(), self._server_values()))
        return OPENMETRICS_TYPE if openmetrics else TEXT_TYPE, render(values, openmetrics=openmetrics)

    def minute_line(self) -> str:
        """Return what to log of the plugin's own work; empty when nothing happened since the last call."""
        line = self._own_work.line()
        if line == self._minute_line:
            return ""
        self._minute_line = line
        return line

    def _server_values(self) -> Values:
        """Return what is known of the whole server and not of this process: it must not be added up."""
        counts = self._fatal_counts()
        return Values({("vllm_vitals_engine_fatal_errors_total", (kind,)): counts[kind] for kind in counts}, {})

    def _write(self) -> Values:
        """Leave this process's values to the others where there are others, and return them."""
        if self._folder is None:
            return self._requests()
        with self._lock:
            values = merged((self._requests(), self._own_work.values()))
            text = to_json(values, self._server)
            if text != self._written:
                self._replace(self._folder, text)
            return values

    def _replace(self, folder: Path, text: bytes) -> None:
        temporary = folder / f"{self._file}.tmp"
        try:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()  # of a process that died while it wrote, whose number we have
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(text)
            temporary.rename(folder / f"{self._file}{_SUFFIX}")
        except OSError as error:
            if self._said.is_news(folder):
                log.warning("request metrics cannot be shared between API servers: %s", error)
        else:
            self._written = text
            self._said.forget(folder)

    def _others(self) -> Iterator[Values]:
        """Yield the values of each other process of this server; what is not readable is passed by."""
        if self._folder is None:
            return
        try:
            names = sorted(os.listdir(self._folder))  # noqa: PTH208  names are all we need
        except OSError:
            return
        ours = f"{self._file}{_SUFFIX}"
        names = [name for name in names if name.startswith(_PREFIX) and name.endswith(_SUFFIX) and name != ours]
        for name in names[:_LIMIT_FILES]:
            with contextlib.suppress(OSError, ValueError):  # gone, or another server's in a folder that a user named
                with open(self._folder / name, "rb") as stream:  # noqa: PTH123
                    text = stream.read(_LIMIT_BYTES + 1)
                if len(text) <= _LIMIT_BYTES:
                    yield from_json(text, self._server)


def _server_of_this_process() -> str:
    """Return what the API servers of one vLLM have in common: their parent, with its start in clock ticks."""
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return f"{parent} {started}"

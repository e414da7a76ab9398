"""Watches the log stream for what ends engines, counts it by kind and names the requests that it took down.

vLLM has no metric for out-of-memory and engine deaths. Its processes log them: each of them gets the watch.
"""

import contextlib
import itertools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from . import file as fatal_file
from .file import state_dir
from .kinds import BY_NAME, kinds_of

LOGGER: Final = "vllm_vitals.fatal"
_WATCHED: Final = ("", "vllm", "uvicorn", "uvicorn.error", "asyncio")
_LIFE: Final = "_VLLM_VITALS_LIFE"  # in the environment, so a server's processes share it; vLLM warns of VLLM_*
_NAMED: Final = 200  # request ids in one line
_MOST_REPORTS: Final = 1000  # by one process

# vLLM stops its engine before its API server, which then finds the engine dead: that is no failure. It says
# "[shutdown] API server: shutdown triggered" first, and "[shutdown] EngineCore: trigger received" in the engine.
_STOP_LOOKS_LIKE: Final = frozenset({"engine_dead", "worker_dead", "host_oom"})

_log: Final = logging.getLogger(LOGGER)
_watch: "FatalWatch | None" = None


class FatalWatch(logging.Handler):
    """Looks at records for what ends engines, and for a stop that is meant; never raises, holds no lock."""

    only_watches = True

    def __init__(self, state: Path, role: str = "") -> None:
        """Take the place of the counts and this process's role, such as `api_server`."""
        super().__init__(logging.INFO)
        self.state = state
        self.role = role
        self.in_flight: Callable[[], Iterable[str]] | None = None
        self._reported: dict[str, float] = {}
        self._number = 0
        self._busy = threading.local()
        self._stopping = False

    def handle(self, record: logging.LogRecord) -> bool:
        """Look at a record; not `emit`, since logging would take the handler's lock around that."""
        _show(record)
        if record.name.startswith("vllm_vitals") or getattr(self._busy, "now", False):
            return True
        if record.levelno < logging.WARNING:
            if isinstance(record.msg, str) and _says_stop(record.msg):
                self._stopping = True
            return True
        seen = record.__dict__
        if seen.get("_vitals_watched"):  # by another logger of the same chain
            return True
        self._busy.now = True
        try:
            seen["_vitals_watched"] = True
            for kind in kinds_of(record):
                if self._stopping and kind in _STOP_LOOKS_LIKE:
                    continue
                self.report(kind, detail=_detail(record))
        except Exception:  # noqa: S110  the record itself still goes its way, and nothing better can be done here
            pass
        finally:
            self._busy.now = False
        return True

    def report(self, kind: str, request_ids: Iterable[str] | None = None, detail: str = "") -> None:
        """Write a kind to the file and the log, unless this process did so; ids default to those in flight."""
        now = time.time()
        before = self._reported.get(kind)
        lately = before is not None and now - before <= fatal_file.SAME_EVENT_SECONDS
        if lately or (before is not None and BY_NAME[kind].ends_engine) or self._number >= _MOST_REPORTS:
            return
        self._reported[kind] = now
        self._number += 1
        life = _life()
        said = [line for line in fatal_file.reports(self.state) if line.get("life") == life]
        report = {"kind": kind, "time": round(now, 3), "life": life, "pid": os.getpid(), "role": self.role}
        with contextlib.suppress(OSError):  # the log line below is left
            fatal_file.append(self.state, report | ({"detail": detail} if detail else {}))
        ids = list(request_ids) if request_ids is not None else _ids(self.in_flight)
        causes = sorted({line["kind"] for line in said} - {kind})
        _log.error(_text(kind, len(ids), causes), extra={"vitals": _fields(kind, ids, causes, detail)})


def has_output(logger: logging.Logger) -> bool:
    """As Logger.hasHandlers, but for handlers that only watch."""
    at: logging.Logger | None = logger
    while at is not None:
        if any(not getattr(handler, "only_watches", False) for handler in at.handlers):
            return True
        at = at.parent if at.propagate else None
    return False


def _show(record: logging.LogRecord) -> None:
    """Write what nobody else writes to stderr: logging does so for loggers without a handler, and we are one."""
    last = logging.lastResort
    if last is None or record.levelno < last.level or record.__dict__.get("_vitals_shown"):
        return
    with contextlib.suppress(Exception):
        record.__dict__["_vitals_shown"] = True  # watches of other loggers in the same chain see it, too
        if not has_output(logging.getLogger(record.name)):
            last.handle(record)


def _says_stop(message: str) -> bool:
    """Return whether a message announces a stop: vLLM's since 0.26, before that uvicorn's."""
    return (message.startswith("[shutdown]") and " trigger" in message) or message == "Shutting down"


def install(state: Path, role: str = "") -> FatalWatch | None:
    """Watch this process's log; again it only puts the watch back where logging was configured anew.

    Returns:
        The watch; None where the directory cannot be used, which is logged.
    """
    global _watch  # noqa: PLW0603  one per process
    if _watch is None or _watch.state != state:
        uninstall()
        try:
            fatal_file.prepare(state)
        except OSError as error:
            logging.getLogger("vllm_vitals").warning("what ends engines is not counted: %s", error)
            return None
        os.environ.setdefault(_LIFE, secrets.token_hex(8))
        _watch = FatalWatch(state, role)
    _watch.role = role or _watch.role
    for name in _WATCHED:
        logger = logging.getLogger(name)
        if _watch not in logger.handlers:
            logger.addHandler(_watch)
    return _watch


def uninstall() -> None:
    """Watch no longer."""
    global _watch  # noqa: PLW0603  one per process
    if _watch is not None:
        for name in _WATCHED:
            logging.getLogger(name).removeHandler(_watch)
    _watch = None


def name_requests(in_flight: Callable[[], Iterable[str]]) -> None:
    """Say who knows the ids of the requests being served; asked from any thread when an engine ends."""
    if _watch is not None:
        _watch.in_flight = in_flight


def record_fatal(kind: str, request_ids: Iterable[str] | None = None, detail: str = "") -> None:
    """Report an end that somebody else noticed; never raises, does nothing where no watch is installed."""
    if _watch is not None:
        with contextlib.suppress(Exception):
            _watch.report(kind, request_ids, detail)


def fatal_counts(state: Path) -> dict[str, int]:
    """Return the number of ends by kind, over all servers that used the directory; never raises."""
    try:
        return fatal_file.counts(fatal_file.reports(state))
    except Exception:
        return fatal_file.counts(())


def _life() -> str:
    return os.environ.get(_LIFE) or f"pid-{os.getpid()}"


def _detail(record: logging.LogRecord) -> str:
    """Return where a record came from and its exception's class; no text of it, which could hold a prompt."""
    error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
    return f"{record.name}:{record.lineno}{' ' if error else ''}{error}"[:200]


def _ids(in_flight: Callable[[], Iterable[str]] | None) -> list[str]:
    if in_flight is None:
        return []
    for _ in range(3):
        with contextlib.suppress(RuntimeError):  # a dict that changes while another thread walks it
            return list(in_flight())
    return []


def _text(kind: str, number: int, causes: list[str]) -> str:
    words = [f"engine failure: {kind}"]
    if causes:
        words.append(f"after {', '.join(causes)}")
    if number:
        words.append(f"took down {number} request{'s' if number != 1 else ''}")
    return "; ".join(words)


def _fields(kind: str, ids: list[str], causes: list[str], detail: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"fatal_kind": kind, "error.type": kind}
    if causes:
        fields["fatal_causes"] = causes
    if detail:
        fields["fatal_detail"] = detail
    if ids:
        fields["requests_lost"] = len(ids)
        fields["request_ids"] = list(itertools.islice(ids, _NAMED))
    return fields


__all__ = ["FatalWatch", "fatal_counts", "install", "name_requests", "record_fatal", "state_dir", "uninstall"]

"""The audit log: who asked for what, one sealed record per request; a disk that fails costs records, never requests."""

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

from ...settings.scalars import ConfigError
from ...settings.tracing import AuditSettings
from ..counters import AUDIT_FAILURES, Counters
from ..request.records import RequestRecord
from .file import AuditFile, now, utc
from .hashing import read_key

_RETRY_SECONDS: Final = 1.0
_log: Final = logging.getLogger("vllm_vitals")


def entry(request: RequestRecord) -> dict[str, Any]:
    """Return what the audit log keeps of a request; what is not known is absent."""
    who: dict[str, Any] = {}
    if request.user:
        who["user"] = request.user
    if request.headers:
        who["headers"] = dict(request.headers)
    if request.http is not None and request.http.client:
        who["client"] = request.http.client
    record: dict[str, Any] = {
        "time": utc(request.ended),
        "request_id": request.request_id,
        "who": who,
        "model": request.model,
        "outcome": request.outcome,
        "duration_ms": round(max(0.0, request.ended - request.started) * 1000, 3),
    }
    if request.session_id:
        record["session_id"] = request.session_id
    if request.trace.trace_id:
        record["trace_id"] = f"{request.trace.trace_id:032x}"
    if request.http is not None:
        record["method"], record["path"] = request.http.method, request.http.path
        if request.http.status:
            record["status"] = request.http.status
    if request.error_type:
        record["error_type"] = request.error_type
    if request.late:
        record["late"] = True
    if request.sequences:
        record["tokens"] = {
            "input": request.input_tokens,
            "cached": request.cached_tokens,
            "output": request.output_tokens,
        }
        record["sequences"] = len(request.sequences)
        record["finish_reasons"] = sorted({sequence.finish_reason for sequence in request.sequences})
        asked = request.sequences[0].max_tokens
        if asked is not None:
            record["max_tokens"] = asked
    return record


class AuditSink:
    """Writes one record per request. On the drain thread only.

    `fsync: always` waits for the disk after each record, `interval` once a second, `never` leaves it to the kernel.
    """

    name = "audit"

    def __init__(
        self, settings: AuditSettings, counters: Counters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the key and look at the place; raises ConfigError. The file is opened with the first record."""
        if settings.file is None or settings.key_file is None:
            raise ConfigError("tracing.audit: expected file and key_file, found none")
        if not settings.file.parent.is_dir():
            raise ConfigError(f"tracing.audit.file: expected an existing directory, found {settings.file.parent}")
        self._settings = settings
        self._key = read_key(settings.key_file, "tracing.audit.key_file")
        self._counters = counters
        self._clock = clock
        self._file = self._new_file()
        self._pid = os.getpid()
        self._lost = 0
        self._ill = False
        self._retry_at = -1.0

    def take(self, request: RequestRecord) -> None:
        """Write a request's record, or count it as lost."""
        self._after_fork()
        if not self._ready():
            self._lose()
            return
        try:
            self._file.append(entry(request))
        except OSError as error:
            self._fail(error)
            self._lose()
        except Exception:  # a record that cannot be made is missing, too: the gap must be told
            self._lose()
            raise

    def idle(self) -> None:
        """Write what is due to the disk; try again what failed."""
        self._after_fork()
        if not self._file.is_open and not self._lost:
            return  # nothing was asked for yet
        if self._ready():
            try:
                self._file.sync()
            except OSError as error:
                self._fail(error)

    def close(self, deadline: float) -> None:  # noqa: ARG002  a write to a file cannot be given a deadline
        """Write the gap, if there is one, and close."""
        self._retry_at = -1.0
        self.idle()
        self._file.close()

    def _new_file(self) -> AuditFile:
        settings = self._settings
        assert settings.file is not None
        return AuditFile(settings.file, self._key, settings.fsync, settings.max_bytes, settings.keep_files)

    def _ready(self) -> bool:
        """Whether a record can be appended; opens the file and writes the gap when it is time."""
        try:
            if self._file.is_open and self._file.is_replaced():
                _log.warning("audit log: %s was moved or removed, it is begun again", self._file.path)
                self._file.reopen()
            if not self._file.is_open:
                if self._clock() < self._retry_at:
                    return False
                self._file.open()
            if self._lost:
                self._file.append({"time": now(), "lost": self._lost}, "gap")
        except OSError as error:
            self._fail(error)
            return False
        if self._ill:
            _log.warning("audit log: written again; %d records were lost, record %s says so", self._lost, self._seq())
        self._lost, self._ill = 0, False
        return True

    def _seq(self) -> int:
        return -1 if self._file.last is None else self._file.last.seq

    def _lose(self) -> None:
        self._lost += 1
        self._counters.add(AUDIT_FAILURES)

    def _fail(self, error: OSError) -> None:
        self._retry_at = self._clock() + _RETRY_SECONDS
        if not self._ill:
            _log.error("audit log: %s cannot be written, records are counted as lost: %s", self._file.path, error)
        self._ill = True

    def _after_fork(self) -> None:
        """In a child process, let go of the parent's file and take one of our own."""
        if self._pid != os.getpid():
            self._file.close()
            self._file = self._new_file()
            self._pid, self._lost, self._ill = os.getpid(), 0, False

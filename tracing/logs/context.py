"""The ids of the HTTP request that the running task serves, put on every log record of that task."""

import logging
from contextvars import ContextVar
from typing import Final, Protocol


class Served(Protocol):
    """The request being served, as far as its log lines need it; ids of 0 and empty texts are not known."""

    @property
    def request_id(self) -> str:
        """`X-Request-Id`, the engine's id."""

    @property
    def session_id(self) -> str:
        """The caller's session, empty for none."""

    @property
    def trace_id(self) -> int:
        """128 bits."""

    @property
    def span_id(self) -> int:
        """64 bits."""

    @property
    def sampled(self) -> bool:
        """Whether the trace's spans are kept."""


SERVED: Final[ContextVar[Served | None]] = ContextVar("vllm_vitals_served", default=None)


class IdFilter(logging.Filter):
    """Puts request_id, session_id, trace_id and span_id on records; lets every record pass, never raises.

    vLLM has no active span while a request runs, so automatic log correlation would write zero ids.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what is known and what the record does not say itself."""
        served = SERVED.get()
        if served is None:
            return True
        try:
            known = record.__dict__
            if served.request_id:
                known.setdefault("request_id", served.request_id)
            if served.session_id:
                known.setdefault("session_id", served.session_id)
            if served.trace_id:
                known.setdefault("trace_id", f"{served.trace_id:032x}")
                if served.span_id:
                    known.setdefault("span_id", f"{served.span_id:016x}")
        except Exception:  # noqa: S110  a log line without ids is better than none
            pass
        return True

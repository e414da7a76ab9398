"""One HTTP request while vLLM serves it: written on the event loop, read on the drain thread once it is over."""

from typing import TYPE_CHECKING, Any

from .sampling import Head
from .trace_context import new_span_id

if TYPE_CHECKING:
    from .timeline import Timeline


class Exchange:
    """What the middleware sees; plain slots, since each request makes one on vLLM's event loop.

    Attributes:
        scope: the ASGI scope, kept by reference until the request is reported.
        request_id: the caller's X-Request-Id, or a new one.
        head: trace and first sampling decision.
        started, ended, first_byte: Unix seconds; 0 until they happen.
        status: of the answer, 0 before it begins.
        streamed: the answer is a stream of server-sent events.
        complete: the last byte of the answer was handed over.
        disconnected: the caller hung up before that.
        error_type: class of an exception that left the application.
        body: the request's body in pieces, by reference; dropped when it grows beyond a limit.
        body_bytes: its size so far, negative once dropped.
        sequences: what the engine made of it.
        released: the drain thread stopped waiting for sequences: they report themselves.
    """

    __slots__ = (
        "body", "body_bytes", "complete", "disconnected", "ended", "error_type", "first_byte", "head", "released",
        "request_id", "scope", "sequences", "span_id", "started", "status", "streamed", "waits_until",
    )  # fmt: skip

    def __init__(self, scope: Any, request_id: str, head: Head, started: float) -> None:
        self.scope = scope
        self.request_id = request_id
        self.head = head
        self.span_id = new_span_id()
        self.started = started
        self.ended = 0.0
        self.first_byte = 0.0
        self.status = 0
        self.streamed = False
        self.complete = False
        self.disconnected = False
        self.error_type = ""
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.sequences: list[Timeline] = []
        self.released = False
        self.waits_until = 0.0

    @property
    def trace_id(self) -> int:
        """The trace, for log lines written while the request is served."""
        return self.head.trace_id

    @property
    def sampled(self) -> bool:
        """The first sampling decision."""
        return self.head.sampled

    @property
    def session_id(self) -> str:
        """The caller's X-Session-ID; empty when there is none."""
        return session_header(self.scope)


def session_header(scope: Any) -> str:
    """Return the header X-Session-ID, cut to 256 characters."""
    for name, value in scope["headers"]:
        if name == b"x-session-id":
            return bytes(value[:256]).decode("latin-1")
    return ""

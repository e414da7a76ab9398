"""One HTTP request while vLLM serves it: written on the event loop, read on the drain thread once it is over."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .sampling import Head
from .trace_context import new_span_id

if TYPE_CHECKING:
    from .timeline import Timeline

PATHS: Final = ("/v1/", "/v2/", "/inference/", "/invocations", "/pooling", "/classify", "/score", "/rerank",
                "/generative_scoring", "/embed")  # fmt: skip


class Exchange:
    """What the middleware sees. Each request makes one on vLLM's event loop, so what is not set stays with the class.

    Attributes:
        scope: the ASGI scope, kept by reference until the request is reported.
        raw_id: the caller's X-Request-Id, or a new one.
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
        waits_until: monotonic seconds; written by the drain thread.
    """

    ended = first_byte = waits_until = 0.0
    status = body_bytes = 0
    streamed = complete = disconnected = released = False
    error_type = ""
    body: list[bytes] | None = None
    sequences: "list[Timeline] | None" = None

    def __init__(self, scope: Any, raw_id: bytes, decide: Callable[[Any], Head], started: float) -> None:
        self.scope = scope
        self.raw_id = raw_id
        self._decide = decide
        self.started = started

    # Made when first asked for: mostly by the drain thread, or by the log line of an access. Should both ask at once,
    # setdefault lets one of them win.

    @property
    def head(self) -> Head:
        """Trace and first sampling decision."""
        made: Head | None = self.__dict__.get("_head")
        return made if made is not None else self.__dict__.setdefault("_head", self._decide(self.scope))

    @property
    def span_id(self) -> int:
        """Our span of this request."""
        made: int | None = self.__dict__.get("_span_id")
        return made if made is not None else self.__dict__.setdefault("_span_id", new_span_id())

    @property
    def request_id(self) -> str:
        """The id as text."""
        return self.raw_id.decode("ascii")

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


def path_of(scope: Any) -> str:
    """Return the path without the prefix that `--root-path` names and that some proxies leave on."""
    path: str = scope["path"]
    if path.startswith(PATHS):
        return path
    rest = path.removeprefix(scope.get("root_path") or "")
    return rest if rest.startswith("/") else path


def session_header(scope: Any) -> str:
    """Return the header X-Session-ID, cut to 256 characters."""
    for name, value in scope["headers"]:
        if name == b"x-session-id":
            return bytes(value[:256]).decode("latin-1")
    return ""

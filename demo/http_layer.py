"""What the API server's HTTP instrumentation counts; a child of a family appears with its first request."""

from typing import Final

from .families import HTTP
from .histogram import Histogram
from .workload import SimulatedRequest

_BOUNDS: Final = {family.name: tuple(map(float, family.bounds)) for family in HTTP}
_REQUEST_BYTES: Final = (180, 4.2)  # envelope, and bytes per prompt token of English text
_RESPONSE_BYTES: Final = (430, 4.2)
_ERROR_BYTES: Final = 210


class _Handler:
    __slots__ = ("created", "durations", "request_bytes", "response_bytes")

    def __init__(self, created: float) -> None:
        self.created = created
        self.durations = Histogram(_BOUNDS["http_request_duration_seconds"])
        self.request_bytes = 0
        self.response_bytes = 0


class HttpLayer:
    """Counts of one API server process.

    Attributes:
        requests: by handler and status class: number and the moment of the first.
        handlers: sizes and durations by handler.
        durations: over all handlers, in fine buckets.
    """

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], tuple[int, float]] = {}
        self.handlers: dict[str, _Handler] = {}
        self.durations = Histogram(_BOUNDS["http_request_duration_highr_seconds"])

    def answered(self, request: SimulatedRequest, at: float, generated: int) -> None:
        """Count an answer, a broken-off one too: vLLM's HTTP layer calls that 2xx."""
        # a streamed answer has no Content-Length, and only that header is counted
        size = 0 if request.streaming else round(_RESPONSE_BYTES[0] + _RESPONSE_BYTES[1] * generated)
        self._count(request, "2xx", at, size)

    def refused(self, request: SimulatedRequest, at: float) -> None:
        """Count a request that validation refused."""
        self._count(request, "4xx", at, _ERROR_BYTES)

    def _count(self, request: SimulatedRequest, status: str, at: float, response_bytes: int) -> None:
        number, first = self.requests.get((request.handler, status), (0, at))
        self.requests[request.handler, status] = (number + 1, first)
        handler = self.handlers.get(request.handler)
        if handler is None:
            handler = self.handlers[request.handler] = _Handler(at)
        handler.durations.observe(at - request.arrival)
        handler.request_bytes += round(_REQUEST_BYTES[0] + _REQUEST_BYTES[1] * request.prompt_tokens)
        handler.response_bytes += response_bytes
        self.durations.observe(at - request.arrival)

"""A request in flight: its HTTP exchange and each of its sequences, as vLLM's event loop writes them.

The drain thread reads them once the request is over.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from time import time as _now
from typing import Any, Final, NamedTuple, TypeAlias

from .durations import Durations
from .records import NativeSpan
from .sampling import Head
from .trace_context import new_span_id

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

PATHS: Final = ("/v1/", "/v2/", "/inference/", "/invocations", "/pooling", "/classify", "/score", "/rerank",
                "/generative_scoring", "/embed")  # fmt: skip
USUAL_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"})


_DASH: Final = ord("-")


class Exchange:
    """What the middleware sees. Each request makes one on vLLM's event loop: Runtime.begin, without a call of ours.

    What is read there is set there; the rest stays with the class until it is known.

    Attributes:
        scope: the ASGI scope, kept by reference until the request is reported.
        raw_id: the caller's X-Request-Id, or a new one.
        decide: makes the first sampling decision of a scope.
        started, ended, first_byte: Unix seconds; 0 until they happen.
        status: of the answer, 0 before it begins.
        answer_headers: as the application gave them.
        complete: the last byte of the answer was handed over.
        disconnected: the caller hung up before that.
        error_type: class of an exception that left the application.
        receive, send: ASGI's, which `received` and `sent` stand in for.
        body_left: bytes of the body that may still be kept; negative once it is dropped.
        body: the request's body in pieces, by reference; dropped when it grows beyond a limit.
        sequences: what the engine made of it.
        released: the drain thread stopped waiting for sequences: they report themselves.
        waits_until: monotonic seconds; written by the drain thread.
    """

    scope: Any
    raw_id: bytes
    decide: Callable[[Any], Head]
    started: float
    receive: Receive
    send: Send
    body_left: int
    first_byte: float
    complete: bool
    disconnected: bool
    released: bool
    body: list[bytes] | None
    sequences: "list[Timeline] | None"
    ended = waits_until = 0.0
    status = 0
    answer_headers: Any = ()
    error_type = ""

    # Methods, not closures of the middleware: those are six objects more for the garbage collector. What they call is
    # looked up first, since `self.send(message)` would look for a method, which gives the instance a dictionary: that
    # costs a thousand instructions.

    async def received(self) -> Message:
        """Pass on what comes from the caller."""
        receive = self.receive
        message = await receive()
        if message["type"] == "http.request":
            piece = message.get("body")
            if piece and self.body_left >= 0:
                self.body_left -= len(piece)
                if self.body_left < 0:
                    self.body = None
                elif self.body is None:
                    self.body = [piece]
                else:
                    self.body.append(piece)
        elif message["type"] == "http.disconnect" and not self.complete:
            self.disconnected = True
        return message

    # No coroutine of its own: each event of a stream comes through here.
    def sent(self, message: Message) -> Awaitable[None]:
        """Pass on what goes to the caller; the answer gets our X-Request-Id unless it has one."""
        kind = message["type"]
        if kind == "http.response.body":
            if not self.first_byte and message.get("body"):
                self.first_byte = _now()
            if not message.get("more_body"):
                # Set before it is sent: the server answers the next receive() with a disconnect as soon as it is.
                self.complete = not self.disconnected
        elif kind == "http.response.start":
            self.status = message.get("status", 0)
            self.answer_headers = headers = message.get("headers") or ()
            for name, _ in headers:
                # Of any case, though ASGI wants it lower; content-type has as many letters.
                if len(name) == 12 and name[1] == _DASH and name.lower() == b"x-request-id":
                    break
            else:
                message["headers"] = [*headers, (b"x-request-id", self.raw_id)]
        send = self.send
        return send(message)

    # Made when first asked for: mostly by the drain thread, or by the log line of an access. Should both ask at once,
    # setdefault lets one of them win.

    @property
    def head(self) -> Head:
        """Trace and first sampling decision."""
        made: Head | None = self.__dict__.get("_head")
        return made if made is not None else self.__dict__.setdefault("_head", self.decide(self.scope))

    @property
    def span_id(self) -> int:
        """Our span of this request."""
        made: int | None = self.__dict__.get("_span_id")
        return made if made is not None else self.__dict__.setdefault("_span_id", new_span_id())

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream of server-sent events."""
        kinds = (value for name, value in self.answer_headers if name.lower() == b"content-type")
        return any(value.startswith(b"text/event-stream") for value in kinds)

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


class Unwanted:
    """Stands for a request of which nothing is wanted: not sampled, where only traces are."""

    request_id = session_id = ""
    trace_id = span_id = 0
    sampled = False


UNWANTED: Final = Unwanted()


def is_traced(scope: Any) -> bool:
    """Return whether a request is one for the engine."""
    return scope["path"].startswith(PATHS) or path_of(scope).startswith(PATHS)


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


PREEMPTED: Final = 3  # EngineCoreEventType, the same in all versions


class Times(NamedTuple):
    """What is kept of vLLM's RequestStateStats: arrival in Unix seconds, the rest on the engine's monotonic clock."""

    arrival_time: float
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float
    num_generation_tokens: int
    first_token_latency: float = 0.0  # from arrival to the moment in which the API server had the first token


class Facts(NamedTuple):
    """What is kept of vLLM's request state at the end.

    Attributes:
        response_id: None before vLLM 0.14, then it is the engine's.
        engine_id: vLLM's internal id.
        position: among the siblings of one `n` > 1 request.
        lora: name of the LoRA adapter.
        input_tokens: of the prompt.
        cached_tokens: of those found in a KV cache.
        max_tokens, temperature, top_p, n: as asked for, None when not given.
    """

    response_id: str | None
    engine_id: str
    position: int
    lora: str | None
    input_tokens: int
    cached_tokens: int
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None


class Timeline:
    """What the hooks see of a sequence; vLLM's request state owns it, so it cannot outlive the request unseen.

    It refers to nothing of vLLM's: what is freed late, or only by the cyclic collector, is paid by the event loop.

    Attributes:
        exchange: the HTTP request it belongs to, None without the middleware.
        durations: where only those are known.
        events: lists of engine events as they came.
        engine_index: data-parallel rank, told by the stat logger where there are several.
        facts: what was copied from vLLM's request state at the end, in the order of Facts, which it becomes where it is
            read.
        finish_reason: vLLM's enum or word.
        finished: Unix seconds, 0 while it runs.
        done: nothing more will be written; set last.
        reported: the drain thread has taken it; written there only.
    """

    exchange: Exchange | None = None  # no __init__: calling that costs the event loop as much as all of these
    events: list[Any] | None = None
    engine_index: int | None = None
    _times: tuple[Any, ...] = ()  # becomes Times where it is read: making one costs the event loop more than copying
    durations: Durations | None = None
    facts: tuple[Any, ...] = ()
    finish_reason: Any = None
    error_type = ""
    finished = 0.0
    native: NativeSpan | None = None
    output_text: str | None = None
    session_id: str | None = None
    traceparent: Any = None
    remote_prefill = done = reported = False

    @property
    def stats(self) -> Times | Durations | None:
        """Times and tokens, None without statistics."""
        return Times._make(self._times) if self._times else self.durations

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Be nothing to pickle and deepcopy: vLLM's statistics, which we hang on, go out with an offline answer."""
        return type(None), ()

    @property
    def preemptions(self) -> int:
        """Times that it was preempted so far."""
        return sum(event.type == PREEMPTED for events in self.events or () for event in events)

    def finish(self, state: Any, reason: Any, error_type: str = "") -> None:
        """Copy what is needed of vLLM's request state, so that nothing else of it is kept alive."""
        self.finished = _now()
        # Spelled out, in the order of Facts and Times: the interpreter learns where each attribute lies, which is a
        # quarter of what attrgetter costs.
        try:
            self.facts = (
                state.external_req_id, state.request_id, state.request_index, state.lora_name, state.prompt_len,
                state.num_cached_tokens, state.max_tokens_param, state.temperature, state.top_p, state.n,
            )  # fmt: skip
        except AttributeError:  # vLLM before 0.14 has no external_req_id
            self.facts = tuple(getattr(state, name, None) for name in _FIELDS)
        if state.parent_req is not None:  # vLLM gives each child of a request an `n` of 1
            self.facts = (*self.facts[:-1], getattr(state.parent_req.sampling_params, "n", None))
        stats = state.stats
        if stats is not None:
            self._times = (
                stats.arrival_time, stats.queued_ts, stats.scheduled_ts, stats.first_token_ts, stats.last_token_ts,
                stats.num_generation_tokens, stats.first_token_latency,
            )  # fmt: skip
        self.finish_reason = reason
        if error_type:
            self.error_type = error_type


_FIELDS: Final = (
    "external_req_id", "request_id", "request_index", "lora_name", "prompt_len", "num_cached_tokens",
    "max_tokens_param", "temperature", "top_p", "n",
)  # fmt: skip

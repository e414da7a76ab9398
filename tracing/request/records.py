"""What is known of one finished request: plain values that go from the drain thread to everything that reports them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(*, frozen: bool, slots: bool) -> Any:
        """Make a data class that is frozen for the type checker only: at run time it would double a record's cost."""
        assert frozen
        return dataclass(slots=slots)


Outcome = Literal["ok", "aborted", "disconnected", "client_error", "server_error", "rejected"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("ok", "aborted", "disconnected", "client_error", "server_error", "rejected")

Timing = Literal["events", "durations", "none"]


@record(frozen=True, slots=True)
class SequenceRecord:
    """One sequence in the engine: a request has one, or several with `n` > 1 or several prompts.

    Times are Unix seconds. None means that the sequence did not get there, or that nobody told.

    Attributes:
        response_id: the id in the answer, such as `chatcmpl-abc` (vLLM's external id).
        engine_id: vLLM's internal id.
        index: position among the siblings of one `n` > 1 request.
        model: the served model's name.
        lora: name of the LoRA adapter.
        engine_index: data-parallel rank that ran it, where known.
        arrival: when the API server took the request.
        queued: when the engine core put it into its queue.
        scheduled: when the scheduler first picked it.
        first_token: when the engine produced the first token.
        last_token: when the engine produced the last token seen.
        finished: when the API server finished or aborted it.
        preemptions: (preempted, resumed) each time.
        kv_transfer: (begin, end) of a wait for a remote KV cache, where the engine reports one.
        remote_prefill: the prompt's KV cache was to come from another engine, so queue time includes the transfer.
        timing: `events` exact engine times; `durations` stacked from durations, up to some ms late; `none`.
        remote_clock: engine times were anchored on the last message, because the engine has another host's clock.
        input_tokens: prompt tokens.
        cached_tokens: prompt tokens found in a KV cache.
        output_tokens: tokens generated and received by the API server.
        finish_reason: vLLM's: stop, length, abort, error, repetition; empty when it never finished.
        error_type: class of the error that ended it; empty for none.
        max_tokens, temperature, top_p, n: as asked for, None when not given.
        output_text: what was generated; only with `capture_content`.
    """

    response_id: str
    engine_id: str
    index: int
    model: str
    arrival: float
    finished: float
    lora: str | None = None
    engine_index: int | None = None
    queued: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    preemptions: tuple[tuple[float, float], ...] = ()
    kv_transfer: tuple[float, float] | None = None
    remote_prefill: bool = False
    timing: Timing = "events"
    remote_clock: bool = False
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = ""
    error_type: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    output_text: str | None = None
    native: "NativeSpan | None" = None


@record(frozen=True, slots=True)
class NativeSpan:
    """vLLM's own `llm_request` span, whose children we make (mode `alongside`). Times in nanoseconds."""

    trace_id: int
    span_id: int
    start: int
    end: int
    sampled: bool


@record(frozen=True, slots=True)
class Http:
    """The HTTP side of a request; absent when the middleware is not installed.

    Attributes:
        method, path: of the request; path without the query.
        status: of the answer; 0 when none was begun.
        started, ended: Unix seconds.
        first_byte: when the answer's first body byte left, None when none did.
        disconnected: the client hung up before the answer was complete.
        streamed: the answer came as server-sent events.
        client: the peer's address and port, empty when unknown.
        scheme: http or https.
        server_address, server_port: that the client named in Host, or where we listen.
        user_agent: as sent, cut to 256 characters.
        error_type: class of an exception that left the application, empty for none.
    """

    method: str
    path: str
    status: int
    started: float
    ended: float
    first_byte: float | None = None
    disconnected: bool = False
    streamed: bool = False
    client: str = ""
    scheme: str = "http"
    server_address: str = ""
    server_port: int | None = None
    user_agent: str = ""
    error_type: str = ""


@record(frozen=True, slots=True)
class Trace:
    """Where a request stands in its trace.

    Attributes:
        trace_id: 128 bits.
        span_id: 64 bits: the HTTP root span; without middleware the parent of nothing.
        parent_span_id: the caller's span, 0 for none.
        sampled: spans are kept; final, after the finish-time rule.
        tracestate: as sent by the caller when its trace goes on.
        link: (trace_id, span_id) of the caller when its trace was not continued but linked.
        keep_reason: why it was kept: parent, ratio, errors, aborted, preempted, ttft, e2e; empty when not.
    """

    trace_id: int
    span_id: int
    parent_span_id: int = 0
    sampled: bool = False
    tracestate: str = ""
    link: tuple[int, int] | None = None
    keep_reason: str = ""


@record(frozen=True, slots=True)
class Gpu:
    """A GPU that the engine runs on, as the exporter last saw it. Bytes and watts; None when not told."""

    uuid: str
    model: str
    memory_used: int | None = None
    power: float | None = None


@record(frozen=True, slots=True)
class RequestRecord:
    """One request, finished: its HTTP side, its sequences, its place in a trace.

    Attributes:
        request_id: the caller's or our `X-Request-Id`; without middleware the engine's id.
        session_id: of the caller, empty when none was given.
        model: asked for, where the body told; else the served model's name.
        outcome: one word from OUTCOMES.
        error_type: `error.type` of the whole: an HTTP status such as `404`, `disconnected`, `aborted`, an exception's
            class; empty when all went well.
        started, ended: Unix seconds, the HTTP side's where it is known.
        operation: gen_ai.operation.name: chat, text_completion, embeddings, ...
        stream: the caller asked for a stream; None when not known.
        user: the body's `user`, already hashed; empty when none was given.
        headers: chosen request headers, lower-case name -> hashed value.
        input_messages: prompt or messages as JSON; only with `capture_content`.
        gpus: the engine's GPUs; empty unless gpu_facts are on.
        late: the engine's part of an HTTP request that was reported, and counted, when its answer ended: a background
            job, or an abort that took long.
    """

    request_id: str
    model: str
    outcome: Outcome
    started: float
    ended: float
    trace: Trace
    http: Http | None = None
    sequences: tuple[SequenceRecord, ...] = ()
    session_id: str = ""
    error_type: str = ""
    operation: str = ""
    stream: bool | None = None
    user: str = ""
    headers: Mapping[str, str] | None = None
    input_messages: str | None = None
    gpus: tuple[Gpu, ...] = ()
    late: bool = False

    @property
    def input_tokens(self) -> int:
        """Prompt tokens of all sequences, as the engine counts them (once per sequence)."""
        return sum(sequence.input_tokens for sequence in self.sequences)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens of all sequences that a KV cache held."""
        return sum(sequence.cached_tokens for sequence in self.sequences)

    @property
    def output_tokens(self) -> int:
        """Tokens generated for all sequences."""
        return sum(sequence.output_tokens for sequence in self.sequences)

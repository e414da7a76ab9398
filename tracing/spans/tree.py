"""The spans of one finished request: who is whose child, when, with which attributes; nothing is sent here.

    POST /v1/chat/completions   with the middleware
      llm_request               one per sequence; vLLM's own in mode `alongside`, then it is not made again
        vllm.ingress, vllm.queue, vllm.prefill, vllm.decode   one behind the other, they fill their parent
          vllm.kv_transfer      within the queue; vllm.preempted within prefill or decode
        vllm.egress             mode `alongside` only: last token to the end of vLLM's span, if over 1 ms

Attribute names are OpenTelemetry's (HTTP: stable; GenAI and hardware: in development), vLLM's `gen_ai.latency.*` in
seconds, and ours, which begin with `vllm.`. Token counts of the phases have names of ours, because who adds up
`gen_ai.usage.*` over all spans must find each token once.
"""

import json
import os
import random
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..request.phases import (
    DECODE,
    EGRESS,
    KV_TRANSFER,
    PREEMPTED,
    PREFILL,
    QUEUE,
    Phase,
    end_of,
    phases,
    time_per_output_token,
    time_to_first_token,
)
from ..request.phases import preempted_seconds as seconds_preempted
from ..request.records import Http, RequestRecord, SequenceRecord
from .llm_request import common_attributes

INTERNAL: Final = 1
SERVER: Final = 2
ERROR: Final = 2

# Bits of OTLP's Span.flags: sampled, whether it is known that the parent is remote, and that it is.
_LOCAL: Final = 0x101
_REMOTE: Final = 0x301

LLM_REQUEST: Final = "llm_request"

_EGRESS_NS: Final = 1_000_000  # a shorter rest is noise
_ID_CHARACTERS: Final = 256
_CONTENT_CHARACTERS: Final = 8192
_MOST_SEQUENCES: Final = 128  # with spans: beam search makes a sequence per beam and step
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))

# Routes that a span may be named after without a sequence as proof: anybody can ask for any path.
_ROUTES: Final = frozenset(
    (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/score",
        "/v1/rerank",
        "/v1/models",
        "/v1/realtime",
        "/v2/rerank",
        "/v2/embed",
        "/score",
        "/rerank",
        "/pooling",
        "/classify",
        "/invocations",
        "/inference/v1/generate",
        "/generative_scoring",
    )
)

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
Attribute = tuple[str, Value]

_ids: Final = random.Random()  # noqa: S311 - ids must differ, nobody has to be unable to guess them
os.register_at_fork(after_in_child=_ids.seed)


class SpanEvent(NamedTuple):
    """Something that happened within a span, at Unix nanoseconds."""

    name: str
    time_ns: int
    attributes: Sequence[Attribute] = ()


class Link(NamedTuple):
    """A span elsewhere that this one has to do with."""

    trace_id: int
    span_id: int


class Span(NamedTuple):
    """A finished span; `parent_span_id` 0 for a root, times in Unix nanoseconds, `status` 0 or ERROR."""

    trace_id: int
    span_id: int
    parent_span_id: int
    name: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: Sequence[Attribute]
    status: int = 0
    message: str = ""
    events: Sequence[SpanEvent] = ()
    links: Sequence[Link] = ()
    tracestate: str = ""
    flags: int = _LOCAL


class _Part(NamedTuple):
    name: str
    start_ns: int
    end_ns: int


def spans_of(request: RequestRecord, *, legacy: bool = False) -> list[Span]:
    """Return the spans to export, parents first; none for a request that is not sampled.

    Args:
        request: finished, with its final sampling decision. Sequences with a native span follow that span's decision.
        legacy: add the GenAI names of before 1.37 and vLLM's own beside the current ones.
    """
    trace, http = request.trace, request.http
    spans: list[Span] = []
    if trace.sampled and http is not None:
        spans.append(_http_root(request, http))
    outermost = http is None
    for position, sequence in enumerate(request.sequences[:_MOST_SEQUENCES]):
        native = sequence.native
        if native is not None:
            if native.sampled:
                found = phases(sequence)
                _add_parts(spans, sequence, found, native.trace_id, native.span_id, native.start, native.end, "")
        elif trace.sampled:
            found = phases(sequence)
            own = _llm_request(request, sequence, found, outermost=outermost, legacy=legacy)
            if position == 0 and request.input_messages is not None:
                text = request.input_messages[:_CONTENT_CHARACTERS]
                own = own._replace(attributes=[*own.attributes, ("gen_ai.input.messages", text)])
            outermost = False
            spans.append(own)
            _add_parts(spans, sequence, found, own.trace_id, own.span_id, own.start_ns, own.end_ns, own.tracestate)
    return spans


def span_count(request: RequestRecord) -> int:
    """Return how many spans `spans_of` makes of a request, at a tenth of its cost."""
    sampled = request.trace.sampled
    number = int(sampled and request.http is not None)
    for sequence in request.sequences[:_MOST_SEQUENCES]:
        native = sequence.native
        if not (sampled if native is None else native.sampled):
            continue
        found = phases(sequence)
        if native is None:
            number += 1
            parts = len(found)
        else:
            parts = len(_parts(sequence, found, native.start, native.end))
        number += parts + len(sequence.preemptions) + (parts > 0 and sequence.kv_transfer is not None)
    return number


def _sequence_attributes(
    request: RequestRecord, sequence: SequenceRecord, found: tuple[Phase, ...], *, legacy: bool
) -> list[Attribute]:
    """Return what an `llm_request` of ours says: what vLLM's own says, too, once enriched, and what we alone know."""
    http = request.http
    model = sequence.model[:_ID_CHARACTERS]
    response_id = sequence.response_id[:_ID_CHARACTERS]
    is_one_of_several = len(request.sequences) > 1 or (sequence.n or 1) > 1
    result: list[Attribute] = [
        *common_attributes(
            request_model=request.model[:_ID_CHARACTERS] or model,
            response_model=model,
            response_id=response_id,
            input_tokens=sequence.input_tokens,
            output_tokens=sequence.output_tokens,
            cached_tokens=sequence.cached_tokens,
            preemptions=len(sequence.preemptions),
            finish_reason=sequence.finish_reason,
            session_id=request.session_id and request.session_id[:_ID_CHARACTERS],
            max_tokens=sequence.max_tokens,
            temperature=sequence.temperature,
            top_p=sequence.top_p,
            choices=sequence.n,
            index=sequence.index if is_one_of_several else None,
        ),
        ("gen_ai.request.id", response_id),
        ("gen_ai.latency.e2e", end_of(sequence) - sequence.arrival),
    ]
    add = result.append
    if request.operation:
        add(("gen_ai.operation.name", request.operation))
    stream = request.stream or (http is not None and http.streamed)
    if stream or request.stream is not None:
        add(("gen_ai.request.stream", stream))
    to_first = time_to_first_token(sequence)
    if stream:
        if http is not None and http.first_byte is not None:
            add(("gen_ai.response.time_to_first_chunk", max(0.0, http.first_byte - http.started)))
        elif to_first is not None:
            add(("gen_ai.response.time_to_first_chunk", to_first))
    if to_first is not None:
        add(("gen_ai.latency.time_to_first_token", to_first))
    if found:
        prefill = found[2].seconds
        decode = found[3].seconds if len(found) > 3 else 0.0
        result += (
            ("gen_ai.latency.time_in_queue", found[1].seconds),
            ("gen_ai.latency.time_in_model_prefill", prefill),
            ("gen_ai.latency.time_in_model_decode", decode),
            ("gen_ai.latency.time_in_model_inference", prefill + decode),
        )
    if sequence.preemptions:
        add(("vllm.preempted_seconds", seconds_preempted(sequence)))
    if sequence.engine_index is not None:
        add(("vllm.engine_index", sequence.engine_index))
    if sequence.lora:
        add(("vllm.lora", sequence.lora[:_ID_CHARACTERS]))
    if error_type := _error_type(request, sequence):
        add(("error.type", error_type))
    if sequence.output_text is not None:
        add(("gen_ai.output.messages", _output_messages(sequence)))
    if legacy:
        result += (
            ("gen_ai.system", "vllm"),
            ("gen_ai.usage.prompt_tokens", sequence.input_tokens),
            ("gen_ai.usage.completion_tokens", sequence.output_tokens),
            ("gen_ai.request.n", 1 if sequence.n is None else sequence.n),
        )
    return result + _clock(sequence)


def _http_root(request: RequestRecord, http: Http) -> Span:
    trace = request.trace
    starts, ends = [_ns(http.started)], [_ns(http.ended)]
    for sequence in request.sequences:  # an abort can outlast the answer: the root covers what it caused
        if sequence.native is None:
            start, end = _window(sequence)
        else:
            start, end = sequence.native.start, sequence.native.end
        starts.append(start)
        ends.append(end)
    start = min(starts)
    method = http.method if http.method in _METHODS else "_OTHER"
    attributes: list[Attribute] = [
        ("http.request.method", method),
        ("url.path", http.path[:_ID_CHARACTERS]),
        ("url.scheme", http.scheme),
    ]
    add = attributes.append
    name = "HTTP" if method == "_OTHER" else method
    if request.sequences or http.path in _ROUTES:
        name = f"{name} {http.path[:_ID_CHARACTERS]}"
        add(("http.route", http.path[:_ID_CHARACTERS]))
    if http.status:
        add(("http.response.status_code", http.status))
    if http.server_address:
        add(("server.address", http.server_address[:_ID_CHARACTERS]))
    if http.server_port is not None:
        add(("server.port", http.server_port))
    if http.client:
        address, _, port = http.client.rpartition(":")
        if address and port.isascii() and port.isdigit():
            attributes += (("client.address", address.strip("[]")), ("client.port", int(port)))
        else:
            add(("client.address", http.client[:_ID_CHARACTERS]))
    if http.user_agent:
        add(("user_agent.original", http.user_agent[:_ID_CHARACTERS]))
    error_type = request.error_type or http.error_type
    if error_type:
        add(("error.type", error_type[:_ID_CHARACTERS]))
    if request.session_id:
        add(("gen_ai.conversation.id", request.session_id[:_ID_CHARACTERS]))
    _add_root_facts(attributes, request)
    return Span(
        trace.trace_id,
        trace.span_id,
        trace.parent_span_id,
        name,
        SERVER,
        start,
        max(start, *ends),
        attributes,
        ERROR if error_type else 0,
        "",
        (),
        _links(request),
        trace.tracestate,
        _REMOTE if trace.parent_span_id else _LOCAL,
    )


def _llm_request(
    request: RequestRecord, sequence: SequenceRecord, found: tuple[Phase, ...], *, outermost: bool, legacy: bool
) -> Span:
    """Return one sequence's span; `outermost`: it stands for the request, there being no HTTP root."""
    trace = request.trace
    start, end = _window(sequence)
    attributes = _sequence_attributes(request, sequence, found, legacy=legacy)
    events = []
    if sequence.first_token is not None:
        events.append(SpanEvent("first_token", _within(_ns(sequence.first_token), start, end)))
    for preempted, _ in sequence.preemptions:
        events.append(SpanEvent("preempted", _within(_ns(preempted), start, end)))
    error_type = _error_type(request, sequence)
    if _aborted(request, sequence):
        events.append(SpanEvent("aborted", _within(_ns(sequence.finished), start, end)))
    if outermost:
        _add_root_facts(attributes, request)
    if request.http is not None:
        parent, kind, flags = trace.span_id, INTERNAL, _LOCAL
    elif request.late:
        parent, kind, flags = trace.parent_span_id, INTERNAL, _LOCAL
    else:
        parent, kind, flags = trace.parent_span_id, SERVER, _REMOTE if trace.parent_span_id else _LOCAL
    return Span(
        trace.trace_id,
        trace.span_id if outermost else _new_id(),
        parent,
        LLM_REQUEST,
        kind,
        start,
        end,
        attributes,
        ERROR if error_type else 0,
        "",
        events,
        _links(request) if outermost else (),
        trace.tracestate,
        flags,
    )


def _add_parts(
    spans: list[Span],
    sequence: SequenceRecord,
    found: tuple[Phase, ...],
    trace_id: int,
    parent: int,
    start: int,
    end: int,
    tracestate: str,
) -> None:
    """Add the children of a sequence's span, which lasts from start to end."""
    parts = _parts(sequence, found, start, end)
    clock = _clock(sequence)

    def add(name: str, begin: int, then: int, parent: int, attributes: Sequence[Attribute]) -> int:
        span_id = _new_id()
        spans.append(
            Span(trace_id, span_id, parent, name, INTERNAL, begin, then, attributes, 0, "", (), (), tracestate, _LOCAL)
        )
        return span_id

    running: list[tuple[int, _Part]] = []  # where a preemption can lie
    for part in parts:
        name, begin, then = part
        if name == PREFILL:
            attributes = _prefill_attributes(sequence) + clock
        elif name == DECODE:
            attributes = _decode_attributes(sequence) + clock
        else:
            attributes = clock
        span_id = add(name, begin, then, parent, attributes)
        if name in {PREFILL, DECODE}:
            running.append((span_id, part))
        elif name == QUEUE and sequence.kv_transfer is not None:
            first, last = (_within(_ns(seconds), begin, then) for seconds in sequence.kv_transfer)
            add(KV_TRANSFER, first, max(first, last), span_id, clock)
    for preempted, resumed in sequence.preemptions:
        at = _ns(preempted)
        lies_in, (_, begin, then) = parent, _Part("", start, end)
        for candidate, part in running:
            if lies_in == parent or at >= part.start_ns:
                lies_in, (_, begin, then) = candidate, part
        first = _within(at, begin, then)
        add(PREEMPTED, first, max(first, _within(_ns(resumed), begin, then)), lies_in, clock)


def _parts(sequence: SequenceRecord, found: tuple[Phase, ...], start: int, end: int) -> list[_Part]:
    """Return the phases in nanoseconds, laid into a span: the first begins with it, none leaves it."""
    result = []
    at = start
    for phase in found:
        then = _within(_ns(phase.end), at, end)
        result.append(_Part(phase.name, at, then))
        at = then
    if result and sequence.native is not None and end - at > _EGRESS_NS:
        result.append(_Part(EGRESS, at, end))
    return result


def _window(sequence: SequenceRecord) -> tuple[int, int]:
    """Return when an `llm_request` of ours begins and ends: nothing comes after the API server let go of it."""
    start = _ns(sequence.arrival)
    return start, max(start, _ns(min(end_of(sequence), max(sequence.finished, sequence.arrival))))


def _prefill_attributes(sequence: SequenceRecord) -> list[Attribute]:
    # Wall time: with chunked prefill it includes the steps of others between the chunks.
    return [
        ("vllm.phase.clock", "wall"),
        ("vllm.prompt_tokens", sequence.input_tokens),
        ("vllm.cached_tokens", sequence.cached_tokens),
        ("vllm.computed_tokens", max(0, sequence.input_tokens - sequence.cached_tokens)),
    ]


def _decode_attributes(sequence: SequenceRecord) -> list[Attribute]:
    result: list[Attribute] = [("vllm.output_tokens", sequence.output_tokens)]
    if (seconds := time_per_output_token(sequence)) is not None:
        result.append(("vllm.time_per_output_token", seconds))
    return result


def _clock(sequence: SequenceRecord) -> list[Attribute]:
    if sequence.timing == "durations":
        return [("vllm.clock", "stacked")]
    return [("vllm.clock", "anchored")] if sequence.remote_clock else []


def _aborted(request: RequestRecord, sequence: SequenceRecord) -> bool:
    if sequence.finish_reason:
        return sequence.finish_reason == "abort"
    return request.outcome in {"aborted", "disconnected"} or sequence.error_type in {"aborted", "disconnected"}


def _error_type(request: RequestRecord, sequence: SequenceRecord) -> str:
    if sequence.error_type:
        return sequence.error_type[:_ID_CHARACTERS]
    if sequence.finish_reason in {"stop", "length", "repetition"}:
        return ""  # this one went well, whatever became of its siblings or of the connection
    if request.error_type:
        return request.error_type[:_ID_CHARACTERS]
    return {"abort": "aborted", "error": "error"}.get(sequence.finish_reason, "")


def _add_root_facts(attributes: list[Attribute], request: RequestRecord) -> None:
    """Add what is said once per request, on its outermost span."""
    add = attributes.append
    add(("vllm.request_id", request.request_id[:_ID_CHARACTERS]))
    if len(request.sequences) > _MOST_SEQUENCES:
        add(("vllm.sequences_omitted", len(request.sequences) - _MOST_SEQUENCES))
    if request.trace.keep_reason:
        add(("vllm.sampling.keep_reason", request.trace.keep_reason))
    if request.user:
        add(("user.hash", request.user[:_ID_CHARACTERS]))
    if request.headers:
        attributes += (
            (f"http.request.header.{name}", (value[:_ID_CHARACTERS],)) for name, value in request.headers.items()
        )
    if gpus := request.gpus:
        add(("hw.type", "gpu"))
        _add_column(attributes, "hw.id", [gpu.uuid for gpu in gpus])
        _add_column(attributes, "hw.model", [gpu.model for gpu in gpus])
        _add_column(attributes, "vllm.gpu.memory_used", [gpu.memory_used for gpu in gpus])  # bytes
        _add_column(attributes, "vllm.gpu.power", [gpu.power for gpu in gpus])  # watts


def _add_column(attributes: list[Attribute], key: str, column: Sequence[str | int | float | None]) -> None:
    """Add one value, or an array in the GPUs' order; nothing when one of them is not known."""
    known: Any = [value for value in column if value is not None]
    if len(known) == len(column):
        attributes.append((key, known[0] if len(known) == 1 else known))


def _links(request: RequestRecord) -> tuple[Link, ...]:
    return () if request.trace.link is None else (Link(*request.trace.link),)


def _output_messages(sequence: SequenceRecord) -> str:
    text = (sequence.output_text or "")[:_CONTENT_CHARACTERS]
    message: dict[str, Any] = {"role": "assistant", "parts": [{"type": "text", "content": text}]}
    if sequence.finish_reason:
        message["finish_reason"] = sequence.finish_reason
    return json.dumps([message], ensure_ascii=False)


def _new_id() -> int:
    return _ids.getrandbits(64) or 1


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def _within(value: int, least: int, most: int) -> int:
    return least if value < least else most if value > most else value  # noqa: FURB136 - half the cost of min, max

"""Makes one record of what middleware and hooks saw of a request; runs on the drain thread."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from .body import Body, read_body
from .durations import Durations
from .in_flight import PREEMPTED, Exchange, Facts, Timeline, Times, path_of, session_header
from .records import Gpu, Http, Outcome, RequestRecord, SequenceRecord, Trace
from .sampling import Head, Sampler
from .trace_context import clean_tracestate, new_span_id, parse_traceparent

_ANCHOR_SECONDS: Final = 10.0  # the wall clock is stepped and slewed, the monotonic one is not
_CLOCK_TOLERANCE: Final = 0.05  # an engine time outside its request by more is another host's
_SCHEDULED: Final = 2
_UNAVAILABLE: Final = frozenset({429, 503})  # vLLM's answers to what its queue limits or a sleeping engine refuse

_OPERATIONS: Final[tuple[tuple[str, str], ...]] = (  # path's end -> gen_ai.operation.name
    ("/chat/completions", "chat"),
    ("/messages", "chat"),
    ("/responses", "chat"),
    ("/completions", "text_completion"),
    ("/embeddings", "embeddings"),
    ("/embed", "embeddings"),
    ("/pooling", "embeddings"),
)


class Clock:
    """Turns the engine's monotonic times into Unix seconds: one clock per Linux host, re-anchored every 10 s."""

    def __init__(self) -> None:
        self._anchored_at = -math.inf
        self._offset = 0.0

    def offset(self) -> float:
        """Return what to add to a monotonic time."""
        monotonic = time.monotonic()
        if monotonic - self._anchored_at > _ANCHOR_SECONDS:
            self._anchored_at = monotonic
            self._offset = time.time() - monotonic
        return self._offset


class Assembly:
    """Makes records.

    Args:
        sampler: for the finish-time rule.
        model: the served model's name, empty when not known.
        hash_text: hashes what may identify a person.
        hash_headers: lower-case names of request headers that go hashed into logs.
        capture_content: keep prompts and answers.
        exporting: spans go somewhere; else nothing is sampled, since its trace could not be found.
        gpus: the engine's GPUs by the port it listens on.
        engine_index: of the only engine, None when there are several.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        model: str = "",
        hash_text: Callable[[str], str],
        hash_headers: tuple[str, ...] = (),
        capture_content: bool = False,
        exporting: bool = True,
        gpus: Callable[[int | None], tuple[Gpu, ...]] = lambda _: (),
        engine_index: int | None = None,
    ) -> None:
        self._sampler = sampler
        self._model = model
        self._hash = hash_text
        self._hash_headers = frozenset(name.lower().encode() for name in hash_headers)
        self._capture_content = capture_content
        self._exporting = exporting
        self._gpus = gpus
        self._engine_index = engine_index
        self._clock = Clock()

    def request(self, exchange: Exchange, timelines: list[Timeline]) -> RequestRecord:
        """Return the record of an HTTP request with the sequences that are done."""
        body = read_body(exchange.body, with_content=self._capture_content) if exchange.body else Body()
        sequences = tuple(self._sequence(t, exchange.started) for t in timelines)
        headers = dict(exchange.scope["headers"])
        http = _http(exchange, headers)
        outcome, error_type = _outcome(http, sequences)
        user = self._hash(body.user) if body.user else ""
        named = next((text for t in timelines if (text := _session_text(t.session_id))), "")
        return RequestRecord(
            request_id=exchange.request_id,
            model=body.model or next((s.lora or s.model for s in sequences), self._model),
            outcome=outcome,
            error_type=error_type,
            started=exchange.started,
            ended=max(exchange.ended, exchange.started),
            trace=self._trace(
                exchange.head,
                exchange.span_id,
                _tracestate(exchange.scope["headers"]) if b"tracestate" in headers else b"",
                outcome,
                http.ended - http.started,
                sequences,
            ),
            http=http,
            sequences=sequences,
            session_id=body.session_id
            or named
            or (b"x-session-id" in headers and session_header(exchange.scope))
            or (body.user and self._hash(body.user))
            or "",
            operation=_operation(http.path),
            stream=body.stream if exchange.body else exchange.streamed or None,
            user=user,
            headers=self._hashed(headers),
            input_messages=body.messages,
            gpus=self._gpus(http.server_port),
        )

    def alone(self, timeline: Timeline) -> RequestRecord:
        """Return the record of a sequence without an HTTP request: no middleware, or it ended long before."""
        exchange, stats = timeline.exchange, timeline.stats
        sequence = self._sequence(timeline, stats.arrival_time if stats else timeline.finished)
        outcome: Outcome = _sequence_outcome(sequence)
        e2e = sequence.finished - sequence.arrival
        if exchange is not None:
            head, span_id = exchange.head, exchange.span_id
            trace = self._trace(head._replace(parent_span_id=span_id), new_span_id(), b"", outcome, e2e, (sequence,))
        else:
            carried = timeline.traceparent or {}
            text = carried.get("traceparent", "").encode("latin-1", "replace")
            head = self._sampler.begin(parse_traceparent(text) if text else None)
            state = carried.get("tracestate", "").encode("latin-1", "replace")
            trace = self._trace(head, new_span_id(), state, outcome, e2e, (sequence,))
        return RequestRecord(
            request_id=exchange.request_id if exchange else sequence.response_id,
            model=sequence.lora or sequence.model,
            outcome=outcome,
            error_type=sequence.error_type or ("aborted" if outcome == "aborted" else ""),
            started=sequence.arrival,
            ended=max(sequence.finished, sequence.arrival),
            trace=trace,
            late=exchange is not None,
            sequences=(sequence,),
            session_id=_session_text(timeline.session_id),
        )

    def _trace(
        self,
        head: Head,
        span_id: int,
        tracestate: bytes,
        outcome: Outcome,
        e2e: float,
        sequences: tuple[SequenceRecord, ...],
    ) -> Trace:
        sampled, reason = self._sampler.finish(head, outcome, e2e, sequences) if self._exporting else (False, "")
        for sequence in sequences:
            if sequence.native is not None:  # vLLM's own span is out already: what hangs on it goes the same way
                sampled = sequence.native.sampled
                break
        state = clean_tracestate(tracestate) if head.parent_span_id else ""
        return Trace(head.trace_id, span_id, head.parent_span_id, sampled, state, head.link, reason if sampled else "")

    def _hashed(self, headers: Mapping[bytes, bytes]) -> dict[str, str] | None:
        found = {
            name.decode("latin-1"): self._hash(headers[name].decode("latin-1"))
            for name in self._hash_headers
            if name in headers
        }
        return found or None

    def _sequence(self, timeline: Timeline, begun: float) -> SequenceRecord:
        stats = timeline.stats
        facts = Facts._make(timeline.facts)
        arrival = (stats.arrival_time if stats is not None else 0.0) or begun
        finished = max(timeline.finished, arrival)
        times: dict[str, Any] = {"timing": "none"}
        tokens = 0
        if stats is not None:
            tokens = stats.num_generation_tokens
            if isinstance(stats, Durations):
                times = {
                    "timing": "durations",
                    "queued": stats.queued_ts,
                    "scheduled": stats.scheduled_ts,
                    "first_token": stats.first_token_ts,
                    "last_token": stats.last_token_ts,
                }
            elif stats.first_token_ts:
                times = self._times(stats, timeline, arrival, finished)
        return SequenceRecord(
            response_id=facts.response_id or facts.engine_id,
            engine_id=facts.engine_id,
            index=facts.position,
            model=self._model,
            lora=facts.lora,
            engine_index=self._engine_index if timeline.engine_index is None else timeline.engine_index,
            arrival=arrival,
            finished=finished,
            input_tokens=facts.input_tokens,
            cached_tokens=facts.cached_tokens,
            output_tokens=tokens,
            finish_reason=str(timeline.finish_reason),
            error_type=timeline.error_type,
            max_tokens=facts.max_tokens,
            temperature=facts.temperature,
            top_p=facts.top_p,
            n=facts.n,
            remote_prefill=timeline.remote_prefill,
            output_text=timeline.output_text,
            native=timeline.native,
            **times,
        )

    def _times(self, stats: Times, timeline: Timeline, arrival: float, finished: float) -> dict[str, Any]:
        offset = self._clock.offset()
        last = stats.last_token_ts + offset
        first_seen = stats.queued_ts or stats.scheduled_ts or stats.first_token_ts
        remote = last > finished + _CLOCK_TOLERANCE or first_seen + offset < arrival - _CLOCK_TOLERANCE
        if remote:
            # The first token reached us this long after the request; the last one at the end. Whichever message was
            # faster is nearer to the truth, and nothing happened before the request came.
            came = arrival + stats.first_token_latency - stats.first_token_ts if stats.first_token_latency else math.inf
            offset = max(min(came, finished - stats.last_token_ts), arrival - first_seen)
        intervals: list[tuple[float, float]] = []
        begun: float | None = None
        for event in (event for events in timeline.events or () for event in events):
            if event.type == PREEMPTED:
                begun = event.timestamp + offset
            elif event.type == _SCHEDULED and begun is not None:
                intervals.append((begun, event.timestamp + offset))
                begun = None
        if begun is not None:
            intervals.append((begun, finished))
        return {
            "queued": stats.queued_ts + offset if stats.queued_ts else None,
            "scheduled": stats.scheduled_ts + offset if stats.scheduled_ts else None,
            "first_token": stats.first_token_ts + offset,
            "last_token": stats.last_token_ts + offset,
            "preemptions": tuple(intervals),
            "timing": "events",
            "remote_clock": remote,
        }


def _tracestate(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b",".join(value for name, value in headers if name == b"tracestate")


@lru_cache(maxsize=64)
def _operation(path: str) -> str:
    return next((name for end, name in _OPERATIONS if path.endswith(end)), "")


def _session_text(value: Any) -> str:
    """Return a session id as it may be written: vllm_xargs lets callers choose its type and length."""
    return value[:256] if isinstance(value, str) else ""


def _http(exchange: Exchange, headers: Mapping[bytes, bytes]) -> Http:
    scope = exchange.scope
    client, server = scope.get("client"), scope.get("server")
    host = headers.get(b"host", b"").decode("latin-1")
    return Http(
        method=scope["method"],
        path=path_of(scope)[:1024],
        status=exchange.status,
        started=exchange.started,
        ended=max(exchange.ended, exchange.started),
        first_byte=exchange.first_byte or None,
        disconnected=exchange.disconnected,
        streamed=exchange.streamed,
        client=f"{client[0]}:{client[1]}" if client else "",
        scheme=scope.get("scheme", "http"),
        server_address=host.rpartition(":")[0].strip("[]") or host or (server[0] if server else ""),
        server_port=server[1] if server else None,
        user_agent=headers.get(b"user-agent", b"")[:256].decode("latin-1"),
        error_type=exchange.error_type,
    )


def _outcome(http: Http, sequences: tuple[SequenceRecord, ...]) -> tuple[Outcome, str]:
    """Return the outcome and error.type of a request; the caller's hanging up explains whatever came after."""
    for sequence in sequences:
        if sequence.finish_reason == "error":
            return "server_error", sequence.error_type or "error"
    if http.disconnected:
        return "disconnected", "disconnected"
    if http.status in _UNAVAILABLE and not sequences:
        return "rejected", str(http.status)
    if http.status >= 500 or (http.status == 0 and http.error_type):
        return "server_error", http.error_type or str(http.status)
    if http.status >= 400:
        return "client_error", str(http.status)
    if http.error_type:
        return "server_error", http.error_type
    for sequence in sequences:
        if sequence.finish_reason == "abort":
            return "aborted", "aborted"
    return "ok", ""


def _sequence_outcome(sequence: SequenceRecord) -> Outcome:
    if sequence.finish_reason == "error":
        return "server_error"
    return "aborted" if sequence.finish_reason == "abort" else "ok"

"""Finished requests as the drain thread hands them out."""

from typing import Any

from vllm_vitals.tracing.request.records import Outcome, RequestRecord, SequenceRecord, Trace

T0 = 1_750_000_000.0


def sequence(
    ingress: float = 0.01,
    queue: float = 0.02,
    prefill: float = 0.1,
    decode: float = 0.9,
    *,
    output_tokens: int = 10,
    at: float = T0,
    **others: Any,
) -> SequenceRecord:
    """One sequence that got through all phases, by their lengths in seconds."""
    queued = at + ingress
    scheduled = queued + queue
    first = scheduled + prefill
    values: dict[str, Any] = {
        "model": "tiny",
        "finished": first + decode,
        "queued": queued,
        "scheduled": scheduled,
        "first_token": first,
        "last_token": first + decode,
        "input_tokens": 7,
        "cached_tokens": 4,
        "finish_reason": "stop",
        **others,
    }
    return SequenceRecord("cmpl-1", "1", 0, arrival=at, output_tokens=output_tokens, **values)


def request(
    *sequences: SequenceRecord,
    outcome: Outcome = "ok",
    model: str = "tiny",
    started: float = T0,
    ended: float = T0 + 1.05,
    trace_id: int = 0xABC,
    sampled: bool = False,
) -> RequestRecord:
    """A request of these sequences from `started` to `ended`."""
    return RequestRecord(
        "1", model, outcome, started, ended, Trace(trace_id, 0xDEF, sampled=sampled), sequences=sequences
    )

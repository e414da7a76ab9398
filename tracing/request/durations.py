"""Phases from durations alone, where the hooks do not fit: of vLLM's span, or its statistics of a finished request.

Durations are exact, positions are late by 0.5 to 6 ms, since end-to-end time ends when the API server got the output.
Preemptions, aborts and, from spans, finish reason and cached tokens are not to be seen.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Durations(NamedTuple):
    """Stands in the place of vLLM's RequestStateStats; all times are Unix seconds."""

    arrival_time: float
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float
    num_generation_tokens: int


def from_span(attributes: Mapping[str, Any], start: float) -> Durations | None:
    """Return the times that vLLM's `llm_request` span tells; None when it tells none.

    Args:
        attributes: of the span; latencies in seconds.
        start: of the span, Unix seconds.
    """
    try:
        return _stacked(
            start,
            e2e=attributes["gen_ai.latency.e2e"],
            queue=attributes["gen_ai.latency.time_in_queue"],
            inference=attributes["gen_ai.latency.time_in_model_inference"],
            decode=attributes["gen_ai.latency.time_in_model_decode"],
            tokens=attributes.get("gen_ai.usage.completion_tokens", 0),
        )
    except (KeyError, TypeError):
        return None


def from_finished(stats: Any, iteration_timestamp: float) -> Durations:
    """Return the times that vLLM's FinishedRequestStats tell; `iteration_timestamp` is when it finished."""
    return _stacked(
        iteration_timestamp - stats.e2e_latency,
        e2e=stats.e2e_latency,
        queue=stats.queued_time,
        inference=stats.inference_time,
        decode=stats.decode_time,
        tokens=stats.num_generation_tokens,
    )


def _stacked(start: float, *, e2e: float, queue: float, inference: float, decode: float, tokens: int) -> Durations:
    last = start + e2e
    scheduled = last - inference
    return Durations(start, scheduled - queue, scheduled, last - decode, last, tokens)

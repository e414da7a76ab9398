"""What goes into a span sink in tests, and what it says became of it."""

from dataclasses import replace
from typing import Any, Final

from vllm_vitals.tracing.counters import SPANS_DROPPED, SPANS_EMITTED, SPANS_FAILED
from vllm_vitals.tracing.request.records import RequestRecord, Trace
from vllm_vitals.tracing.spans.export import SpanSink

from .finished_requests import request, sequence

SPANS: Final = 5  # of one request here: llm_request and four phases


def sampled(number: int = 0, **others: Any) -> RequestRecord:
    """Return a request whose spans are kept, with a trace id of its own."""
    return replace(request(sequence()), trace=Trace(0xABC0 + number, 0xDEF, sampled=True), **others)


def counts(sink: SpanSink) -> tuple[int, int, int]:
    """Return how many spans were emitted, failed and dropped so far."""
    sink.idle()  # reads what a child process has told
    total = sink._counters.total
    return total(SPANS_EMITTED), total(SPANS_FAILED), total(SPANS_DROPPED)

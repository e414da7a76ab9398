"""What one traced request costs off the event loop: building, encoding, and every sink of the drain thread.

.venv/vllm/bin/python benchmarks/tracing_spans.py [ROUNDS]     vLLM's environment, which has OpenTelemetry's SDK

The request has an HTTP root, one sequence and its four phases: six spans. The SDK makes the same six spans with
explicit times and encodes them with its own encoder, in the same rounds.
"""

import gzip
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from measured import table
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, set_span_in_context
from support.finished_requests import T0, request, sequence
from support.seen_requests import sampled
from vllm_vitals.settings.tracing import GoodputSettings, RequestLogSettings
from vllm_vitals.tracing.json_logs import VitalsJsonFormatter
from vllm_vitals.tracing.log_context import IdFilter
from vllm_vitals.tracing.logs.request_line import LOGGER, RequestLogSink
from vllm_vitals.tracing.metrics.request_metrics import RequestMetricsSink
from vllm_vitals.tracing.request.exchange_wire import packed
from vllm_vitals.tracing.request.records import Http
from vllm_vitals.tracing.spans.otlp import span_bytes
from vllm_vitals.tracing.spans.tree import spans_of

REPEATS = 300


class Kept(SpanExporter):
    """Keeps what ended."""

    def __init__(self) -> None:
        self.spans: list = []

    def export(self, spans):
        """Keep spans."""
        self.spans += spans
        return SpanExportResult.SUCCESS


def cost(work: Callable[[], object]) -> float:
    """Return CPU microseconds of one call."""
    begin = time.thread_time()
    for _ in range(REPEATS):
        work()
    return (time.thread_time() - begin) / REPEATS * 1e6


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    asked = sequence(max_tokens=256, temperature=0.7, top_p=0.9, n=1, engine_index=0)
    http = Http(
        "POST", "/v1/chat/completions", 200, T0 - 0.001, T0 + 1.05, first_byte=T0 + 0.14, streamed=True,
        client="10.0.0.9:51234", server_address="api.example.org", server_port=8000, user_agent="python-httpx/0.28",
    )  # fmt: skip
    one = replace(request(asked, sampled=True), http=http, operation="chat", stream=True, session_id="session-1")
    assert len(spans_of(one)) == 6, [span.name for span in spans_of(one)]
    kept = Kept()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("benchmark")
    ours = spans_of(one)

    def sdk() -> None:
        kept.spans.clear()
        context = {0: None}
        for span in ours:
            made = tracer.start_span(
                span.name, context.get(span.parent_span_id), SpanKind.INTERNAL, dict(span.attributes),
                start_time=span.start_ns,
            )  # fmt: skip
            context[span.span_id] = set_span_in_context(made)
            made.end(span.end_ns)
        encode_spans(kept.spans).SerializeToString()

    logger = logging.getLogger(LOGGER)
    handler = logging.StreamHandler(Path("/dev/null").open("w"))  # noqa: SIM115  open until the end
    handler.setFormatter(VitalsJsonFormatter())
    handler.addFilter(IdFilter())
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    seen = sampled()
    seen[0].body = [b'{"model": "tiny", "max_tokens": 256, "stream": true, "prompt": "' + b"x" * 2000 + b'"}']
    metrics, lines = RequestMetricsSink(["tiny"], GoodputSettings()), RequestLogSink(RequestLogSettings())
    works: dict[str, Callable[[], object]] = {
        "build": lambda: spans_of(one),
        "encode": lambda: b"".join(map(span_bytes, ours)),
        "build and encode (budget 100)": lambda: b"".join(map(span_bytes, spans_of(one))),
        "the same by OpenTelemetry's SDK": sdk,
        "pack what was seen for the child process": lambda: packed(*seen),
        "request metrics": lambda: metrics.take(one),
        "request line, written to /dev/null": lambda: lines.take(one),
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr)
        for name, work in works.items():
            found[name].append(cost(work))
    print(file=sys.stderr)
    rows = [(name, f"{statistics.median(costs):.0f}", f"{min(costs):.0f}") for name, costs in found.items()]
    table(("work", "CPU us (median)", "CPU us (best round)"), rows)
    body = b"".join(map(span_bytes, ours))
    print(f"\n{len(body)} bytes per trace, {len(gzip.compress(body * 100)) // 100} in a batch of 100 after gzip")


if __name__ == "__main__":
    main()

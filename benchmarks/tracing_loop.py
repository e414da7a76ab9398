"""What the plugin costs vLLM's event loop per request: the real OutputProcessor with and without hooks and middleware.

.venv/vllm/bin/python benchmarks/tracing_loop.py [ROUNDS]     vLLM's environment with the plugin; no engine runs

Each round serves the same requests twice, as they are and with the plugin, and takes the difference in CPU time of the
loop's thread; the drain thread is not started. A request has 8 tokens in 3 steps.
"""

import asyncio
import gc
import statistics
import sys
import time

from measured import table
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import IterationStats
from vllm_vitals.tracing import hooks, runtime
from vllm_vitals.tracing.assembly import Assembly
from vllm_vitals.tracing.counters import Counters
from vllm_vitals.tracing.middleware import Vitals
from vllm_vitals.tracing.runtime import Runtime
from vllm_vitals.tracing.sampling import Sampler
from vllm_vitals.tracing_settings import SamplingSettings

REQUESTS = 400
STEPS = 3
PARAMS = SamplingParams(max_tokens=8, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
HEADERS = [
    (b"host", b"127.0.0.1:8000"), (b"user-agent", b"python-httpx/0.28"), (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"), (b"content-type", b"application/json"), (b"content-length", b"312"),
    (b"authorization", b"Bearer abc"),
]  # fmt: skip
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0%d"


class Sink:
    """Stands for RequestOutputCollector, whose asyncio.Event is not what is measured."""

    def put(self, output) -> None:
        """Take an output."""
        self.output = output


def live() -> Runtime:
    """Return a plugin whose drain thread does not run."""
    sampler = Sampler(SamplingSettings(), {})
    return Runtime(
        assembly=Assembly(sampler, hash_text=str), sampler=sampler, sinks=(), counters=Counters(), queue_size=1 << 20,
        body_bytes=65536, capture_content=False, rewrites_traceparent=False, only_traces=False,
        metrics_page=lambda _: ("", b""), minute_line=lambda: "",
    )  # fmt: skip


def engine_work(processor: OutputProcessor, number: int) -> None:
    """Do what AsyncLLM does of a request on the event loop: add it, take its outputs."""
    request_id = f"cmpl-{number}"
    now = time.monotonic()
    request = EngineCoreRequest(
        request_id=request_id, prompt_token_ids=[1] * 32, mm_features=None, sampling_params=PARAMS,
        pooling_params=None, arrival_time=time.time(), lora_request=None, cache_salt=None, data_parallel_rank=None,
        external_req_id=request_id,
    )  # fmt: skip
    processor.add_request(request, None, None, 0, Sink())
    for step in range(STEPS):
        events = None
        if step == 0:
            kinds = (EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED)
            events = [EngineCoreEvent.new_event(kind, now) for kind in kinds]
        done = FinishReason.LENGTH if step == STEPS - 1 else None
        output = EngineCoreOutput(request_id=request_id, new_token_ids=[5, 6], events=events, finish_reason=done)
        processor.process_outputs([output], now, IterationStats())


def application(processor: OutputProcessor, events: int):
    """Return an ASGI application that answers as vLLM does, plainly or by server-sent events."""
    kind = b"text/event-stream" if events else b"application/json"
    numbers = iter(range(1 << 40))

    async def app(_scope, receive, send) -> None:
        await receive()
        engine_work(processor, next(numbers))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for _ in range(events):
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"{}"})

    return app


async def receive():
    return {"type": "http.request", "body": b"{}"}


async def send(_message) -> None:
    return None


async def serve(app, headers, plugin: Runtime) -> float:
    """Return CPU seconds of this thread per request."""
    begin = time.thread_time()
    for number in range(REQUESTS):
        if number % 16 == 0:
            while plugin._queue:  # as the drain thread does
                for timeline in getattr(plugin._queue.pop(), "sequences", None) or ():
                    timeline.exchange = None
        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions", "scheme": "http", "headers": headers,
            "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        await app(scope, receive, send)
    return (time.thread_time() - begin) / REQUESTS


def round_of(
    headers, events: int, *, with_hooks: bool, with_middleware: bool, only_traces: bool = False
) -> tuple[float, float]:
    """Return seconds per request without and with the plugin's parts."""
    processor = OutputProcessor(None, log_stats=True)
    app = application(processor, events)
    plugin = live()
    plugin.only_traces = only_traces
    without = asyncio.run(serve(app, headers, plugin))
    runtime._current = plugin if with_middleware else None
    if with_hooks:
        assert not any(hooks.install(plugin).values())
    try:
        return without, asyncio.run(serve(Vitals(app) if with_middleware else app, headers, plugin))
    finally:
        hooks.remove()
        runtime._current = None


def main() -> None:
    gc.collect()
    gc.freeze()  # as vLLM's API server does once it is up: else each collection walks all of torch
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    sampled = [*HEADERS, (b"traceparent", TRACEPARENT % 1), (b"x-request-id", b"abcdef0123456789")]
    unsampled = [*HEADERS, (b"traceparent", TRACEPARENT % 0), (b"x-request-id", b"abcdef0123456789")]
    cases = {
        "sampled": (sampled, 0, True, True),
        "unsampled": (unsampled, 0, True, True),
        "unsampled, only_traces": (unsampled, 0, True, True, True),
        "unsampled, no X-Request-Id sent": (HEADERS, 0, True, True),
        "unsampled, stream of 8 events": (unsampled, 8, True, True),
        "middleware alone": (unsampled, 0, False, True),
        "hooks alone": (unsampled, 0, True, False),
    }
    differences: dict[str, list[float]] = {name: [] for name in cases}
    bare: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr)
        for name, (headers, events, with_hooks, with_middleware, *only) in cases.items():
            without, plugged = round_of(
                headers, events, with_hooks=with_hooks, with_middleware=with_middleware, only_traces=bool(only)
            )
            differences[name].append((plugged - without) * 1e6)
            bare[name].append(without * 1e6)
    print(file=sys.stderr)
    rows = [
        (name, *(f"{value:.1f}" for value in (statistics.median(found), sorted(found)[len(found) // 10],
                                              statistics.median(bare[name]))))
        for name, found in differences.items()
    ]  # fmt: skip
    table(("request", "added, us (median)", "added, us (10th percentile)", "vLLM's own part here, us"), rows)


if __name__ == "__main__":
    main()

"""What the plugin costs vLLM's event loop per request: the real OutputProcessor with and without hooks and middleware.

.venv/vllm/bin/python benchmarks/tracing_loop.py [ROUNDS]     vLLM's environment with the plugin; no engine runs

Each variant is a process of its own, forked from one that has imported vLLM and warm before anything is measured. A
round has each variant serve a slice of the same requests, one after the other in another order each time; what counts
is the CPU time of the loop's thread above that of the variant without the plugin in the same round. The drain thread is
not started: what it would take from the queue is taken outside the measured time. A request has 8 tokens in 3 steps.
"""

import asyncio
import gc
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NamedTuple

from measured import estimate, table, undisturbed
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import IterationStats
from vllm_vitals.settings.tracing import SamplingSettings, TracingSettings
from vllm_vitals.tracing.audit.hashing import Hasher
from vllm_vitals.tracing.counters import Counters
from vllm_vitals.tracing.hooks import vllm_methods as hooks
from vllm_vitals.tracing.metrics.self_metrics import SelfMetrics
from vllm_vitals.tracing.metrics.share import MetricsPage
from vllm_vitals.tracing.middleware import Vitals
from vllm_vitals.tracing.report import runtime
from vllm_vitals.tracing.report.reporter import Reporter, Reporting
from vllm_vitals.tracing.report.runtime import Runtime
from vllm_vitals.tracing.request.sampling import Sampler

WARM_UP = 3000
SLICE = 480
WINDOW = 16  # requests between two looks of the drain thread
STEPS = 3
PARAMS = SamplingParams(max_tokens=8, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
HEADERS = [
    (b"host", b"127.0.0.1:8000"), (b"user-agent", b"python-httpx/0.28"), (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"), (b"content-type", b"application/json"), (b"content-length", b"312"),
    (b"authorization", b"Bearer abc"),
]  # fmt: skip
REQUEST_ID = (b"x-request-id", b"abcdef0123456789")
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0%d"
YES = [*HEADERS, (b"traceparent", TRACEPARENT % 1), REQUEST_ID]
NO = [*HEADERS, (b"traceparent", TRACEPARENT % 0), REQUEST_ID]
UNASKED = [*HEADERS, REQUEST_ID]


class Variant(NamedTuple):
    """What is served, and which parts of the plugin look on."""

    headers: list[tuple[bytes, bytes]]
    hooks: bool = True
    middleware: bool = True
    only_traces: bool = False
    sampler: str = "parentbased_always_on"
    events: int = 0  # of a streamed answer


BARE, BARE_STREAM = "without the plugin", "without the plugin, stream of 8 events"
VARIANTS = {
    BARE: Variant(NO, hooks=False, middleware=False),
    BARE_STREAM: Variant(NO, hooks=False, middleware=False, events=8),
    "sampled": Variant(YES),
    "sampled, nobody sent X-Request-Id or traceparent": Variant(HEADERS),
    "sampled, stream of 8 events": Variant(YES, events=8),
    "unsampled: the caller's flag": Variant(NO),
    "unsampled: by ratio": Variant(UNASKED, sampler="parentbased_always_off"),
    "only_traces, sampled": Variant(YES, only_traces=True),
    "only_traces, unsampled: the caller's flag": Variant(NO, only_traces=True),
    "only_traces, unsampled: by ratio": Variant(UNASKED, only_traces=True, sampler="parentbased_always_off"),
    "middleware alone": Variant(YES, hooks=False),
    "hooks alone": Variant(YES, middleware=False),
}


class Sink:
    """Stands for RequestOutputCollector, whose asyncio.Event is not what is measured."""

    def put(self, output) -> None:
        """Take an output."""
        self.output = output


def live(variant: Variant) -> Runtime:
    """Return a plugin whose drain thread does not run."""
    sampler = Sampler(SamplingSettings(forced_per_second=1e9), {"OTEL_TRACES_SAMPLER": variant.sampler})
    counters = Counters()
    reporter = Reporter(Reporting(TracingSettings(), Hasher(b"k" * 32), None, {}, (), None), counters, sampler)
    return Runtime(
        reports=reporter, page=MetricsPage(reporter.values, SelfMetrics(counters, {}), dict), sampler=sampler,
        counters=counters, queue_size=1 << 20, body_bytes=65536, capture_content=False, rewrites_traceparent=False,
        only_traces=variant.only_traces,
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


def drain(plugin: Runtime) -> None:
    """Let go of what is finished, as the drain thread does."""
    queue = plugin.queue
    while queue:
        for timeline in getattr(queue.popleft(), "sequences", None) or ():
            timeline.exchange = None


async def serve(app, headers, plugin: Runtime, requests: int) -> float:
    """Return CPU microseconds of this thread per request."""
    spent = 0
    for _ in range(requests // WINDOW):
        begin = time.thread_time_ns()
        for _ in range(WINDOW):
            scope = {
                "type": "http", "method": "POST", "path": "/v1/completions", "scheme": "http", "headers": headers,
                "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 8000),
            }  # fmt: skip
            await app(scope, receive, send)
        spent += time.thread_time_ns() - begin
        drain(plugin)
    return spent / (requests // WINDOW * WINDOW) / 1000


def child(variant: Variant, pipe: Connection) -> None:
    """Serve a slice whenever asked to."""
    plugin = live(variant)
    app = application(OutputProcessor(None, log_stats=True), variant.events)
    if variant.middleware:
        runtime.running = plugin
        app = Vitals(app)
    if variant.hooks:
        assert not any(hooks.install(plugin).values())
    loop = asyncio.new_event_loop()
    while requests := pipe.recv():
        loop.run_until_complete(serve(app, variant.headers, plugin, WINDOW * 2))  # caches that others have used since
        pipe.send(loop.run_until_complete(serve(app, variant.headers, plugin, requests)))


def started(variant: Variant) -> Callable[[int], float]:
    """Fork a child for a variant; returns a call that has it serve a slice."""
    ours, theirs = Pipe()
    if not os.fork():
        try:
            ours.close()
            child(variant, theirs)
        except EOFError:  # the parent ended
            pass
        finally:
            os._exit(0)
    theirs.close()

    def serve_slice(requests: int) -> float:
        ours.send(requests)
        return ours.recv()

    return serve_slice


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    gc.collect()
    gc.freeze()  # as vLLM's API server does once it is up: else each collection walks all of torch
    calls = {name: started(variant) for name, variant in VARIANTS.items()}
    for call in calls.values():
        call(WARM_UP)
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr)
        for name in random.sample([*calls], len(calls)):
            found[name].append(calls[name](SLICE))
    print(file=sys.stderr)
    rows = []
    for name, variant in VARIANTS.items():
        bare = BARE_STREAM if variant.events else BARE
        if name == bare:
            continue
        pairs = list(zip(found[name], found[bare], strict=True))
        median = estimate(lambda pairs: statistics.median(own - base for own, base in pairs), pairs)
        quick = estimate(lambda pairs: undisturbed(own for own, _ in pairs) - undisturbed(b for _, b in pairs), pairs)
        cells = [f"{value:.1f} ({low:.1f} to {high:.1f})" for value, low, high in (quick, median)]
        own_part = f"{undisturbed(found[bare]):.0f}; {statistics.median(found[bare]):.0f}"
        rows.append((name, *cells, own_part))
    table(
        ("request", "added, us, undisturbed", "added, us, median of all rounds", "vLLM's own part, us, of both"), rows
    )


if __name__ == "__main__":
    main()

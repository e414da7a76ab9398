"""Requests as middleware and hooks see them, finished, before anything is made of them."""

import time
from types import SimpleNamespace
from typing import Any, Final

from vllm_vitals.settings.tracing import SamplingSettings
from vllm_vitals.tracing.request.in_flight import Exchange, Timeline
from vllm_vitals.tracing.request.sampling import Head, Sampler

QUEUED: Final = 1
SCHEDULED: Final = 2
PREEMPTED: Final = 3


def event(kind: int, timestamp: float) -> SimpleNamespace:
    """Return an engine event."""
    return SimpleNamespace(type=kind, timestamp=timestamp)


def state(**others: Any) -> SimpleNamespace:
    """Return what the hooks read of vLLM's request state."""
    fields = {
        "request_id": "cmpl-a-0-1234", "external_req_id": "cmpl-a-0", "request_index": 0, "lora_name": None,
        "prompt_len": 20, "num_cached_tokens": 4, "max_tokens_param": 9, "temperature": 0.0, "top_p": 1.0, "n": 1,
        "parent_req": None, "stats": None,
    }  # fmt: skip
    return SimpleNamespace(**fields | others)


def timeline(
    shift: float = 0.0, *, arrived: float = 2.0, reason: str = "length", exchange: Exchange | None = None, **more: Any
) -> Timeline:
    """Return a sequence that took a second: 0.1 ingress, 0.2 queue, 0.3 prefill, 0.4 decode, finished a little later.

    Args:
        shift: of the engine's monotonic clock against ours.
        arrived: seconds ago.
    """
    monotonic, wall = time.monotonic() - arrived, time.time() - arrived
    times = {
        "arrival_time": wall, "queued_ts": monotonic + shift + 0.1, "scheduled_ts": monotonic + shift + 0.3,
        "first_token_ts": monotonic + shift + 0.6, "last_token_ts": monotonic + shift + 1.0, "num_generation_tokens": 9,
        "first_token_latency": 0.602,
    }  # fmt: skip
    made = Timeline()
    made.exchange = exchange
    made.finish(state(stats=SimpleNamespace(**times), **more), reason)
    made.finished = wall + 1.004
    made.done = True
    return made


def exchange(**headers: str) -> Exchange:
    """Return an HTTP request that was answered."""
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"method": "POST", "path": "/v1/completions", "headers": pairs, "client": None, "server": ("::1", 8000)}
    head = Sampler(SamplingSettings(), {}).begin(None)
    made = Exchange()
    made.scope = scope
    made.raw_id = b"a"
    made.decide = lambda _: head
    made.started, made.ended = time.time() - 2, time.time()
    made.first_byte = 0.0
    made.complete, made.disconnected, made.released = True, False, False
    made.body = made.sequences = None
    made.status = 200
    return made


def sampled(number: int = 0, **headers: str) -> tuple[Exchange, list[Timeline]]:
    """Return an HTTP request with one sequence, whose spans are kept under a trace id of its own."""
    made = exchange(**headers)
    made.__dict__["_head"] = Head(0xABC0 + number, 0, sampled=True, forced=False, link=None)
    made.raw_id = b"r%d" % number
    return made, [timeline(exchange=made)]

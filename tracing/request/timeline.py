"""One sequence while the engine works on it: written by the hooks on the event loop, read on the drain thread."""

from time import time as _now
from typing import Any, Final, NamedTuple

from .durations import Durations
from .exchange import Exchange
from .records import NativeSpan

PREEMPTED: Final = 3  # EngineCoreEventType, the same in all versions


class Times(NamedTuple):
    """What is kept of vLLM's RequestStateStats: arrival in Unix seconds, the rest on the engine's monotonic clock."""

    arrival_time: float
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float
    num_generation_tokens: int
    first_token_latency: float = 0.0  # from arrival to the moment in which the API server had the first token


class Facts(NamedTuple):
    """What is kept of vLLM's request state at the end.

    Attributes:
        response_id: None before vLLM 0.14, then it is the engine's.
        engine_id: vLLM's internal id.
        position: among the siblings of one `n` > 1 request.
        lora: name of the LoRA adapter.
        input_tokens: of the prompt.
        cached_tokens: of those found in a KV cache.
        max_tokens, temperature, top_p, n: as asked for, None when not given.
    """

    response_id: str | None
    engine_id: str
    position: int
    lora: str | None
    input_tokens: int
    cached_tokens: int
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None


class Timeline:
    """What the hooks see of a sequence; vLLM's request state owns it, so it cannot outlive the request unseen.

    It refers to nothing of vLLM's: what is freed late, or only by the cyclic collector, is paid by the event loop.

    Attributes:
        exchange: the HTTP request it belongs to, None without the middleware.
        durations: where only those are known.
        events: lists of engine events as they came.
        engine_index: data-parallel rank, told by the stat logger where there are several.
        facts: what was copied from vLLM's request state at the end, in the order of Facts, which it becomes where it is
            read.
        finish_reason: vLLM's enum or word.
        finished: Unix seconds, 0 while it runs.
        done: nothing more will be written; set last.
        reported: the drain thread has taken it; written there only.
    """

    exchange: Exchange | None = None  # no __init__: calling that costs the event loop as much as all of these
    events: list[Any] | None = None
    engine_index: int | None = None
    _times: tuple[Any, ...] = ()  # becomes Times where it is read: making one costs the event loop more than copying
    durations: Durations | None = None
    facts: tuple[Any, ...] = ()
    finish_reason: Any = None
    error_type = ""
    finished = 0.0
    native: NativeSpan | None = None
    output_text: str | None = None
    session_id: str | None = None
    traceparent: Any = None
    remote_prefill = done = reported = False

    @property
    def stats(self) -> Times | Durations | None:
        """Times and tokens, None without statistics."""
        return Times._make(self._times) if self._times else self.durations

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Be nothing to pickle and deepcopy: vLLM's statistics, which we hang on, go out with an offline answer."""
        return type(None), ()

    @property
    def preemptions(self) -> int:
        """Times that it was preempted so far."""
        return sum(event.type == PREEMPTED for events in self.events or () for event in events)

    def finish(self, state: Any, reason: Any, error_type: str = "") -> None:
        """Copy what is needed of vLLM's request state, so that nothing else of it is kept alive."""
        self.finished = _now()
        # Spelled out, in the order of Facts and Times: the interpreter learns where each attribute lies, which is a
        # quarter of what attrgetter costs.
        try:
            self.facts = (
                state.external_req_id, state.request_id, state.request_index, state.lora_name, state.prompt_len,
                state.num_cached_tokens, state.max_tokens_param, state.temperature, state.top_p, state.n,
            )  # fmt: skip
        except AttributeError:  # vLLM before 0.14 has no external_req_id
            self.facts = tuple(getattr(state, name, None) for name in _FIELDS)
        if state.parent_req is not None:  # vLLM gives each child of a request an `n` of 1
            self.facts = (*self.facts[:-1], getattr(state.parent_req.sampling_params, "n", None))
        stats = state.stats
        if stats is not None:
            self._times = (
                stats.arrival_time, stats.queued_ts, stats.scheduled_ts, stats.first_token_ts, stats.last_token_ts,
                stats.num_generation_tokens, stats.first_token_latency,
            )  # fmt: skip
        self.finish_reason = reason
        if error_type:
            self.error_type = error_type


_FIELDS: Final = (
    "external_req_id", "request_id", "request_index", "lora_name", "prompt_len", "num_cached_tokens",
    "max_tokens_param", "temperature", "top_p", "n",
)  # fmt: skip

"""One sequence while the engine works on it: written by the hooks on the event loop, read on the drain thread."""

import time
from typing import Any

from .exchange import Exchange
from .records import NativeSpan


class Timeline:
    """What the hooks see of a sequence; vLLM's request state owns it, so it cannot outlive the request unseen.

    Attributes:
        exchange: the HTTP request it belongs to, None without the middleware.
        stats: vLLM's RequestStateStats: arrival on the wall clock, engine times on the engine's monotonic clock.
        events: lists of engine events as they came.
        iteration: vLLM's IterationStats of the last step, on which the stat logger notes the engine's index.
        facts: what was copied from vLLM's request state at the end: (response id, engine id, index, LoRA, prompt
            tokens, cached tokens, max_tokens, temperature, top_p, n).
        finish_reason: vLLM's enum or word.
        finished: Unix seconds, 0 while it runs.
        done: nothing more will be written; set last.
        reported: the drain thread has taken it; written there only.
    """

    __slots__ = (
        "done", "error_type", "events", "exchange", "facts", "finish_reason", "finished", "iteration", "native",
        "output_text", "remote_prefill", "reported", "session_id", "stats", "traceparent",
    )  # fmt: skip

    def __init__(self, exchange: Exchange | None, stats: Any) -> None:
        self.exchange = exchange
        self.stats = stats
        self.events: list[Any] = []
        self.iteration: Any = None
        self.facts: tuple[Any, ...] = ()
        self.finish_reason: Any = None
        self.error_type = ""
        self.finished = 0.0
        self.native: NativeSpan | None = None
        self.output_text: str | None = None
        self.session_id: str | None = None
        self.traceparent: Any = None
        self.remote_prefill = False
        self.done = False
        self.reported = False

    def finish(self, state: Any, reason: Any, error_type: str = "") -> None:
        """Copy what is needed of vLLM's request state, so that nothing else of it is kept alive."""
        self.finished = time.time()
        self.facts = (
            getattr(state, "external_req_id", None) or state.request_id,
            state.request_id,
            state.request_index,
            state.lora_name,
            state.prompt_len,
            state.num_cached_tokens,
            state.max_tokens_param,
            getattr(state, "temperature", None),
            getattr(state, "top_p", None),
            _asked_for(state),
        )
        self.finish_reason = reason
        self.error_type = error_type


def _asked_for(state: Any) -> int | None:
    """Return `n` of the request; vLLM gives each of its children an `n` of 1."""
    asked = getattr(state.parent_req, "sampling_params", state)
    return getattr(asked, "n", None)

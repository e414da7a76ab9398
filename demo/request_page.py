"""The page of request metrics that the plugin would serve: simulated requests, counted by the plugin's own code."""

from random import Random
from typing import Final

from ..settings.tracing import GoodputSettings
from ..tracing.metrics.openmetrics import render
from ..tracing.metrics.request_metrics import RequestMetricsSink
from ..tracing.request.records import Outcome, RequestRecord, SequenceRecord, Trace
from . import engine, workload
from .clock import Clock

_OUTCOMES: Final[dict[str, Outcome]] = {"stop": "ok", "length": "ok", "abort": "disconnected"}
_NOT_SAMPLED: Final = Trace(0, 0)


class RequestPage:
    """Counts of one API server process.

    Args:
        model: its name.
        random: draws trace ids.
    """

    def __init__(self, model: str, random: Random) -> None:
        self._model = model
        self._random = random
        self._sink = RequestMetricsSink((model,), GoodputSettings())

    def answered(self, outcome: engine.Outcome, clock: Clock) -> None:
        """Count a request that left the engine.

        Its durations are those of the scene, whatever the speed: they are laid behind the moment of its arrival.
        """
        request = outcome.request
        began = clock.unix(outcome.at) - (outcome.at - request.arrival)

        def at(moment: float) -> float | None:
            return began + moment - request.arrival if moment >= 0 else None

        first, last = at(outcome.first_token_at), at(outcome.last_token_at)
        ended = clock.unix(outcome.at)
        sequence = SequenceRecord(
            "",
            "",
            0,
            self._model,
            began,
            ended,
            queued=at(outcome.queued_at),
            scheduled=at(outcome.scheduled_at),
            first_token=first,
            last_token=last,
            preemptions=tuple((began + a - request.arrival, began + b - request.arrival) for a, b in outcome.preempted),
            input_tokens=request.prompt_tokens,
            cached_tokens=max(outcome.cached_tokens, 0),
            output_tokens=outcome.generated,
            finish_reason=outcome.reason,
        )
        trace = Trace(self._random.getrandbits(128), self._random.getrandbits(64), sampled=True)
        word = _OUTCOMES[outcome.reason]
        self._sink.take(RequestRecord("", self._model, word, began, ended, trace, sequences=(sequence,)))

    def refused(self, request: workload.SimulatedRequest, at: float, clock: Clock) -> None:
        """Count a request that validation refused."""
        ended = clock.unix(at)
        began = ended - (at - request.arrival)
        self._sink.take(RequestRecord("", self._model, "client_error", began, ended, _NOT_SAMPLED))

    def text(self, *, openmetrics: bool) -> bytes:
        """Return the page."""
        return render(self._sink.values(), openmetrics=openmetrics)

"""What is counted of finished requests, on the drain thread: outcomes, phases, tokens, goodput."""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Final

from ...settings.tracing import GoodputSettings
from ..request.phases import (
    DECODE,
    INGRESS,
    PREFILL,
    QUEUE,
    phases,
    preempted_seconds,
    time_per_output_token,
    time_to_first_token,
)
from ..request.records import OUTCOMES, RequestRecord
from .values import Exemplar, Histogram, Series, Values

OTHER: Final = "other"  # model_name of what is not served
_MODELS: Final = 64  # label values of model_name; LoRA adapters come and go by the thousand

# Upper bounds in seconds. Short phases need milliseconds; above two minutes nobody waits.
_LATENCY: Final = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0,
)  # fmt: skip
_PER_TOKEN: Final = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0,
)  # fmt: skip
_TTFT: Final = "time_to_first_token"
_TPOT: Final = "time_per_output_token"
_E2E: Final = "e2e"
_PHASES: Final = {INGRESS: "ingress", QUEUE: "queue", PREFILL: "prefill", DECODE: "decode"}
_HISTOGRAMS: Final = (*_PHASES.values(), _TTFT, _TPOT, _E2E)
_MISSED: Final = ("ttft", "tpot", "both")


class _Observations:
    """One histogram while it grows."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.exemplars: list[tuple[int, int, float, float] | None] = [None] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float, trace: tuple[int, int, float] | None) -> None:
        """Count an observation; `trace` is (trace id, span id, Unix seconds) where the trace is kept."""
        bucket = bisect_left(self.bounds, seconds)
        self.counts[bucket] += 1
        self.sum += seconds
        if trace is not None:
            before = self.exemplars[bucket]
            if before is None or before[3] <= trace[2]:  # Prometheus refuses exemplars that go back in time
                self.exemplars[bucket] = (trace[0], trace[1], seconds, trace[2])

    def frozen(self) -> Histogram:
        """Return a copy."""
        exemplars = tuple(
            None if one is None else Exemplar(f"{one[0]:032x}", f"{one[1]:016x}", one[2], one[3])
            for one in self.exemplars
        )
        return Histogram(self.bounds, tuple(self.counts), self.sum, exemplars)


class _Model:
    """The counts of one model_name."""

    __slots__ = (
        "e2e", "good", "histograms", "phases", "preempted_seconds", "preemptions", "requests", "slow", "tokens",
        "tpot", "ttft",
    )  # fmt: skip

    def __init__(self, bounds: Mapping[str, tuple[float, ...]]) -> None:
        self.requests = dict.fromkeys(OUTCOMES, 0)
        self.tokens = {outcome: [0, 0, 0] for outcome in OUTCOMES}  # input, cached, output
        self.histograms = {name: _Observations(bounds[name]) for name in _HISTOGRAMS}
        self.ttft, self.tpot, self.e2e = (self.histograms[name] for name in (_TTFT, _TPOT, _E2E))
        self.phases = {phase: self.histograms[name] for phase, name in _PHASES.items()}
        self.preemptions = 0
        self.preempted_seconds = 0.0
        self.good = 0
        self.slow = dict.fromkeys(_MISSED, 0)


class RequestMetricsSink:
    """Counts requests.

    Args:
        models: names that are served, LoRA adapters included; others are learnt from what the engine ran. None counts
            no requests.
        goodput: targets of a good request; they are bucket bounds, too.
    """

    name = "metrics"

    def __init__(self, models: Iterable[str] | None, goodput: GoodputSettings) -> None:
        self._ttft = goodput.ttft
        self._tpot = goodput.tpot
        self._bounds: dict[str, tuple[float, ...]] = dict.fromkeys(_HISTOGRAMS, _LATENCY)
        self._bounds[_TTFT] = _with(_LATENCY, goodput.ttft)
        self._bounds[_TPOT] = _with(_PER_TOKEN, goodput.tpot)
        self._lock = threading.Lock()  # between the drain thread and a scrape
        self._counts = models is not None
        self._models = {name: _Model(self._bounds) for name in (OTHER, *(models or ()))}

    def take(self, request: RequestRecord) -> None:
        """Count a request: some microseconds."""
        if not self._counts:
            return
        trace = request.trace
        exemplar = (trace.trace_id, trace.span_id, request.ended) if trace.sampled else None
        with self._lock:
            self._count(self._model(request), request, exemplar)

    def idle(self) -> None:
        """Nothing is held back."""

    def close(self, deadline: float) -> None:
        """Nothing is held back."""

    def values(self) -> Values:
        """Return this process's values."""
        numbers: dict[Series, float] = {}
        histograms: dict[Series, Histogram] = {}
        if not self._counts:
            return Values(numbers, histograms)
        with self._lock:
            for name, model in self._models.items():
                numbers.update(_numbers(name, model, goodput=self._ttft is not None or self._tpot is not None))
                if name == OTHER and not any(any(each.counts) for each in model.histograms.values()):
                    continue  # what is not served is hardly ever run
                for each, observations in model.histograms.items():
                    histograms[f"vllm_vitals_request_{each}_seconds", (name,)] = observations.frozen()
        for objective, target in (("ttft", self._ttft), ("tpot", self._tpot)):
            if target is not None:
                numbers["vllm_vitals_goodput_target_seconds", (objective,)] = target
        return Values(numbers, histograms)

    def _model(self, request: RequestRecord) -> _Model:
        """Return the model that the request counts for; only the engine's word makes a new one, callers' never."""
        if not request.sequences:
            return self._models.get(request.model) or self._models[OTHER]
        first = request.sequences[0]
        name = first.lora or first.model or request.model or OTHER  # an old vLLM does not tell the served name
        model = self._models.get(name)
        if model is None:
            if len(self._models) > _MODELS:
                return self._models[OTHER]
            model = self._models[name] = _Model(self._bounds)
        return model

    def _count(self, model: _Model, request: RequestRecord, exemplar: tuple[int, int, float] | None) -> None:
        outcome = request.outcome
        well = outcome == "ok"
        if not request.late:
            model.requests[outcome] += 1
        if not request.sequences:
            return
        tokens = model.tokens[outcome]
        worst_ttft = worst_tpot = -1.0
        for sequence in request.sequences:
            tokens[2] += sequence.output_tokens
            if sequence.preemptions:
                model.preemptions += len(sequence.preemptions)
                model.preempted_seconds += preempted_seconds(sequence)
            ttft = time_to_first_token(sequence)
            if ttft is None:
                continue
            tokens[0] += sequence.input_tokens
            tokens[1] += sequence.cached_tokens
            worst_ttft = max(worst_ttft, ttft)
            model.ttft.add(ttft, exemplar)
            for phase, begin, end in phases(sequence):
                if well or phase != DECODE:
                    model.phases[phase].add(end - begin, exemplar)
            if well and (tpot := time_per_output_token(sequence)) is not None:
                worst_tpot = max(worst_tpot, tpot)
                model.tpot.add(tpot, exemplar)
        if well:
            model.e2e.add(max(0.0, request.ended - request.started), exemplar)
            if worst_ttft >= 0:
                self._judge(model, worst_ttft, worst_tpot)

    def _judge(self, model: _Model, ttft: float, tpot: float) -> None:
        """Count a request that ended well as good or slow; a time that there is not is negative and misses nothing."""
        late = self._ttft is not None and ttft > self._ttft
        slow = self._tpot is not None and tpot > self._tpot
        if late or slow:
            model.slow["both" if late and slow else "ttft" if late else "tpot"] += 1
        else:
            model.good += 1


def _with(bounds: tuple[float, ...], target: float | None) -> tuple[float, ...]:
    """Return bounds with a target among them, so that its share is exact."""
    return bounds if target is None or target <= 0 else tuple(sorted({*bounds, float(target)}))


def _numbers(name: str, model: _Model, *, goodput: bool) -> dict[Series, float]:
    """Return a model's counters; every child is there from the start, so that increase() sees the first."""
    by_outcome = {
        "vllm_vitals_requests_total": model.requests,
        **{
            f"vllm_vitals_request_{kind}_tokens_total": {outcome: row[n] for outcome, row in model.tokens.items()}
            for n, kind in enumerate(("input", "cached", "output"))
        },
    }
    numbers: dict[Series, float] = {
        (family, (name, outcome)): count for family, counts in by_outcome.items() for outcome, count in counts.items()
    }
    numbers["vllm_vitals_request_preemptions_total", (name,)] = model.preemptions
    numbers["vllm_vitals_request_preempted_seconds_total", (name,)] = model.preempted_seconds
    if goodput:
        numbers["vllm_vitals_requests_good_total", (name,)] = model.good
        for missed, count in model.slow.items():
            numbers["vllm_vitals_requests_slow_total", (name, missed)] = count
    return numbers

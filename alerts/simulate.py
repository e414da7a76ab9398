"""How good an SLA's alerts are for a given traffic: false pages per 30 days, and how fast failures are found.

Arrivals are Poisson around a daily curve, errors binomial. False pages are counted where errors come at half the budget
without a break, so that the promise is kept and every page is one too many. Failures last ten hours and begin at any
time of the day. Needs numpy (extra `simulate`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from ..settings.scalars import ConfigError
from .sla import LATENCIES, Indicator, Objective, Sla, Traffic
from .tiers import Tier, tiers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.float64]
    Truths = NDArray[np.bool_]

Curve = Literal["flat", "diurnal", "office"]
CURVES: Final[dict[Curve, str]] = {
    "flat": "the same all day",
    "diurnal": "a sine over the day, 80% up and down",
    "office": "on weekdays from 8 to 18, a twentieth of that at other times",
}
SIZES: Final = (1.0, 0.3, 0.1, 0.03)  # error ratios of the failures
_STEP: Final = 30  # seconds: as often as the alerts are evaluated
_DAY: Final = 86400
_FAILURE: Final = 10 * 3600
_FAILURES: Final = 3  # of each size and seed
_KEEP: Final = 120


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives: the mean rate in requests per second, and how it moves over the day."""

    rps: float
    curve: Curve = "flat"

    @classmethod
    def read(cls, text: str, place: str = "--traffic") -> "Load":
        """Return the load that a text such as `0.5 rps, diurnal` describes; raises ConfigError."""
        rate, _, curve = (part.strip() for part in text.partition(","))
        if curve not in {"", *CURVES}:
            raise ConfigError(f"{place}: expected one of {', '.join(CURVES)} after the rate, found {curve!r}")
        return cls(Traffic.from_scalar(rate, place).rps, curve or "flat")  # type: ignore[arg-type]

    def __str__(self) -> str:
        rate = f"{self.rps:g} rps" if self.rps >= 0.1 else f"{self.rps * 3600:g}/h"
        return f"{rate}, {self.curve}"


@dataclass(frozen=True, slots=True)
class Policy:
    """A way of alerting: from total and bad counts per step to whether it fires.

    Attributes:
        name: in tables and plots.
        fires: given the counts.
    """

    name: str
    fires: "Callable[[Counts, Counts], Truths]"


@dataclass(frozen=True, slots=True)
class Quality:
    """What came of a policy.

    Attributes:
        policy: its name.
        false_per_month: alerts per 30 days while the promise was kept.
        minutes: error ratio -> median minutes until it fires, None where it missed half of the failures or more.
        missed: error ratio -> share of failures that it never found.
    """

    policy: str
    false_per_month: float
    minutes: dict[float, float | None]
    missed: dict[float, float]


@dataclass(frozen=True, slots=True)
class Case:
    """Promises that alert alike, whatever they promise: same target, guard and severity."""

    names: tuple[str, ...]
    indicator: Indicator
    objective: Objective


def cases(sla: Sla) -> list[Case]:
    """Return an SLA's promises that alert, those that are alike in one case."""
    found: dict[tuple[object, ...], Case] = {}
    for service in sla.services:
        for indicator, objective in service.objectives:
            if objective.severity == "off":
                continue
            timed = indicator in LATENCIES
            key = (objective.promise.target, objective.min_bad_events, objective.severity, timed)
            name = f"{service.name} {indicator}"
            known = found.get(key)
            found[key] = Case((*known.names, name) if known else (name,), indicator, objective)
    return list(found.values())


def policies(sla: Sla, case: Case) -> list[Policy]:
    """Return this SLA's policy and the plain ones that people use today."""
    every, budget = tiers(sla.window), case.objective.promise.budget
    pages = [tier for tier in every if tier.pages]
    guard = case.objective.min_bad_events
    loud = case.objective.severity
    one = every[0]
    result = [
        Policy(f"this SLA, {loud}s" if loud == "page" else "this SLA, fast tiers", _tiered(pages, budget, guard)),
        Policy("this SLA, slow tiers", _tiered([tier for tier in every if not tier.pages], budget, guard)),
        Policy("two windows, no guard", _tiered(pages, budget, 0, hold=False)),
        Policy(f"one window, {one.factor:g}x over {one.long // 60} min", _ratio(one.long, one.threshold(budget), 0)),
        Policy("ratio over 5 min > 5%", _ratio(300, 0.05, 0)),
    ]
    if case.indicator in LATENCIES:
        result.append(Policy("p95 over 5 min above the time, for 5 min", _ratio(300, 0.05, 300)))
    return result


def simulate(
    sla: Sla, case: Case, load: Load, *, seeds: int = 8, progress: Callable[[], None] = lambda: None
) -> Iterator[Quality]:
    """Yield the quality of each policy; a promise's load is the same for all, and so are the random numbers."""
    import numpy as np  # noqa: PLC0415  an extra

    budget = case.objective.promise.budget
    every = policies(sla, case)
    warm = max(tier.long for tier in tiers(sla.window)) // _STEP
    month = 30 * _DAY // _STEP
    false = dict.fromkeys((policy.name for policy in every), 0)
    delays: dict[str, dict[float, list[float]]] = {policy.name: {size: [] for size in SIZES} for policy in every}
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        total = random.poisson(_rates(load, warm + month)).astype(float)
        bad = random.binomial(total.astype(int), budget / 2).astype(float)
        for policy in every:
            false[policy.name] += _episodes(policy.fires(total, bad)[warm:])
        for size in SIZES * _FAILURES:
            begin = warm + int(random.integers(0, _DAY // _STEP))
            end = begin + _FAILURE // _STEP
            failing = bad[:end].copy()
            failing[begin:] = random.binomial(total[begin:end].astype(int), max(size, budget / 2))
            for policy in every:
                fires = policy.fires(total[:end], failing)
                found = np.flatnonzero(fires[begin:])
                already = fires[begin - 1]  # a false alert that stood there found nothing
                delays[policy.name][size].append(
                    float(found[0]) * _STEP / 60 if len(found) and not already else float("inf")
                )
        progress()
    for policy in every:
        yield _quality(policy.name, false[policy.name] / seeds, delays[policy.name])


def _quality(name: str, false: float, delays: dict[float, list[float]]) -> Quality:
    minutes: dict[float, float | None] = {}
    missed = {}
    for size, some in delays.items():
        middle = sorted(some)[len(some) // 2]
        minutes[size] = None if middle == float("inf") else middle
        missed[size] = sum(delay == float("inf") for delay in some) / len(some)
    return Quality(name, false, minutes, missed)


def _rates(load: Load, steps: int) -> "Counts":
    import numpy as np  # noqa: PLC0415

    seconds = np.arange(steps) * _STEP
    hours = seconds % _DAY / 3600
    if load.curve == "diurnal":
        shape = 1 + 0.8 * np.sin((hours - 9) / 24 * 2 * np.pi)
    elif load.curve == "office":
        works = (hours >= 8) & (hours < 18) & (seconds // _DAY % 7 < 5)
        shape = np.where(works, 1.0, 0.05)
        shape = shape / ((50 + 118 * 0.05) / 168)  # the mean over a week is the rate
    else:
        shape = np.ones(steps)
    return shape * load.rps * _STEP


def _over(counts: "Counts", seconds: int) -> "Counts":
    """Return the sum over the window that ends with each step."""
    import numpy as np  # noqa: PLC0415

    steps = max(1, round(seconds / _STEP))
    sums = np.concatenate(([0.0], np.cumsum(counts)))
    begins = np.maximum(np.arange(1, len(sums)) - steps, 0)
    return sums[1:] - sums[begins]


def _held(truths: "Truths", seconds: float) -> "Truths":
    """Return where a condition has held for so long, as `for` has it."""
    steps = round(seconds / _STEP)
    return _over(truths.astype(float), (steps + 1) * _STEP) >= steps + 1 if steps else truths


def _above(total: "Counts", bad: "Counts", seconds: int, threshold: float) -> "Truths":
    return _over(bad, seconds) > threshold * _over(total, seconds)


def _tiered(
    some: Sequence[Tier], budget: float, guard: int, *, hold: bool = True
) -> "Callable[[Counts, Counts], Truths]":
    def fires(total: "Counts", bad: "Counts") -> "Truths":
        import numpy as np  # noqa: PLC0415

        result = np.zeros(len(total), dtype=bool)
        for tier in some:
            threshold = tier.threshold(budget)
            both = _above(total, bad, tier.long, threshold) & _above(total, bad, tier.short, threshold)
            both &= _over(bad, tier.long) >= guard
            result |= _held(both, tier.hold) if hold else both
        return result

    return fires


def _ratio(seconds: int, threshold: float, hold: float) -> "Callable[[Counts, Counts], Truths]":
    return lambda total, bad: _held(_above(total, bad, seconds, threshold), hold)


def _episodes(fires: "Truths") -> int:
    """Return how often it began to fire; gaps that keep_firing_for bridges are none."""
    import numpy as np  # noqa: PLC0415

    at = np.flatnonzero(fires)
    return 0 if not len(at) else 1 + int(np.sum(np.diff(at) * _STEP > _KEEP + _STEP))


def table(case: Case, found: Sequence[Quality]) -> str:
    """Return a table: a row per policy, minutes until half of the failures of a size were found."""
    heads = ["policy", "false / 30 d", *(f"{size:.0%} bad" for size in SIZES)]
    rows = [heads]
    for quality in found:
        cells = []
        for size in SIZES:
            minutes, missed = quality.minutes[size], quality.missed[size]
            text = "-" if minutes is None else _minutes(minutes)
            cells.append(text + (f", {missed:.0%} missed" if missed and minutes is not None else ""))
        rows.append([quality.policy, f"{quality.false_per_month:.1f}", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return f"{', '.join(case.names)}: {case.objective.promise}\n" + "\n".join(f"  {line}" for line in lines)


def _minutes(minutes: float) -> str:
    return "< 1 min" if minutes < 1 else f"{minutes:.0f} min" if minutes >= 10 else f"{minutes:.1f} min"

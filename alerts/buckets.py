"""Where promises lie among vLLM's histogram buckets, and the flag that puts each of them on a bound.

Bounds: vLLM 0.32, vllm/v1/metrics/loggers.py, and its pages. `--custom-histogram-buckets` exists since 0.32; a family
that is given replaces its defaults, so the flag holds defaults and promises.
"""

import json
import shlex
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final, NamedTuple

from .sla import LATENCIES, Indicator, Service

HISTOGRAMS: Final[dict[Indicator, str]] = {
    "ttft": "vllm:time_to_first_token_seconds",
    "tpot": "vllm:request_time_per_output_token_seconds",
    "itl": "vllm:inter_token_latency_seconds",
    "e2e": "vllm:e2e_request_latency_seconds",
    "queue": "vllm:request_queue_time_seconds",
}
# The flag's name of the family that a histogram belongs to.
_FAMILIES: Final[dict[Indicator, str]] = {
    "ttft": "time_to_first_token",
    "tpot": "inter_token_latency",
    "itl": "inter_token_latency",
    "e2e": "request_latency",
    "queue": "request_latency",
}
_DEFAULTS: Final[dict[str, tuple[float, ...]]] = {
    "time_to_first_token": (
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
        160.0, 640.0, 2560.0,
    ),
    "inter_token_latency": (
        0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    ),
    "request_latency": (
        0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
        1920.0, 7680.0,
    ),
}  # fmt: skip


class Position(NamedTuple):
    """Where a time lies: on a bound, or `share` of the way from the bound below to the one above.

    Attributes:
        lower, upper: seconds; equal on a bound.
        share: 0 to 1; 0 on a bound.
    """

    lower: float
    upper: float
    share: float

    @property
    def exact(self) -> bool:
        """Whether good and bad can be told apart by counting."""
        return self.lower == self.upper


def bounds(indicator: Indicator) -> tuple[float, ...]:
    """Return vLLM's default bucket bounds of an indicator's histogram in seconds."""
    return _DEFAULTS[_FAMILIES[indicator]]


def position(indicator: Indicator, seconds: float, *, custom: bool) -> Position:
    """Return where a time lies; `custom`: the engines run with the flag. Raises ValueError outside of the bounds."""
    known = bounds(indicator)
    if custom or seconds in known:
        return Position(seconds, seconds, 0.0)
    above = bisect_left(known, seconds)
    if above in {0, len(known)}:
        raise ValueError(seconds)
    lower, upper = known[above - 1], known[above]
    return Position(lower, upper, (seconds - lower) / (upper - lower))


def read_share(indicator: Indicator, seconds: float) -> float:
    """Return the share of late events that is read for a promise between two buckets when 1/9 really are late.

    Calculated for log-logistic times of shape 3 with their median at half of the promise, where the share above t is
    1 / (1 + (t / median)^3); that is 1/9 at the promise itself.
    """
    where = position(indicator, seconds, custom=False)

    def late(bound: float) -> float:
        return float(1 / (1 + (2 * bound / seconds) ** 3))

    return (1 - where.share) * late(where.lower) + where.share * late(where.upper)


def le(seconds: float) -> str:
    """Return a bound as vLLM's client library writes it: `0.5`, `1.0`, `1e+06`."""
    text = repr(float(seconds))
    whole, dot, _ = text.partition(".")
    if dot and "e" not in text and len(whole.lstrip("-")) > 6:
        digits = text.replace(".", "").lstrip("-").rstrip("0")
        mantissa = f"{digits[0]}.{digits[1:]}".rstrip(".")
        return f"{mantissa}e+{len(whole) - 1:02d}"
    return text


def flag(services: Iterable[Service]) -> str | None:
    """Return the argument of `vllm serve` that makes each promise a bound; None when each is one already."""
    wanted: dict[str, set[float]] = {}
    for service in services:
        for indicator, objective in service.objectives:
            if indicator in LATENCIES and objective.promise.threshold not in bounds(indicator):
                wanted.setdefault(_FAMILIES[indicator], set()).add(float(objective.promise.threshold))
    if not wanted:
        return None
    families = {name: sorted({*_DEFAULTS[name], *times}) for name, times in wanted.items()}
    return f"--custom-histogram-buckets {shlex.quote(json.dumps(families))}"

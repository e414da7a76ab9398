"""The tiers of burn-rate alerts: how fast a budget burns, over which windows, and who hears of it.

Source: Google, The Site Reliability Workbook, chapter 5, table 5-8, with windows that scale with the SLA's. A tier
fires when its share of the budget is spent within its long window; the short one ends the alert soon after the trouble.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from .promises import duration

TierName = Literal["fast", "medium", "slow", "trickle"]
_MONTH: Final = 30 * 86400.0
_RAW: Final = 6 * 3600  # up to here increase() over the pages' own samples is cheap
_MOST_PARTS: Final = 6


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier.

    Attributes:
        name: also the label burn_tier.
        pages: whether it may page at all; the others are tickets.
        budget_share: of the window's budget, spent within the long window at the factor.
        long, short: windows in seconds.
        hold: `for` of the alert in seconds.
        factor: times the rate at which the budget would last exactly the window.
    """

    name: TierName
    pages: bool
    budget_share: float
    long: int
    short: int
    hold: int
    factor: float

    def threshold(self, budget: float) -> float:
        """Return the error ratio above which the tier fires; at 1 or more it never does."""
        return self.factor * budget

    def seconds_to_detect(self, budget: float, error_ratio: float = 1.0) -> float | None:
        """Return how long a constant error ratio takes to fire it from a clean start; None when it never does."""
        threshold = self.threshold(budget)
        return None if error_ratio <= threshold else self.long * threshold / error_ratio + self.hold


_TIERS: Final = (
    ("fast", True, 0.02, 3600, 300, 60),
    ("medium", True, 0.05, 6 * 3600, 1800, 300),
    ("slow", False, 0.10, 86400, 7200, 300),
    ("trickle", False, 0.10, 3 * 86400, 6 * 3600, 300),
)


def tiers(window: float) -> tuple[Tier, ...]:
    """Return the tiers of an SLA's window in seconds; windows scale with it and stay whole minutes."""
    result = []
    for name, pages, share, long, short, hold in _TIERS:
        scaled_long, scaled_short = (_scaled(seconds, window) for seconds in (long, short))
        factor = share * window / scaled_long
        result.append(Tier(name, pages, share, scaled_long, scaled_short, hold, factor))  # type: ignore[arg-type]
    return tuple(result)


def windows(window: float) -> tuple[int, ...]:
    """Return every window that the tiers need in seconds, shortest first."""
    return tuple(sorted({seconds for tier in tiers(window) for seconds in (tier.long, tier.short)}))


def part_of(window: int, recorded: Iterable[int]) -> int | None:
    """Return the recorded window of which whole multiples make a long one; None where increase() has to look at all.

    The longest is taken: each seam between two parts may lose what lies between two scrapes.
    """
    if window <= _RAW:
        return None
    fitting = [part for part in recorded if part < window <= _MOST_PARTS * part and window % part == 0]
    return max(fitting, default=None)


def window_name(seconds: int) -> str:
    """Return a window as PromQL and the recorded names write it: 300 is 5m."""
    return duration(seconds)


def _scaled(seconds: int, window: float) -> int:
    if abs(window - _MONTH) <= 2.1 * 86400:  # 28 to 32 days: the tables' windows, other factors
        return seconds
    return max(120, round(seconds * window / _MONTH / 60) * 60)

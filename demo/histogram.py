"""A cumulative histogram as Prometheus counts it, cheap to observe."""

from bisect import bisect_left
from itertools import accumulate


class Histogram:
    """Counts per bucket and the sum of what was observed.

    Attributes:
        bounds: upper bounds, inclusive, without +Inf.
        counts: observations per bucket, not cumulative; the last one is beyond every bound.
        sum: sum of the observations.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """Return the number of observations."""
        return sum(self.counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Count the same value `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[int]:
        """Return the bucket values of the page; the last one is +Inf and equals the count."""
        return list(accumulate(self.counts))

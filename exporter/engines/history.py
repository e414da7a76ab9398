"""The last minutes of every server and GPU in bounded rings, and the rates and quantiles computed from them."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from .readings import Histogram, Reading

WINDOW_SECONDS: Final = 60.0  # quantiles and rates of the live page
SPAN_SECONDS: Final = 600.0  # sparklines


class ReadingRing:
    """A server's readings of the last minute, and its restarts.

    Args:
        interval: seconds between readings; bounds the ring.
    """

    def __init__(self, interval: float) -> None:
        self._readings: deque[Reading] = deque(maxlen=max(2, math.ceil(WINDOW_SECONDS / interval) + 1))
        self.restarts = 0
        self._before_gap: Reading | None = None
        self._progressed_at: float | None = None

    def lost(self) -> None:
        """Note that a reading failed: rates must not bridge the gap, but a restart is still seen behind it."""
        self._before_gap = self.known
        self._readings.clear()

    def add(self, reading: Reading) -> None:
        """Take the next reading; one that shows a restart empties the ring, since counters began anew."""
        last = self.known
        anew = last is None or restarted(last, reading)
        if anew and last is not None:
            self.restarts += 1
            self._readings.clear()
        unknown = reading.progress is None
        if anew or unknown or not _has_work(reading) or (last is not None and reading.progress != last.progress):
            self._progressed_at = reading.at
        self._readings.append(reading)

    @property
    def known(self) -> Reading | None:
        """The newest reading, also while the server is down: who it is does not change with that."""
        return self.last or self._before_gap

    @property
    def last(self) -> Reading | None:
        """The newest reading."""
        return self._readings[-1] if self._readings else None

    def stalled_seconds(self) -> float:
        """Return for how long there was work but no progress, up to the newest reading; 0 when all is well."""
        if self.last is None or self._progressed_at is None:
            return 0.0
        return self.last.at - self._progressed_at

    def rate(self, value: Callable[[Reading], float | None]) -> float | None:
        """Return the increase per second of a counter over the window, None when it is not known."""
        if len(self._readings) < 2:
            return None
        first, last = self._readings[0], self._readings[-1]
        before, after = value(first), value(last)
        if before is None or after is None or last.at <= first.at:
            return None
        return (after - before) / (last.at - first.at)

    def latest_rate(self, value: Callable[[Reading], float | None]) -> float | None:
        """Return the increase per second between the two newest readings: one point of a sparkline."""
        if len(self._readings) < 2:
            return None
        before, after = value(self._readings[-2]), value(self._readings[-1])
        seconds = self._readings[-1].at - self._readings[-2].at
        if before is None or after is None or seconds <= 0:
            return None
        return (after - before) / seconds

    def increase(self, value: Callable[[Reading], float | None]) -> tuple[float, float] | None:
        """Return (increase, seconds) over the window."""
        rate = self.rate(value)
        if rate is None:
            return None
        seconds = self._readings[-1].at - self._readings[0].at
        return rate * seconds, seconds

    def quantile(self, q: float, value: Callable[[Reading], Histogram | None]) -> float | None:
        """Return the q-quantile of what a histogram saw within the window, None without observations."""
        if len(self._readings) < 2:
            return None
        before, after = value(self._readings[0]), value(self._readings[-1])
        if before is None or after is None or before.bounds != after.bounds:
            return None
        return bucket_quantile(q, after.bounds, [b - a for a, b in zip(before.counts, after.counts, strict=True)])

    @property
    def window(self) -> tuple[float, float] | None:
        """Monotonic times of the oldest and the newest reading."""
        return (self._readings[0].at, self._readings[-1].at) if self._readings else None


class Track:
    """A sparkline: one value per tick, None where there was none."""

    def __init__(self, interval: float) -> None:
        self._points: deque[float | None] = deque(maxlen=max(2, math.ceil(SPAN_SECONDS / interval)))

    def add(self, value: float | None) -> None:
        """Append the tick's value, rounded: a picture needs no more."""
        self._points.append(None if value is None else float(f"{value:.4g}"))

    def points(self) -> list[float | None]:
        """Return the values, oldest first."""
        return list(self._points)


def restarted(before: Reading, after: Reading) -> bool:
    """Tell whether the server began anew: another start time, or a counter that fell."""
    if None not in {before.start_time, after.start_time} and before.start_time != after.start_time:
        return True
    falls = (
        (before.prompt_tokens, after.prompt_tokens),
        (before.generation_tokens, after.generation_tokens),
        (before.progress, after.progress),
    )
    return any(old is not None and new is not None and new < old for old, new in falls)


def bucket_quantile(q: float, bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """Return a quantile by linear interpolation inside its bucket, as PromQL's histogram_quantile does.

    Counts are cumulative; where they fall (rows that were read at different moments) the higher one counts. Above the
    last finite bound that bound is returned. None without observations and without a bucket for all of them.
    """
    if len(bounds) < 2 or bounds[-1] != math.inf:
        return None
    counts = list(itertools.accumulate(counts, max))
    total = counts[-1]
    if total <= 0:
        return None
    rank = q * total
    index = next(i for i, count in enumerate(counts) if count >= rank)
    if index == len(bounds) - 1:
        return bounds[-2]
    if index == 0 and bounds[0] <= 0:
        return bounds[0]
    lower, below = (bounds[index - 1], counts[index - 1]) if index else (0.0, 0.0)
    inside = counts[index] - below
    return lower + (bounds[index] - lower) * ((rank - below) / inside if inside else 1.0)


def _has_work(reading: Reading) -> bool:
    return bool(reading.running) or bool(reading.waiting)

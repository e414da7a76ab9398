"""The fleet's clock and what it is in Unix time: with a speed, the fleet's seconds pass faster than everybody's."""

from typing import NamedTuple


class Clock(NamedTuple):
    """A reading of 0 is `epoch` in Unix time, and `speed` of the fleet's seconds pass in one of everybody's."""

    epoch: float
    speed: float = 1.0

    def unix(self, now: float) -> float:
        """Return the Unix time at which the fleet's clock shows `now`."""
        return self.epoch + now / self.speed

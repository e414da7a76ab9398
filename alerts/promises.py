"""Promises and limits as people write them: `99% under 500ms`, `99.9%`, `at most 85 C for 5m as page`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Final, Literal, Self

from ..settings.scalars import ConfigError, Seconds, read_scalar

Severity = Literal["page", "ticket", "off"]

_PROMISE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%(?:\s+under\s+(\S*[a-z]))?")
_LIMIT: Final = re.compile(
    r"at (most|least) ([0-9]+(?:\.[0-9]+)?)\s*([^\s0-9]\S*)?(?: for (\S*[a-z]))?(?: as (page|ticket))?"
)


@dataclass(frozen=True, slots=True)
class Promise:
    """A share of good events; for latencies good means within a time.

    Attributes:
        target: 0 to 1, both excluded: with 1 there would be no error budget.
        threshold: seconds; None where good is not a matter of time.
    """

    target: float
    threshold: Seconds | None = None

    @classmethod
    def from_scalar(cls, text: str, place: str) -> Self:
        """Return the promise that a text makes; raises ConfigError."""
        match = _PROMISE.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"{place}: expected a promise such as '99% under 500ms' or '99.9%', found {text!r}")
        target = float(Decimal(match[1]) / 100)
        if not 0 < target < 1:
            raise ConfigError(f"{place}: expected a share between 0% and 100%, which leaves a budget, found {text!r}")
        threshold = read_scalar(Seconds, match[2], place) if match[2] else None
        if threshold is not None and threshold <= 0:
            raise ConfigError(f"{place}: expected a time above 0, found {match[2]!r}")
        return cls(target, threshold)

    def __str__(self) -> str:
        text = f"{percent(self.target)}%"
        return text if self.threshold is None else f"{text} under {duration(self.threshold)}"

    @property
    def budget(self) -> float:
        """Share of events that may be bad."""
        return float(1 - Decimal(repr(self.target)))


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound that a value must keep; subclasses say in which units.

    Attributes:
        bound: `most` or `least`.
        value: in base units.
        unit: as written.
        hold: how long it must be broken before anybody is told.
        severity: of the alert.
    """

    UNITS: ClassVar[Mapping[str, float]] = {}  # unit -> factor to the base unit
    EXAMPLE: ClassVar[str] = ""

    bound: Literal["most", "least"]
    value: float
    unit: str
    hold: Seconds
    severity: Severity = "ticket"

    @classmethod
    def from_scalar(cls, text: str, place: str) -> Self:
        """Return the limit that a text sets; raises ConfigError."""
        match = _LIMIT.fullmatch(text.strip())
        unit = (match[3] or "") if match else ""
        if match is None or unit not in cls.UNITS:
            raise ConfigError(f"{place}: expected a limit such as '{cls.EXAMPLE}', found {text!r}")
        hold = read_scalar(Seconds, match[4], place) if match[4] else Seconds(0)
        value = float(Decimal(match[2]) * Decimal(repr(cls.UNITS[unit])))
        return cls(match[1], value, unit, hold, match[5] or "ticket")  # type: ignore[arg-type]

    def __str__(self) -> str:
        number = Decimal(repr(self.value)) / Decimal(repr(self.UNITS[self.unit]))
        space = "" if self.unit in {"", "%", "/s", "/min", "/h"} else " "
        hold = f" for {duration(self.hold)}" if self.hold else ""
        return f"at {self.bound} {_plain(number)}{space}{self.unit}{hold} as {self.severity}"


class Count(Limit):
    """A number of things."""

    __slots__ = ()
    UNITS: ClassVar = {"": 1.0}
    EXAMPLE = "at most 100 for 5m"


class Share(Limit):
    """A share of a whole."""

    __slots__ = ()
    UNITS: ClassVar = {"%": 0.01}
    EXAMPLE = "at most 95% for 10m"


class PerSecond(Limit):
    """Events per time."""

    __slots__ = ()
    UNITS: ClassVar = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
    EXAMPLE = "at most 1/s for 10m"


class Throughput(Limit):
    """Tokens per second."""

    __slots__ = ()
    UNITS: ClassVar = {"tok/s": 1.0}
    EXAMPLE = "at least 50 tok/s for 10m"


class Temperature(Limit):
    """Degrees Celsius."""

    __slots__ = ()
    UNITS: ClassVar = {"C": 1.0}
    EXAMPLE = "at most 85 C for 5m"


class Memory(Limit):
    """Device memory: a share of it, or bytes."""

    __slots__ = ()
    UNITS: ClassVar = {"%": 0.01, "GiB": 2.0**30, "MiB": 2.0**20}
    EXAMPLE = "at most 98% for 15m' or 'at most 76 GiB"


class Power(Limit):
    """Board power: a share of its enforced limit, or watts."""

    __slots__ = ()
    UNITS: ClassVar = {"%": 0.01, "W": 1.0}
    EXAMPLE = "at most 99% for 30m' or 'at most 650 W"


def percent(share: float) -> str:
    """Return a share in percent without trailing zeros: 0.999 is 99.9."""
    return _plain(Decimal(repr(share)) * 100)


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that is exact: 0.5 is 500ms, 300 is 5m."""
    for factor, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds / factor:.0f}{unit}"
    if seconds < 1:
        return f"{_plain(Decimal(repr(float(seconds))) * 1000)}ms"
    return f"{_plain(Decimal(repr(float(seconds))))}s"


def _plain(number: Decimal) -> str:
    text = f"{round(number, 9):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text

"""Whether promises are kept: counts of windows in, a state with its figure and words out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from .promised import Promised, Severity, Tier
from .record import Count

State = Literal["kept", "burning", "broken", "unknown"]
FIGURE_SECONDS: Final = 300.0  # the page's figure is about so long
# note: worth a word, no alarm; wait: not known yet.
Level = Literal["note", "ok", "wait", "warning", "critical"]
_LEVELS: Final[Mapping[Severity, Level]] = {"page": "critical", "ticket": "warning", "off": "note"}


@dataclass(frozen=True, slots=True)
class Standing:
    """How a promise stands.

    Attributes:
        state: `burning`: its budget is spent so fast that an alert is due. `broken`: it is not, but less than promised
            was good in the last minutes. `unknown`: too little was seen to say anything.
        tier: the fastest one that burns, None otherwise.
        recent: events of the last minutes.
        words: why it is not known, or what is wrong.
    """

    state: State
    tier: Tier | None
    recent: Count
    words: str

    @property
    def level(self) -> Level:
        """How loud it is on the page."""
        if self.tier is not None:
            return _LEVELS[self.tier.severity]
        return "ok" if self.state == "kept" else "note" if self.state == "broken" else "wait"


def stands(promised: Promised, within: Callable[[float], Count], seconds: float) -> Standing:
    """Return how a promise stands.

    Args:
        promised: the promise.
        within: seconds -> events of that window, up to now.
        seconds: how far back counts reach.
    """
    recent = within(FIGURE_SECONDS)
    for tier in promised.tiers:
        long, short = within(tier.long), within(tier.short)
        if (
            (long.ratio or 0.0) > tier.limit
            and (short.ratio or 0.0) > tier.limit
            and long.bad >= promised.min_bad_events
        ):
            span = _time(min(tier.long, seconds))
            return Standing("burning", tier, recent, f"{percent(long.ratio or 0.0)} of the last {span} missed it")
    minutes = _time(min(FIGURE_SECONDS, seconds))
    if not seconds:
        return Standing("unknown", None, recent, "needs a second reading")
    if recent.total <= 0:
        return Standing("unknown", None, recent, f"nothing to count in the last {minutes}")
    few = promised.min_bad_events
    missed = (recent.ratio or 0.0) > promised.budget
    if recent.total < few or (missed and recent.bad < few):
        return Standing(
            "unknown",
            None,
            recent,
            f"{recent.bad:.3g} of {recent.total:.3g} missed it in the last {minutes}: too few to judge",
        )
    if missed:
        return Standing("broken", None, recent, f"less than promised in the last {minutes}")
    return Standing("kept", None, recent, "")


def hurts(promised: Promised, servers: Mapping[str, Count]) -> list[str]:
    """Return the servers whose share of bad events is above the budget, the one with most of them first."""
    over = [server for server, one in servers.items() if (one.ratio or 0.0) > promised.budget]
    return sorted(over, key=lambda server: -servers[server].bad)


def percent(share: float) -> str:
    """Return a share with as many digits as tell 99.95% from 100%."""
    text = f"{100 * share:.2f}".rstrip("0").rstrip(".")
    if text == "100" and share < 1:
        return ">99.99%"
    return "<0.01%" if text == "0" and share > 0 else f"{text}%"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or seconds == size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

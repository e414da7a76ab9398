"""What is promised, as the live page judges it: plain data, made from an SLA by whoever starts the exporter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["page", "ticket", "off"]


class Tier(NamedTuple):
    """One tier of burn-rate alerts.

    Attributes:
        name: of the tier.
        severity: who hears of it.
        long, short: windows in seconds.
        limit: share of bad events above which both windows burn.
    """

    name: str
    severity: Severity
    long: float
    short: float
    limit: float


class Late(NamedTuple):
    """Events are a histogram's observations, bad ones those above a time.

    Attributes:
        family: of the histogram.
        lower, upper: the bounds around the promised time, in seconds; equal where it is a bound itself.
        share: how far the promised time lies from the lower to the upper one.
    """

    family: str
    lower: float
    upper: float
    share: float


class Answered(NamedTuple):
    """Events are POST requests, bad ones those answered with 5xx.

    Attributes:
        by_model: whether they are told apart by model, which the page does not say: the server's only model counts.
    """

    by_model: bool


class Ended(NamedTuple):
    """Events are sequences that were not aborted, bad ones those that the engine ended with an error."""


class Good(NamedTuple):
    """Events are the plugin's requests, bad ones those that it does not count as good."""


class AtBest(NamedTuple):
    """Goodput without the plugin: the worse of two other promises, of which nobody knows how far they overlap.

    Attributes:
        first, second: their places in Promises.rows.
    """

    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Promised:
    """One promise of one service.

    Attributes:
        service: who promises.
        indicator: ttft, tpot, ...
        title: the indicator for people.
        text: such as `99% under 500ms`.
        target: share of good events that is promised.
        budget: share that may be bad.
        by: labels that keep a budget of their own.
        selector: label -> value of the series that count; `~` begins a regular expression.
        min_bad_events: so many bad events make trouble, fewer are chance.
        tiers: fastest first; none where nobody hears of it.
        events: what is counted.
    """

    service: str
    indicator: str
    title: str
    text: str
    target: float
    budget: float
    by: tuple[str, ...]
    selector: Mapping[str, str]
    min_bad_events: int
    tiers: tuple[Tier, ...]
    events: Late | Answered | Ended | Good | AtBest


@dataclass(frozen=True, slots=True)
class Promises:
    """All promises in force.

    Attributes:
        origin: where they come from, for people.
        rows: in the order of the file.
        target_labels: labels that Prometheus gives our series, as far as they are known here: job, instance. A label
            of a selector that is neither here nor on a page cannot be checked and is taken to match.
    """

    origin: str
    rows: tuple[Promised, ...]
    target_labels: Mapping[str, str]

"""Promises that no rule could watch are refused, each with the value that would work."""

from collections.abc import Callable, Iterator

from ..settings.scalars import ConfigError
from .buckets import bounds, flag, position, read_share
from .promises import duration, percent
from .sla import LATENCIES, Indicator, Objective, Service, Sla
from .tiers import tiers, windows

_DAY = 86400.0


def refuse(sla: Sla, place: Callable[[str], str]) -> None:
    """Raise ConfigError for what cannot be watched; `place` turns a key into the text that opens the error."""
    if not 7 * _DAY <= sla.window <= 90 * _DAY:
        raise ConfigError(f"{place('window')}: expected 7d to 90d, found {duration(sla.window)}")
    if sla.retention < sla.window:
        raise ConfigError(
            f"{place('retention')}: expected at least the window of {duration(sla.window)}, found "
            f"{duration(sla.retention)}: the budget would forget (prometheus --storage.tsdb.retention.time)"
        )
    shortest = windows(sla.window)[0]
    if shortest < 4 * sla.scrape_interval:
        raise ConfigError(
            f"{place('scrape_interval')}: expected at most {duration(shortest / 4)}, a quarter of the shortest window "
            f"{duration(shortest)}, found {duration(sla.scrape_interval)}"
        )
    for number, service in enumerate(sla.services):
        for indicator, objective in service.objectives:
            key = f"services[{number}].objectives.{indicator}"
            _refuse_dead_tier(sla, objective, place(key))
            _refuse_bound(service, indicator, objective, place(key))
            _refuse_blind(sla, service, objective, place(key))


def notes(sla: Sla) -> Iterator[str]:
    """Yield what works, but not as well as it could."""
    for service in sla.services:
        for indicator, objective in service.objectives:
            if indicator not in LATENCIES or service.custom_buckets:
                continue
            where = position(indicator, objective.promise.threshold, custom=False)
            if not where.exact:
                read = percent(round(read_share(indicator, objective.promise.threshold), 3))
                yield (
                    f"{service.name}: {indicator} {objective.promise} lies between the buckets {where.lower:g} s and "
                    f"{where.upper:g} s and is interpolated: where 11.1% are late (log-logistic times, median half "
                    f"of the promise) it reads {read}%; exact with {flag([service])} on the engines and "
                    "custom_buckets: on in the SLA"
                )


def _refuse_dead_tier(sla: Sla, objective: Objective, place: str) -> None:
    budget = objective.promise.budget
    for tier in tiers(sla.window):
        if tier.threshold(budget) >= 1:
            least = 1 - 1 / tier.factor
            raise ConfigError(
                f"{place}: expected more than {percent(round(least, 4))}%, found {percent(objective.promise.target)}%: "
                f"the {tier.name} tier fires above {tier.factor:g} times the budget of {percent(round(budget, 6))}%, "
                "and there is no error ratio above 100%"
            )


def _refuse_bound(service: Service, indicator: Indicator, objective: Objective, place: str) -> None:
    threshold = objective.promise.threshold
    if indicator not in LATENCIES or service.custom_buckets or threshold is None:
        return
    known = bounds(indicator)
    if not known[0] <= threshold <= known[-1]:
        raise ConfigError(
            f"{place}: expected a time from {duration(known[0])} to {duration(known[-1])}, the outer buckets of vLLM's "
            f"histogram, found {duration(threshold)}; or start the engines with {flag([service])} and set "
            "custom_buckets: on"
        )


def _refuse_blind(sla: Sla, service: Service, objective: Objective, place: str) -> None:
    if service.traffic is None:
        return
    fast = tiers(sla.window)[0]
    expected = service.traffic.rps * fast.long
    if expected < objective.min_bad_events:
        raise ConfigError(
            f"{place}: expected min_bad_events of at most {int(expected)}, the requests of {duration(fast.long)} at "
            f"{service.traffic.rps:g} rps, found {objective.min_bad_events}: a total outage would page nobody"
        )

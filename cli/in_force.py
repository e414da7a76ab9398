"""Turns an SLA into what the live page judges by: same histograms, bounds and tiers as the generated rules have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..alerts.buckets import HISTOGRAMS, position
from ..alerts.indicators import labels_of
from ..alerts.objective_rules import slo_name
from ..alerts.selectors import ENGINE_LABELS
from ..alerts.sla import LATENCIES, Indicator, Objective, Service, Sla
from ..alerts.tiers import tiers
from ..exporter.promises.promised import Answered, AtBest, Ended, Good, Late, Promised, Promises, Tier

TITLES: Final[Mapping[Indicator, str]] = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
    "queue": "queue",
    "availability": "availability",
    "engine_errors": "engine errors",
    "goodput": "goodput",
}


def in_force(sla: Sla, path: Path | None, target_labels: Mapping[str, str]) -> Promises:
    """Return what an SLA promises.

    Args:
        sla: the promises.
        path: its file, None for the default ones.
        target_labels: labels that Prometheus gives our series, as far as they are known.
    """
    rows: list[Promised] = []
    for service in sla.services:
        first = len(rows)
        named = [name for name, _ in service.objectives]
        rows += [
            _promised(sla, service, indicator, objective, {name: first + n for n, name in enumerate(named)})
            for indicator, objective in service.objectives
        ]
    return Promises(str(path) if path else "default", tuple(rows), dict(target_labels))


def _promised(
    sla: Sla, service: Service, indicator: Indicator, objective: Objective, places: Mapping[Indicator, int]
) -> Promised:
    budget = objective.promise.budget
    burning = tuple(
        Tier(
            tier.name,
            objective.severity if tier.pages else "ticket",
            float(tier.long),
            float(tier.short),
            tier.threshold(budget),
        )
        for tier in tiers(sla.window)
    )
    return Promised(
        service=service.name,
        indicator=slo_name(service, indicator),
        title=TITLES[indicator],
        text=str(objective.promise),
        target=objective.promise.target,
        budget=budget,
        by=labels_of(service, objective),
        selector=dict(service.selector),
        min_bad_events=objective.min_bad_events,
        tiers=() if objective.severity == "off" else burning,
        events=_events(service, indicator, objective, places),
    )


def _events(
    service: Service, indicator: Indicator, objective: Objective, places: Mapping[Indicator, int]
) -> Late | Answered | Ended | Good | AtBest:
    if indicator in LATENCIES:
        assert objective.promise.threshold is not None
        where = position(indicator, objective.promise.threshold, custom=service.custom_buckets)
        return Late(HISTOGRAMS[indicator], where.lower, where.upper, where.share)
    if indicator == "availability":
        return Answered(bool(ENGINE_LABELS & {*labels_of(service, objective), *service.selector}))
    if indicator == "engine_errors":
        return Ended()
    return Good() if service.requests_page else AtBest(places["ttft"], places["tpot"])

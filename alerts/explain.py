"""An alert in words, with the numbers of one SLA: what `rules explain` prints and a runbook begins with."""

from collections.abc import Iterator

from .alert_names import BY_NAME, AlertName
from .buckets import position
from .build import rule_groups
from .promises import duration, percent
from .rules import Alert
from .sla import LATENCIES, Indicator, Objective, Service, Sla
from .tiers import Tier, tiers, window_name


def alerts_named(name: str, sla: Sla) -> list[Alert]:
    """Return the alerts of an SLA with this name: none where nothing promised or limited makes one."""
    return [
        rule
        for groups in rule_groups(sla).values()
        for group in groups
        for rule in group.rules
        if isinstance(rule, Alert) and rule.alert == name
    ]


def explain(name: str, sla: Sla) -> Iterator[str]:
    """Yield paragraphs about an alert of BY_NAME."""
    known = BY_NAME[name]
    yield known.meaning
    if known.kind == "burn":
        yield from _burn(known, sla)
    else:
        yield from _threshold(name, sla)


def _burn(known: AlertName, sla: Sla) -> Iterator[str]:
    found = [
        (service, indicator, objective)
        for service in sla.services
        for indicator, objective in service.objectives
        if indicator == known.key
    ]
    if not found:
        yield f"Nothing is promised: no service of this SLA has the objective {known.key}."
    for service, indicator, objective in found:
        yield _promise(sla, service, indicator, objective)
        if objective.severity == "off":
            yield "It is recorded and shown, and alerts nobody (severity: off)."
            continue
        yield "\n".join(_tier(objective, tier) for tier in tiers(sla.window))
        yield _quiet(objective)


def _promise(sla: Sla, service: Service, indicator: Indicator, objective: Objective) -> str:
    budget = objective.promise.budget
    text = (
        f"{service.name} promises {indicator} {objective.promise} over {window_name(int(sla.window))}: of 10,000 "
        f"events {round(budget * 10_000):,} may be bad, {_kept(service, objective)}."
    )
    if indicator in LATENCIES and objective.promise.threshold is not None:
        where = position(indicator, objective.promise.threshold, custom=service.custom_buckets)
        if not where.exact:
            text += (
                f" {duration(objective.promise.threshold)} lies between two of vLLM's buckets, {where.lower:g} s and "
                f"{where.upper:g} s, so the count of bad ones is an estimate."
            )
    if indicator == "goodput" and not service.requests_page:
        text += (
            " Without the plugin's /metrics/requests it is known only within bounds; the alert reads the kinder one."
        )
    return text


def _kept(service: Service, objective: Objective) -> str:
    by = service.by if objective.by is None else objective.by
    return f"counted for each {' and '.join(by)} by itself" if by else "counted over all together"


def _tier(objective: Objective, tier: Tier) -> str:
    budget = objective.promise.budget
    outage = tier.seconds_to_detect(budget)
    severity = objective.severity if tier.pages else "ticket"
    found = f"a total outage is found after {outage / 60:.1f} min" if outage is not None else "no outage is found"
    return (
        f"  {tier.name:<8}{severity:<7} more than {percent(round(tier.threshold(budget), 6))}% bad over "
        f"{window_name(tier.long)} and over {window_name(tier.short)} ({tier.factor:g} times the budget's rate; at it "
        f"the budget lasts {_days(tier)}); {found}"
    )


def _days(tier: Tier) -> str:
    hours = tier.long / tier.budget_share / 3600
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} days"


def _quiet(objective: Objective) -> str:
    text = (
        f"Silent below {objective.min_bad_events} bad events in the long window, so that a single one at night wakes "
        "nobody."
    )
    if objective.hours == "business":
        text += " Pages only within business_hours."
    return text


def _threshold(name: str, sla: Sla) -> Iterator[str]:
    found = alerts_named(name, sla)
    if not found:
        yield f"This SLA does not have it: {BY_NAME[name].key} is off, or needs another setting."
    for alert in found:
        labels = alert.labels
        hold = f", for {duration(alert.hold)} without a break" if alert.hold else ", at once"
        ends = f" It ends {duration(alert.keep_firing_for)} after the condition does." if alert.keep_firing_for else ""
        which = f" ({labels['slo']})" if "slo" in labels else ""
        yield f"{labels['service']}{which}: {labels['severity']}{hold}.{ends}\n" + "\n".join(
            f"  {line}" for line in alert.expr.splitlines()
        )

"""One objective becomes counts over each window, the budget, and four tiers of burn-rate alerts.

Counts are recorded, not ratios: `bad / (total > 0)` has no value while nothing happens, and a budget over weeks is
weighted by traffic. Each window is evaluated as often as it can change; days are added up from recorded hours, since
increase() over days of every engine's buckets costs Prometheus more than all other rules together.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from .alert_names import BURNS, TITLES
from .indicators import Counts, counts, labels_of
from .promises import duration, percent
from .rules import Alert, Group, Recording
from .sla import Indicator, Objective, Service, Sla
from .tiers import Tier, part_of, tiers, window_name, windows

_OFTEN: Final = 30.0
_SELDOM: Final = 120.0
_BUDGET: Final = 300.0
_HOUR: Final = 3600
# Goodput without the plugin: what the two promises allow to say. The alert is on the kinder one.
AT_BEST: Final = "goodput-at-best"
AT_WORST: Final = "goodput-at-worst"
_KEEP_FIRING: Final = 120.0
_PART: Final = "window_part"


def slo_name(service: Service, indicator: Indicator) -> str:
    """Return the value of the label `slo`."""
    if indicator == "goodput" and not service.requests_page:
        return AT_BEST
    return indicator.replace("_", "-")


def objective_groups(sla: Sla, service: Service, indicator: Indicator, objective: Objective) -> Iterator[Group]:
    """Yield the groups of one objective."""
    slo = slo_name(service, indicator)
    labels = {"slo": slo, "service": service.name}
    every = windows(sla.window)
    short = [window for window in every if window <= _HOUR]
    long = [window for window in every if window > _HOUR]
    name = f"{service.name}-{slo}"
    for part, interval, some in (("fast", _OFTEN, short), ("slow", _SELDOM, long)):
        rules = [rule for window in some for rule in _window_rules(sla, service, indicator, objective, labels, window)]
        if rules:
            yield Group(f"{name}-{part}", interval, rules)
    yield Group(f"{name}-counts", _BUDGET, [*_count_rules(service, indicator, objective, labels)])
    yield Group(f"{name}-budget", _SELDOM, [*_budget_rules(sla, objective, labels)])
    if objective.severity != "off":
        alerts = [burn_alert(sla, service, indicator, objective, tier) for tier in tiers(sla.window)]
        yield Group(f"{name}-alerts", _OFTEN, alerts)


def _window_rules(
    sla: Sla, service: Service, indicator: Indicator, objective: Objective, labels: dict[str, str], window: int
) -> Iterable[Recording]:
    name = window_name(window)
    chosen = f'{{slo="{labels["slo"]}",service="{labels["service"]}"}}'
    total, bad, ratio = f"slo:sli_total:increase{name}", f"slo:sli_bad:increase{name}", f"slo:sli_error:ratio{name}"
    if labels["slo"] == AT_BEST:
        return _bounds(labels, total, bad, ratio)
    part = part_of(window, windows(sla.window))
    if part is None:
        expressions = counts(service, indicator, objective, name)
    else:
        expressions = Counts(
            *(_added_up(f"slo:sli_{what}:increase", chosen, part, window) for what in ("total", "bad"))
        )
    return (
        Recording(total, expressions.total, labels),
        Recording(bad, expressions.bad, labels),
        Recording(ratio, f"{bad}{chosen} / ({total}{chosen} > 0)", labels),
    )


def _added_up(record: str, chosen: str, part: int, window: int) -> str:
    """Return a count over a long window as the sum of the recorded counts of its parts, one behind the other.

    `or` under a label of their own instead of `+`: a part that nobody recorded, because Prometheus is younger, adds
    nothing, and the others stay. Where Prometheus was away at a seam, the part recorded last before that stands in, as
    long as it has more in common with the missing one than not.
    """
    name = f"{record}{window_name(part)}{chosen}"
    reach = window_name(part // 120 * 60)
    parts = [
        f'label_replace(last_over_time({name}[{reach}] offset {window_name(back)}), "{_PART}", "{number}", "", "")'
        for number, back in enumerate(range(part, window, part), 1)
    ]
    return f"sum without ({_PART}) (\n  " + "\n  or\n  ".join([name, *parts]) + "\n)"


def _bounds(labels: dict[str, str], total: str, bad: str, ratio: str) -> Iterable[Recording]:
    """Return goodput's bounds from the shares of two promises, of which nobody knows how far they overlap."""
    both = f'{{slo=~"ttft|tpot",service="{labels["service"]}"}}'
    complete = f"count without (slo) ({ratio}{both}) == 2"
    at_worst = {**labels, "slo": AT_WORST}
    chosen = f'{{slo="{AT_BEST}",service="{labels["service"]}"}}'
    return (
        Recording(total, f"max without (slo) ({total}{both})", labels),
        Recording(ratio, f"max without (slo) ({ratio}{both}) and {complete}", labels),
        Recording(bad, f"{ratio}{chosen} * {total}{chosen}", labels),
        Recording(ratio, f"clamp_max(sum without (slo) ({ratio}{both}), 1) and {complete}", at_worst),
    )


def _count_rules(
    service: Service, indicator: Indicator, objective: Objective, labels: dict[str, str]
) -> Iterator[Recording]:
    """Yield counts over disjoint five minutes, whose sums are budgets: each event weighs the same and counts once."""
    chosen = f'{{slo="{labels["slo"]}",service="{labels["service"]}"}}'
    if labels["slo"] == AT_BEST:
        for what in ("total", "bad"):
            yield Recording(f"slo:sli_{what}:count5m", f"slo:sli_{what}:increase5m{chosen}", labels)
    else:
        expressions = counts(service, indicator, objective, "5m")
        yield Recording("slo:sli_total:count5m", expressions.total, labels)
        yield Recording("slo:sli_bad:count5m", expressions.bad, labels)


def _budget_rules(sla: Sla, objective: Objective, labels: dict[str, str]) -> Iterator[Recording]:
    """Yield what is left of the budget; more often than counts, since after five minutes a value is gone."""
    chosen = f'{{slo="{labels["slo"]}",service="{labels["service"]}"}}'
    window, budget = window_name(int(sla.window)), objective.promise.budget
    bad, total = (f"sum_over_time(slo:sli_{what}:count5m{chosen}[{window}])" for what in ("bad", "total"))
    yield Recording("slo:error_budget_spent:ratio", f"{bad} / ({total} > 0) / {_number(budget)}", labels)
    yield Recording("slo:error_budget_remaining:ratio", f"1 - slo:error_budget_spent:ratio{chosen}", labels)
    seen = f"count_over_time(slo:sli_total:count5m{chosen}[{window}]) / {_number(sla.window / _BUDGET)}"
    yield Recording("slo:window_seen:ratio", seen, labels)
    yield Recording("slo:objective:ratio", f"vector({objective.promise.target})", labels)
    if objective.promise.threshold is not None:
        yield Recording("slo:threshold:seconds", f"vector({_number(objective.promise.threshold)})", labels)


def burn_alert(sla: Sla, service: Service, indicator: Indicator, objective: Objective, tier: Tier) -> Alert:
    """Return the alert of one tier."""
    slo = slo_name(service, indicator)
    chosen = f'{{slo="{slo}",service="{service.name}"}}'
    long, short = window_name(tier.long), window_name(tier.short)
    threshold = _number(tier.threshold(objective.promise.budget))
    # The long window first: it becomes $value.
    expression = (
        f"slo:sli_error:ratio{long}{chosen} > {threshold}\n"
        f"and\nslo:sli_error:ratio{short}{chosen} > {threshold}\n"
        f"and\nslo:sli_bad:increase{long}{chosen} >= {objective.min_bad_events}"
    )
    severity = objective.severity if tier.pages else "ticket"
    labels = {
        "severity": severity,
        "service": service.name,
        "slo": slo,
        "indicator": indicator,
        "burn_tier": tier.name,
        "long_window": long,
    }
    if service.owner:
        labels["owner"] = service.owner
    if objective.hours == "business":
        labels["hours"] = "business"
    if objective.receiver is not None:
        labels["receiver"] = objective.receiver
    return Alert(
        BURNS[indicator],
        expression,
        tier.hold,
        labels,
        _annotations(sla, service, indicator, objective, tier),
        _KEEP_FIRING,
    )


def _annotations(sla: Sla, service: Service, indicator: Indicator, objective: Objective, tier: Tier) -> dict[str, str]:
    name, title = BURNS[indicator], TITLES[indicator]
    who = service.name + "".join(f" {{{{ $labels.{label} }}}}" for label in labels_of(service, objective))
    lasts = duration(round(sla.window / tier.factor / 3600) * 3600)
    best = " at best, by vLLM's histograms," if slo_name(service, indicator) == AT_BEST else ""
    annotations = {
        "summary": f"{who}: {title} burns its budget {tier.factor:g} times too fast",
        "description": (
            f"{{{{ $value | humanizePercentage }}}} of the events of the last {window_name(tier.long)} were bad,{best} "
            f"promised is {objective.promise} over {window_name(int(sla.window))}, which allows "
            f"{percent(round(objective.promise.budget, 9))}%. At {tier.factor:g} times that rate the whole budget is "
            f"gone in {lasts}."
        ),
        "runbook_url": f"{sla.runbooks}/{name}.md#{tier.name}",
    }
    if sla.grafana is not None:
        annotations["dashboard_url"] = f"{sla.grafana.rstrip('/')}/d/vitals-slo?var-service={service.name}"
    return annotations


def _number(value: float) -> str:
    return f"{value:.12g}"

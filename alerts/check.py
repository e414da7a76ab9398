"""Whether every expression of an SLA's rules can find something: names, labels, values, joins, windows."""

from collections.abc import Iterable, Iterator

from ..promql.check import Schema, inferred_labels, problems, schema
from .build import rule_groups
from .rules import Alert, Group, Recording
from .sla import Sla


def rule_schema(sla: Sla) -> Schema:
    """Return what can be queried where an SLA's rules run: pages' series, and each recorded one with its labels."""
    return _with_recorded(_pages(sla), [group for groups in rule_groups(sla).values() for group in groups])


def problems_of(sla: Sla) -> Iterator[str]:
    """Yield what is wrong with the rules of an SLA, each with the rule's name."""
    groups = [group for some in rule_groups(sla).values() for group in some]
    known = _with_recorded(_pages(sla), groups)
    for group in groups:
        for rule in group.rules:
            name = rule.record if isinstance(rule, Recording) else rule.alert
            for problem in problems(rule.expr, known):
                yield f"{group.name}: {name}: {problem}"


def _pages(sla: Sla) -> Schema:
    """Return the schema of the pages; labels that the SLA selects or keeps are added by scrape configurations."""
    added = {label for service in sla.services for label in (*service.selector, *service.by)}
    added |= {*sla.gpus.selector}
    return schema(target_labels=added - {"model_name", "engine"}, scrape_interval=sla.scrape_interval)


def _with_recorded(known: Schema, groups: Iterable[Group]) -> Schema:
    """Return a schema with what groups record; rules read what others record before them, whatever their order."""
    recorded: dict[str, frozenset[str] | None] = {}
    rules = [rule for group in groups for rule in group.rules if not isinstance(rule, Alert)]
    for rule in rules:
        recorded[rule.record] = None
    for _ in rules:  # a chain of recordings that read recordings is no longer than that
        known = known._replace(recorded=recorded)
        found: dict[str, frozenset[str] | None] = {}
        for rule in rules:
            labels = inferred_labels(rule.expr, known) | {*rule.labels}
            found[rule.record] = (found.get(rule.record) or frozenset()) | labels
        if found == recorded:
            break
        recorded = found
    return known._replace(recorded=recorded)

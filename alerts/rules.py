"""Prometheus rules as values, and their YAML."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from .promises import duration

HEADER: Final = "# Generated from the SLA by `vllm-vitals rules build`: edit that file, not this one.\n"


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus makes."""

    record: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that somebody hears of once it held for a while; times in seconds."""

    alert: str
    expr: str
    hold: float
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    keep_firing_for: float = 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after the other, every `interval` seconds."""

    name: str
    interval: float
    rules: Sequence[Recording | Alert]


def as_data(groups: Iterable[Group]) -> dict[str, Any]:
    """Return groups as Prometheus' file format has them."""
    return {
        "groups": [
            {"name": group.name, "interval": duration(group.interval), "rules": [_rule(rule) for rule in group.rules]}
            for group in groups
        ]
    }


def as_yaml(groups: Iterable[Group]) -> str:
    """Return a rule file."""
    return HEADER + dump(as_data(groups))


def dump(data: Any) -> str:
    """Return YAML without anchors, long texts as blocks."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def _rule(rule: Recording | Alert) -> dict[str, Any]:
    if isinstance(rule, Recording):
        result: dict[str, Any] = {"record": rule.record, "expr": rule.expr}
    else:
        result = {"alert": rule.alert, "expr": rule.expr}
        if rule.hold:
            result["for"] = duration(rule.hold)
        if rule.keep_firing_for:
            result["keep_firing_for"] = duration(rule.keep_firing_for)
    if rule.labels:
        result["labels"] = dict(rule.labels)
    if isinstance(rule, Alert):
        result["annotations"] = dict(rule.annotations)
    return result


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  label mappings are shared between rules
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)

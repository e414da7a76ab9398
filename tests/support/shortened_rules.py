"""Generated rules and routes with every duration divided by one factor, so that hours pass in minutes."""

import re
from typing import Any

import yaml

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdwy])")
_LENGTH = r"(?:\d+(?:\.\d+)?(?:ms|[smhdwy]))+"
# Texts in quotes are passed over; what is left in brackets or behind `offset` is a length of time.
_TIMES = re.compile(
    rf'"(?:\\.|[^"\\])*"|\[(?P<range>{_LENGTH})(?P<step>:(?:{_LENGTH})?)?\]|\boffset\s+(?P<offset>{_LENGTH})'
)
_WAITS = frozenset({"group_wait", "group_interval", "repeat_interval"})


def seconds(text: str) -> float:
    """Return a duration of Prometheus in seconds."""
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def shortened(text: str, factor: float, least: float = 0.001) -> str:
    """Return a duration divided by a factor, in milliseconds, but no shorter than `least` seconds."""
    return f"{round(max(seconds(text) / factor, least) * 1000)}ms"


def shortened_expression(expression: str, factor: float) -> str:
    """Return PromQL with its ranges and offsets divided; names, texts and numbers stay."""

    def replaced(match: re.Match[str]) -> str:
        if match["range"]:
            step = f":{shortened(match['step'][1:], factor)}" if (match["step"] or "")[1:] else match["step"] or ""
            return f"[{shortened(match['range'], factor)}{step}]"
        return f"offset {shortened(match['offset'], factor)}" if match["offset"] else match[0]

    return _TIMES.sub(replaced, expression)


def shortened_rules(text: str, factor: float, least_interval: float) -> str:
    """Return a rule file whose ranges, offsets, waits and intervals are divided.

    Args:
        text: the file.
        factor: by which times are divided.
        least_interval: seconds below which no group is evaluated, since there is nothing new to see.
    """
    data = yaml.safe_load(text)
    for group in data["groups"]:
        group["interval"] = shortened(group["interval"], factor, least_interval)
        for rule in group["rules"]:
            rule["expr"] = shortened_expression(rule["expr"], factor)
            for key in {"for", "keep_firing_for"} & rule.keys():
                rule[key] = shortened(rule[key], factor)
    return yaml.safe_dump(data, sort_keys=False)


def shortened_routes(text: str, factor: float) -> str:
    """Return Alertmanager's configuration with its waits divided."""

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: shortened(value, factor) if key in _WAITS else walk(value) for key, value in node.items()}
        return [walk(one) for one in node] if isinstance(node, list) else node

    return yaml.safe_dump(walk(yaml.safe_load(text)), sort_keys=False)

"""Label matchers in PromQL, as the SLA's selectors say them."""

import json
from collections.abc import Iterable, Mapping

from .sla import Service

ENGINE_LABELS = frozenset({"model_name", "engine"})  # of vLLM's own series; targets do not have them


def matchers(selector: Mapping[str, str], *more: str) -> str:
    """Return `{job="x",model_name=~"y.*",more}`; nothing for no matchers."""
    parts = [
        f"{label}=~{json.dumps(value[1:])}" if value.startswith("~") else f"{label}={json.dumps(value)}"
        for label, value in selector.items()
    ]
    parts += more
    return "{" + ",".join(parts) + "}" if parts else ""


def of_target(service: Service) -> dict[str, str]:
    """Return the part of a service's selector that its targets and HTTP metrics have, too."""
    return {label: value for label, value in service.selector.items() if label not in ENGINE_LABELS}


def of_requests_page(service: Service) -> dict[str, str]:
    """Return the selector of the plugin's request metrics, which the README scrapes as the job `NAME-requests`."""
    job = service.selector.get("job")
    if job is None:
        return dict(service.selector)
    return {**service.selector, "job": f"~{job[1:]}(-requests)?" if job.startswith("~") else f"{job}-requests"}


def identity(service: Service) -> tuple[str, ...]:
    """Return the labels that tell servers apart."""
    return ("job", "instance", "server") if service.via == "exporter" else ("job", "instance")


def summed(by: Iterable[str], expression: str, operator: str = "sum") -> str:
    """Return `sum by (a, b) (expression)`, or `sum(expression)` where everything is one."""
    labels = ", ".join(by)
    return f"{operator} by ({labels}) ({expression})" if labels else f"{operator}({expression})"

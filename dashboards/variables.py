"""The drop-downs on top of a dashboard, and how each reaches the queries below."""

import re
from collections.abc import Iterable
from typing import Any, Final

import attrs
from grafanalib import core

from ..promql.check import Schema
from ..vocabulary.ours import PLUGIN
from .targets import PROMETHEUS

# Variable -> the label that it chooses.
LABELS: Final = {
    "job": "job",
    "instance": "instance",
    "server": "server",
    "model": "model_name",
    "gpu": "gpu",
    "service": "service",
    "slo": "slo",
}
_NAME_AND_MATCHERS: Final = re.compile(r"(?<![\w:$\"{])([a-zA-Z_][\w:]*)(\{[^{}]*\})?")
_PARTS: Final = ("_bucket", "_sum", "_count")


@attrs.define(slots=False, kw_only=True)
class DatasourceVar(core.Template):
    """Chooses a data source of one type, so that a dashboard works in any Grafana."""

    def to_json_data(self) -> dict[str, Any]:
        """Return the JSON."""
        return {
            "current": {},
            "hide": 0,
            "includeAll": False,
            "label": self.label,
            "multi": False,
            "name": self.name,
            "options": [],
            "query": self.query,
            "refresh": 1,
            "regex": "",
            "type": "datasource",
        }


@attrs.define(slots=False, kw_only=True)
class QueryVar(core.Template):
    """Chooses values of a label, several or all; asked again whenever the time range changes."""

    def to_json_data(self) -> dict[str, Any]:
        """Return the JSON."""
        return {
            "allValue": self.allValue,
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "datasource": PROMETHEUS,
            "definition": self.query,
            "hide": 0,
            "includeAll": True,
            "label": self.label,
            "multi": True,
            "name": self.name,
            "options": [],
            "query": {"qryType": 1, "query": self.query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
            "refresh": 2,
            "regex": self.regex or "",
            "sort": 1,
            "type": "query",
        }


@attrs.define(slots=False, kw_only=True)
class TextVar(core.Template):
    """A box to type in; `query` is what stands there at first."""

    def to_json_data(self) -> dict[str, Any]:
        """Return the JSON."""
        first = {"selected": True, "text": self.query, "value": self.query}
        return {
            "current": first,
            "hide": 0,
            "label": self.label,
            "name": self.name,
            "options": [first],
            "query": self.query,
            "type": "textbox",
        }


def datasource(name: str = "datasource", kind: str = "prometheus", label: str = "Prometheus") -> DatasourceVar:
    """Return the choice of a data source."""
    return DatasourceVar(name=name, query=kind, label=label)


def job(metric: str, *, without_suffix: bool = False) -> QueryVar:
    """Return the choice of scrape jobs; `without_suffix`: `x-requests` is offered as `x`, which finds both."""
    regex = "/^(.*?)(?:-requests)?$/" if without_suffix else ""
    return QueryVar(name="job", query=f"label_values({metric}, job)", label="Job", allValue=".*", regex=regex)


def label_values(name: str, label: str, series: str) -> QueryVar:
    """Return the choice of a label's values among series."""
    every = ".+" if name == "service" else ".*"  # .* also matches series without the label
    return QueryVar(name=name, query=f"label_values({series}, {LABELS[name]})", label=label, allValue=every)


INSTANCE: Final = label_values("instance", "Node", 'vllm_vitals_build_info{job=~"$job"}')
SERVER: Final = label_values("server", "Server", 'vllm:num_requests_running{job=~"$job"}')
MODEL: Final = label_values("model", "Model", 'vllm:num_requests_running{job=~"$job",server=~"$server"}')
GPU: Final = label_values("gpu", "GPU", 'nvidia_gpu_info{job=~"$job",instance=~"$instance"}')
SERVICE: Final = label_values("service", "Service", "slo:objective:ratio")


def labels_of(name: str, known: Schema) -> frozenset[str]:
    """Return the labels of a series that can be chosen by; nothing for what is no series."""
    if name == "ALERTS":
        return frozenset({"service"})
    if name in known.recorded:
        return known.recorded[name] or frozenset()
    metric = known.metrics.get(name)
    if metric is None or metric.kind in {"histogram", "summary"}:
        family = next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), "")
        metric = known.metrics.get(family) or metric
    if metric is None:
        return frozenset()
    of_engine = "server" in metric.labels or metric.name in PLUGIN or metric.name.startswith(("vllm:", "http_"))
    return frozenset(metric.labels) | {"job", "instance"} | ({"server"} if of_engine else set())


def matcher(variable: str, name: str) -> str:
    """Return how a variable chooses among series of this name.

    The plugin's series come from a job of their own, and alerts of GPUs concern whichever service is chosen.
    """
    label = LABELS[variable]
    if variable == "job" and name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") in PLUGIN:
        return f'{label}=~"$job(-requests)?"'
    if name == "ALERTS":
        return f'{label}=~"$service|gpus"'
    return f'{label}=~"${variable}"'


def scoped(expression: str, variables: Iterable[str], known: Schema) -> str:
    """Return a query in which every variable reaches each selector that has its label."""
    chosen = [name for name in LABELS if name in set(variables)]

    def choose(match: re.Match[str]) -> str:
        name, given = match[1], (match[2] or "{}")[1:-1]
        labels = labels_of(name, known)
        if not labels:
            return match[0]
        added = [matcher(one, name) for one in chosen if LABELS[one] in labels]
        inside = ",".join([*added, *([given] if given else [])])
        return f"{name}{{{inside}}}" if inside else name

    return _NAME_AND_MATCHERS.sub(choose, expression)

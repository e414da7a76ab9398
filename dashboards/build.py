"""Every dashboard of an SLA as plain data, as files, and in the form that Grafana's import dialog asks about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..alerts.check import rule_schema
from ..alerts.sla import Sla
from ..promql.check import Schema
from ..vocabulary.ours import Metric
from ..vocabulary.stack import STACK
from . import engine, fleet, gpu, overview, pipeline, requests, slo
from .dashboard import as_data, as_text
from .limits import limits_of

GENERATED: Final = Path(__file__).with_name("json")  # of the default SLA, committed
_PAGES: Final = (overview, engine, gpu, slo, fleet, requests, pipeline)
# What our rules put on alerts, and Prometheus on ALERTS.
_ALERTS: Final = Metric(
    "ALERTS", "gauge", "1 per active alert.",
    ("alertname", "alertstate", "severity", "service", "slo", "burn_tier", "model_name", "gpu", "uuid"),
)  # fmt: skip
_PLUGINS: Final = {"prometheus": "Prometheus", "jaeger": "Jaeger", "elasticsearch": "Elasticsearch"}
_PANELS: Final = {
    "bargauge": "Bar gauge", "heatmap": "Heatmap", "logs": "Logs", "nodeGraph": "Node Graph", "stat": "Stat",
    "state-timeline": "State timeline", "status-history": "Status history", "table": "Table",
    "timeseries": "Time series", "traces": "Traces",
}  # fmt: skip
OLDEST_GRAFANA: Final = "10.4.0"


def query_schema(sla: Sla) -> Schema:
    """Return what dashboards can query: our pages, what the rules record, and the programs around."""
    known = rule_schema(sla)
    return known._replace(metrics={**known.metrics, **STACK, "ALERTS": _ALERTS})


def dashboards(sla: Sla) -> dict[str, dict[str, Any]]:
    """Return every dashboard's JSON as plain data, by the name of its file without .json."""
    known, limits = query_schema(sla), limits_of(sla)
    pages = [module.page(limits) for module in _PAGES]
    return {page.slug: as_data(page, known) for page in pages}


def files(some: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return dashboards as texts by file name."""
    return {f"{slug}.json": as_text(dict(data)) for slug, data in some.items()}


def write(texts: Mapping[str, str], folder: Path) -> None:
    """Write files; what lay there under another name is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def drift(texts: Mapping[str, str], folder: Path) -> list[str]:
    """Return what differs between generated texts and the files of a folder, in words."""
    found = []
    for name, text in texts.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.read_text(encoding="utf-8") != text:
            found.append(f"{path}: differs from what the code makes")
    strangers = sorted({path.name for path in folder.glob("*.json")} - {*texts})
    return found + [f"{folder / name}: no code makes it" for name in strangers]


def for_import(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dashboard whose import asks for its data sources, as grafana.com wants them."""
    inputs, variables = [], []
    for variable in data["templating"]["list"]:
        kind = variable["query"] if variable["type"] == "datasource" else None
        if kind is None:
            variables.append(variable)
            continue
        name = f"DS_{variable['name' if variable['name'] != 'datasource' else 'query'].upper()}"
        inputs.append(
            {"name": name, "label": variable["label"], "description": "", "type": "datasource", "pluginId": kind,
             "pluginName": _PLUGINS[kind]}
        )  # fmt: skip
        variables.append({**variable, "current": {"text": f"${{{name}}}", "value": f"${{{name}}}"}})
    kinds = sorted({panel["type"] for panel in panels_of(data) if panel["type"] != "row"})
    requires = [{"type": "grafana", "id": "grafana", "name": "Grafana", "version": OLDEST_GRAFANA}]
    requires += [
        {"type": "datasource", "id": one["pluginId"], "name": one["pluginName"], "version": "1.0.0"} for one in inputs
    ]
    requires += [{"type": "panel", "id": kind, "name": _PANELS[kind], "version": ""} for kind in kinds]
    return {"__inputs": inputs, "__requires": requires, **data, "templating": {"list": variables}}


def panels_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every panel of a dashboard, bars of rows and what lies in them included."""
    found = []
    for panel in data["panels"]:
        found.append(panel)
        found += panel.get("panels", ())
    return found

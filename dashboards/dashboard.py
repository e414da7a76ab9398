"""A whole dashboard: grafanalib's Dashboard with today's JSON, and what every dashboard of the set has in common."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs
from grafanalib import core
from grafanalib._gen import DashboardEncoder

from ..promql.check import Schema
from .layout import Row, RowBar, place
from .panels import ModernPanel
from .targets import PROMETHEUS, PromTarget
from .variables import datasource, scoped

TAG: Final = "vllm-vitals"
SCHEMA_VERSION: Final = 41
TITLES: Final = {
    "vitals-overview": "Overview",
    "vitals-engine": "Engine",
    "vitals-gpu": "GPU",
    "vitals-slo": "SLO",
    "vitals-fleet": "Fleet",
    "vitals-requests": "Requests",
    "vitals-pipeline": "Pipeline",
}
_ALL_VARIABLES: Final = "?${__url_time_range}&${__all_variables}"
# Wide enough for any scrape interval up to 30 s; an annotation knows no $__rate_interval.
_RECENT: Final = "[2m]"


@attrs.define(slots=False, kw_only=True)
class ModernDashboard(core.Dashboard):
    """A dashboard as Grafana 10 to 13 write it, without the keys of older releases."""

    def to_json_data(self) -> dict[str, Any]:
        """Return the JSON."""
        return {
            "annotations": {"list": self.annotations.list},
            "description": self.description,
            "editable": self.editable,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,
            "links": self.links,
            "panels": self.panels,
            "refresh": self.refresh,
            "schemaVersion": self.schemaVersion,
            "tags": self.tags,
            "templating": {"list": self.templating.list},
            "time": {"from": self.time.start, "to": self.time.end},
            "timepicker": {},
            "timezone": self.timezone,
            "title": self.title,
            "uid": self.uid,
            "version": 1,
            "weekStart": "",
        }


@attrs.frozen
class Page:
    """One dashboard of the set.

    Attributes:
        uid: stable, for links.
        question: that it answers as a whole.
        variables: on top, in their order, without the data source.
        rows: of panels.
        hours: of the time range that it opens with.
    """

    uid: str
    question: str
    variables: Sequence[core.Template]
    rows: Sequence[Row]
    hours: int = 1

    @property
    def slug(self) -> str:
        """The name of its file."""
        return self.uid.removeprefix("vitals-")


def as_data(page: Page, known: Schema) -> dict[str, Any]:
    """Return a dashboard's JSON as plain data."""
    names = [variable.name for variable in page.variables]
    dashboard = ModernDashboard(
        title=f"vLLM vitals: {TITLES[page.uid]}",
        description=page.question,
        uid=page.uid,
        tags=[TAG],
        editable=False,
        timezone="browser",
        refresh="30s",
        schemaVersion=SCHEMA_VERSION,
        time=core.Time(f"now-{page.hours}h", "now"),
        templating=core.Templating(list=[datasource(), *page.variables]),
        annotations=core.Annotations(list=[*_annotations(names, known)]),
        links=[_menu()],
        panels=[_finished(panel, names, known) for panel in place(page.rows)],
    )
    data: dict[str, Any] = json.loads(json.dumps(dashboard, cls=DashboardEncoder))
    return data


def as_text(data: dict[str, Any]) -> str:
    """Return a dashboard's file: keys sorted, so that a change is a small diff."""
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _finished(panel: core.Panel, variables: Sequence[str], known: Schema) -> core.Panel:
    if isinstance(panel, RowBar):
        panel.panels = [_finished(inner, variables, known) for inner in panel.panels]
        return panel
    assert isinstance(panel, ModernPanel)
    targets = []
    for index, target in enumerate(panel.targets):
        expr = scoped(target.expr, variables, known) if isinstance(target, PromTarget) else target.expr
        targets.append(attrs.evolve(target, refId=chr(ord("A") + index), expr=expr))
    links = [_explained_by(panel.see)] if panel.see else []
    return attrs.evolve(panel, targets=targets, links=links)


def _explained_by(uid: str) -> dict[str, Any]:
    return {"title": f"{TITLES[uid]}: why", "url": f"/d/{uid}{_ALL_VARIABLES}", "targetBlank": False}


def _menu() -> core.DashboardLink:
    return core.DashboardLink(title="vLLM vitals", tags=[TAG], asDropdown=True, includeVars=True, keepTime=True)


def _annotations(variables: Sequence[str], known: Schema) -> Iterable[dict[str, Any]]:
    """Yield what is marked on every time axis: alerts, restarts, and what was deployed."""
    pages = [name for name in variables if name != "service"]
    running = "group by (job, instance, server, model_name) (vllm:num_requests_running)"
    earlier = running.replace("_running)", "_running offset 5m)")
    for name, color, expr, title, text in (
        ("Alerts", "red", 'ALERTS{alertstate="firing",service!=""}', "{{alertname}}",
         "{{severity}} {{service}} {{slo}} {{burn_tier}} {{model_name}} {{server}} {{gpu}} {{instance}}"),
        ("Restarts", "orange", f"increase(vllm_vitals_server_restarts_total{_RECENT}) > 0", "restart", "{{server}}"),
        ("New servers", "blue", "vllm_vitals_server_info unless vllm_vitals_server_info offset 5m", "new server",
         "{{server}} {{kind}} at {{url}}, found by {{origin}}"),
        ("New models", "blue", f"{running} unless {earlier}", "deploy", "{{server}} serves {{model_name}}"),
    ):  # fmt: skip
        yield {
            "datasource": PROMETHEUS,
            "enable": True,
            "expr": scoped(expr, pages, known),
            "hide": False,
            "iconColor": color,
            "name": name,
            "step": "60s",
            "textFormat": text,
            "titleFormat": title,
        }

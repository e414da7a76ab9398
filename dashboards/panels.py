"""Panels in the house style: grafanalib's Panel with today's JSON, and one function per kind of picture."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
from grafanalib import core

from .fields import NO_UNIT, PLAIN, Step, mapping, thresholds
from .targets import PROMETHEUS, PromTarget

NO_TRAFFIC: Final = "No traffic"
NO_DATA: Final = "No data"

_HIDE_NOTHING: Final = {"legend": False, "tooltip": False, "viz": False}
_TOOLTIP: Final = {"mode": "multi", "sort": "desc"}
_LAST: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}


@attrs.define(slots=False, kw_only=True)
class ModernPanel(core.Panel):
    """A panel as Grafana 10 to 13 write it; grafanalib's keys of older releases are left out.

    Attributes:
        kind: Grafana's id of the panel type.
        width, height: in the grid of 24 columns.
        see: uid of the dashboard that explains what is odd here.
        custom: options of the panel type for each field.
        data_links: links from values.
    """

    kind: str
    options: Mapping[str, Any]
    width: int = 8
    height: int = 8
    see: str = ""
    unit: str = NO_UNIT
    steps: Sequence[Step] = PLAIN
    color: Mapping[str, Any] = {"mode": "thresholds"}
    custom: Mapping[str, Any] = {}
    lowest: float | None = None
    highest: float | None = None
    decimals: int | None = None
    no_value: str = NO_DATA
    mappings: Sequence[Mapping[str, Any]] = ()
    overrides: Sequence[Mapping[str, Any]] = ()
    data_links: Sequence[Mapping[str, Any]] = ()

    def to_json_data(self) -> dict[str, Any]:
        """Return the JSON: of the keys that grafanalib makes those that still mean something, and today's others."""
        stock = self.panel_json({})  # type: ignore[no-untyped-call]
        kept = ("datasource", "description", "gridPos", "id", "links", "targets", "title", "transformations")
        defaults = {
            "color": self.color,
            "custom": self.custom,
            "decimals": self.decimals,
            "links": self.data_links,
            "mappings": self.mappings,
            "max": self.highest,
            "min": self.lowest,
            "noValue": self.no_value,
            "thresholds": thresholds(self.steps),
            "unit": self.unit,
        }
        return {
            **{key: stock[key] for key in kept if stock[key]},
            "type": self.kind,
            "fieldConfig": {
                "defaults": {key: value for key, value in defaults.items() if value is not None},
                "overrides": self.overrides,
            },
            "options": self.options,
        }


def timeseries(
    title: str,
    question: str,
    *targets: PromTarget,
    unit: str,
    see: str = "",
    steps: Sequence[Step] = PLAIN,
    stacked: bool = False,
    lowest: float | None = 0,
    highest: float | None = None,
    **more: Any,
) -> ModernPanel:
    """Return lines over time; steps beyond the first are drawn as dashed lines."""
    custom = {
        "axisBorderShow": False,
        "axisPlacement": "auto",
        "drawStyle": "line",
        "fillOpacity": 40 if stacked else 8,
        "gradientMode": "none",
        "hideFrom": _HIDE_NOTHING,
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "pointSize": 5,
        "scaleDistribution": {"type": "linear"},
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "dashed" if len(steps) > 1 else "off"},
    }
    legend = {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True}
    return _prometheus(
        "timeseries", title, question, targets, {"legend": legend, "tooltip": _TOOLTIP}, unit=unit, see=see,
        steps=steps, lowest=lowest, highest=highest, color={"mode": "palette-classic"}, custom=custom, **more,
    )  # fmt: skip


def stat(
    title: str,
    question: str,
    *targets: PromTarget,
    unit: str,
    see: str = "",
    steps: Sequence[Step] = PLAIN,
    **more: Any,
) -> ModernPanel:
    """Return the last value in large; coloured only where it is judged."""
    options = {
        "colorMode": "background" if len(steps) > 1 or "mappings" in more else "none",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": _LAST,
        "textMode": "auto",
        "wideLayout": True,
    }
    more = {"width": 4, "height": 5, **more}
    return _prometheus("stat", title, question, targets, options, unit=unit, see=see, steps=steps, **more)


def bars(
    title: str,
    question: str,
    *targets: PromTarget,
    unit: str,
    see: str = "",
    steps: Sequence[Step] = PLAIN,
    **more: Any,
) -> ModernPanel:
    """Return one bar per series, by its last value."""
    options = {
        "displayMode": "basic",
        "minVizHeight": 10,
        "minVizWidth": 0,
        "namePlacement": "auto",
        "orientation": "horizontal",
        "reduceOptions": _LAST,
        "showUnfilled": True,
        "sizing": "auto",
        "valueMode": "color",
    }
    more = {"lowest": 0, **more}
    return _prometheus("bargauge", title, question, targets, options, unit=unit, see=see, steps=steps, **more)


def heatmap(title: str, question: str, target: PromTarget, *, unit: str, see: str = "", **more: Any) -> ModernPanel:
    """Return how events fall into a histogram's buckets over time; exemplars are dots that lead to traces."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {},
        "color": {
            "exponent": 0.5, "fill": "dark-orange", "mode": "scheme", "reverse": False, "scale": "exponential",
            "scheme": "Oranges", "steps": 64,
        },
        "exemplars": {"color": "rgba(60,130,255,0.9)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }  # fmt: skip
    custom = {"hideFrom": _HIDE_NOTHING, "scaleDistribution": {"type": "linear"}}
    more = {"width": 12, "no_value": NO_TRAFFIC, **more}
    return _prometheus("heatmap", title, question, (target,), options, unit=NO_UNIT, see=see, custom=custom, **more)


def timeline(
    title: str, question: str, *targets: PromTarget, states: Mapping[str, tuple[str, str]], see: str = "", **more: Any
) -> ModernPanel:
    """Return a band per series that shows which state held when."""
    options = {
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "mergeValues": True,
        "rowHeight": 0.9,
        "showValue": "never",
        "tooltip": {"mode": "single", "sort": "none"},
    }
    custom = {"fillOpacity": 70, "hideFrom": _HIDE_NOTHING, "lineWidth": 0, "spanNulls": False}
    more = {"width": 12, "unit": NO_UNIT, **more}
    return _prometheus(
        "state-timeline", title, question, targets, options, see=see, custom=custom, mappings=mapping(states), **more
    )


def history(
    title: str, question: str, *targets: PromTarget, unit: str, steps: Sequence[Step], see: str = "", **more: Any
) -> ModernPanel:
    """Return a cell per series and point in time, coloured by its value."""
    options = {
        "colWidth": 0.9,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "rowHeight": 0.9,
        "showValue": "never",
        "tooltip": {"mode": "single", "sort": "none"},
    }
    custom = {"fillOpacity": 70, "hideFrom": _HIDE_NOTHING, "lineWidth": 1}
    more = {"width": 24, **more}
    return _prometheus(
        "status-history", title, question, targets, options, unit=unit, see=see, steps=steps, custom=custom, **more
    )


def node_graph(
    title: str, question: str, nodes: PromTarget, edges: PromTarget, *, unit: str, see: str = "", **more: Any
) -> ModernPanel:
    """Return circles, with the nodes' values in them, and lines between; labels of the queries are Grafana's fields."""
    organize = {
        "id": "organize",
        "options": {
            "excludeByName": {"Time": True, "Value #B": True},
            "indexByName": {},
            "renameByName": {"Value #A": "mainstat"},
        },
    }
    options = {"edges": {}, "nodes": {"mainStatUnit": unit}, "zoomMode": "cooperative"}
    more = {"width": 12, "height": 12, **more}
    return _prometheus(
        "nodeGraph", title, question, (nodes, edges), options, unit=unit, see=see, transformations=[organize], **more
    )


def _prometheus(
    kind: str, title: str, question: str, targets: Sequence[PromTarget], options: Mapping[str, Any], **more: Any
) -> ModernPanel:
    return ModernPanel(
        title=title, description=question, kind=kind, dataSource=PROMETHEUS, targets=[*targets], options=options, **more
    )

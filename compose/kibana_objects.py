"""Kibana's data view, saved searches and dashboard, made as the NDJSON that its import takes.

    python -m vllm_vitals.compose.kibana_objects     writes kibana/objects.ndjson

A test compares it. The forms are those of Kibana 8.9, which any later one brings to its own when it imports them.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

FILE: Final = Path(__file__).parent / "kibana/objects.ndjson"
DATA_VIEW: Final = "vllm-vitals-logs"
REQUESTS: Final = 'log.logger : "vllm_vitals.request"'
SLOW_MS: Final = 10_000  # as collector/tail-sampling.yaml calls a request slow
_CORE: Final = "8.8.0"
_TYPES: Final = {"index-pattern": "8.0.0", "search": "8.0.0", "dashboard": "8.9.0"}
_SEARCH_INDEX: Final = "kibanaSavedObjectMeta.searchSourceJSON.index"
_LAYER: Final = "layer"

Object = dict[str, Any]


class Search(NamedTuple):
    """A saved search: KQL, columns, and by what it is sorted."""

    id: str
    title: str
    about: str
    query: str
    columns: Sequence[str]
    sort: Sequence[tuple[str, str]] = (("@timestamp", "desc"),)


SEARCHES: Final = (
    Search(
        "vllm-vitals-all", "vLLM: all lines", "Jaeger's links lead here, with a trace, request or session id", "",
        ["service.name", "log.level", "message", "request_id", "trace.id"],
    ),
    Search(
        "vllm-vitals-errors", "vLLM: errors", "Lines at error and above, failed requests, engine failures",
        "log.level : (error or critical or fatal or panic) or outcome : server_error or fatal_kind : *",
        ["service.name", "log.level", "error.type", "message", "request_id", "trace.id"],
    ),
    Search(
        "vllm-vitals-slow", "vLLM: slow requests", f"Requests of {SLOW_MS // 1000} s and more, the slowest first",
        f"{REQUESTS} and e2e_ms >= {SLOW_MS}",
        ["model", "e2e_ms", "queue_ms", "prefill_ms", "decode_ms", "preempted_ms", "input_tokens", "output_tokens",
         "trace.id"],
        [("e2e_ms", "desc")],
    ),
    Search(
        "vllm-vitals-aborted", "vLLM: aborted requests", "Given up by the client, aborted or refused",
        f"{REQUESTS} and outcome : (aborted or disconnected or rejected)",
        ["outcome", "error.type", "model", "client.address", "output_tokens", "e2e_ms", "request_id", "trace.id"],
    ),
    Search(
        "vllm-vitals-sessions", "vLLM: by session", "Requests of each session, one behind the other",
        f"{REQUESTS} and session_id : *",
        ["session_id", "model", "outcome", "input_tokens", "cached_tokens", "output_tokens", "ttft_ms", "e2e_ms",
         "trace.id"],
        [("session_id", "asc"), ("@timestamp", "asc")],
    ),
    Search(
        "vllm-vitals-unread", "vLLM: lines that the pipeline stumbled over", "Kept as they came",
        "pipeline_error.processor : *",
        ["service.name", "pipeline_error.processor", "pipeline_error.message", "message"],
    ),
)  # fmt: skip


class Value(NamedTuple):
    """A number of a panel: an operation over a field, such as the 95th percentile of `ttft_ms`."""

    label: str
    operation: str
    field: str = "___records___"
    percentile: int | None = None


COUNT: Final = Value("lines", "count")


class Panel(NamedTuple):
    """A panel over time, or a table of the most frequent values."""

    title: str
    query: str
    values: Sequence[Value]
    split: str = ""
    kind: str = "bar_stacked"  # line, area_stacked, table


PANELS: Final = (
    Panel("Requests by outcome", REQUESTS, [COUNT._replace(label="requests")], split="outcome"),
    Panel(
        "Time to first token, ms", REQUESTS,
        [Value(f"p{number}", "percentile", "ttft_ms", number) for number in (50, 95, 99)], kind="line",
    ),
    Panel(
        "Where the time goes, mean ms", REQUESTS,
        [Value(name, "average", f"{name}_ms") for name in ("ingress", "queue", "prefill", "decode")],
    ),
    Panel(
        "Tokens", REQUESTS,
        [Value(name.replace("_", " "), "sum", name) for name in ("input_tokens", "cached_tokens", "output_tokens")],
        kind="line",
    ),
    Panel("What failed", "error.type : *", [COUNT], split="error.type", kind="table"),
    Panel("Lines by level", "", [COUNT], split="log.level"),
)  # fmt: skip
_WIDTH, _HEIGHT = 24, 12  # of a grid that is 48 wide
ON_DASHBOARD: Final = ("vllm-vitals-errors",)


def objects() -> list[Object]:
    """Return all objects; what others refer to comes first."""
    return [_data_view(), *(_search(one) for one in SEARCHES), _dashboard()]


def _object(kind: str, name: str, attributes: Object, references: Iterable[Object] = ()) -> Object:
    return {
        "id": name,
        "type": kind,
        "attributes": attributes,
        "references": list(references),
        "coreMigrationVersion": _CORE,
        "typeMigrationVersion": _TYPES[kind],
        "managed": False,
    }


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _data_view() -> Object:
    formats = {
        "trace.id": {
            "id": "url",
            "params": {"type": "a", "urlTemplate": "@JAEGER_URL@/trace/{{value}}", "labelTemplate": "{{value}}"},
        },
        "event.duration": {
            "id": "duration",
            "params": {"inputFormat": "nanoseconds", "outputFormat": "asMilliseconds", "outputPrecision": 1},
        },
        "process.pid": {"id": "number", "params": {"pattern": "0"}},
    }
    attributes = {
        "title": "logs-vllm-*",
        "name": "vLLM logs",
        "timeFieldName": "@timestamp",
        "fieldFormatMap": _text(formats),
        "fieldAttrs": "{}",
        "fields": "[]",
        "sourceFilters": "[]",
        "runtimeFieldMap": "{}",
        "typeMeta": "{}",
    }
    return _object("index-pattern", DATA_VIEW, attributes)


def _search(one: Search) -> Object:
    source = {
        "query": {"language": "kuery", "query": one.query},
        "filter": [],
        "highlightAll": True,
        "version": True,
        "indexRefName": _SEARCH_INDEX,
    }
    attributes = {
        "title": one.title,
        "description": one.about,
        "columns": list(one.columns),
        "sort": [list(pair) for pair in one.sort],
        "grid": {},
        "hideChart": False,
        "kibanaSavedObjectMeta": {"searchSourceJSON": _text(source)},
    }
    return _object("search", one.id, attributes, [_refers(_SEARCH_INDEX)])


def _refers(name: str, kind: str = "index-pattern", to: str = DATA_VIEW) -> Object:
    return {"name": name, "type": kind, "id": to}


def _dashboard() -> Object:
    panels: list[Object] = []
    references: list[Object] = []
    for number, panel in enumerate(PANELS):
        index = f"panel-{number}"
        panels.append(
            {
                "type": "lens",
                "panelIndex": index,
                "gridData": _place(number, index),
                "title": panel.title,
                "embeddableConfig": {"attributes": _lens(panel), "enhancements": {}, "hidePanelTitles": False},
            }
        )
        references.append(_refers(f"{index}:indexpattern-datasource-layer-{_LAYER}"))
    for number, search in enumerate(ON_DASHBOARD, len(PANELS)):
        index = f"panel-{number}"
        place = {"x": 0, "y": _HEIGHT * ((number + 1) // 2), "w": 2 * _WIDTH, "h": _HEIGHT + 4, "i": index}
        panels.append(
            {
                "type": "search",
                "panelIndex": index,
                "gridData": place,
                "embeddableConfig": {"enhancements": {}},
                "panelRefName": f"panel_{index}",
            }
        )
        references.append(_refers(f"{index}:panel_{index}", "search", search))
    attributes = {
        "title": "vLLM: requests and lines",
        "description": "What became of the requests, where their time went, and what was logged meanwhile",
        "hits": 0,
        "timeRestore": False,
        "version": 1,
        "optionsJSON": _text({"useMargins": True, "syncColors": False, "syncCursor": True, "hidePanelTitles": False}),
        "panelsJSON": _text(panels),
        "kibanaSavedObjectMeta": {
            "searchSourceJSON": _text({"query": {"language": "kuery", "query": ""}, "filter": []})
        },
    }
    return _object("dashboard", "vllm-vitals-requests", attributes, references)


def _place(number: int, index: str) -> Object:
    return {"x": _WIDTH * (number % 2), "y": _HEIGHT * (number // 2), "w": _WIDTH, "h": _HEIGHT, "i": index}


def _lens(panel: Panel) -> Object:
    columns: dict[str, Object] = {}
    table = panel.kind == "table"
    if not table:
        columns["time"] = {
            "label": "@timestamp",
            "dataType": "date",
            "isBucketed": True,
            "operationType": "date_histogram",
            "scale": "interval",
            "sourceField": "@timestamp",
            "params": {"interval": "auto", "includeEmptyRows": True, "dropPartials": False},
        }
    if panel.split:
        columns["split"] = _terms(panel.split)
    accessors = [f"value-{number}" for number in range(len(panel.values))]
    columns |= dict(zip(accessors, map(_column, panel.values), strict=True))
    layer = {"columns": columns, "columnOrder": list(columns), "incompleteColumns": {}}
    return {
        "title": panel.title,
        "type": "lens",
        "visualizationType": "lnsDatatable" if table else "lnsXY",
        "references": [_refers(f"indexpattern-datasource-layer-{_LAYER}")],
        "state": {
            "query": {"language": "kuery", "query": panel.query},
            "filters": [],
            "internalReferences": [],
            "adHocDataViews": {},
            "datasourceStates": {"formBased": {"layers": {_LAYER: layer}}},
            "visualization": _table(columns) if table else _xy(panel, accessors),
        },
    }


def _column(value: Value) -> Object:
    params: Object = {"emptyAsNull": True}
    if value.percentile is not None:
        params = {"percentile": value.percentile}
    return {
        "label": value.label,
        "customLabel": True,
        "dataType": "number",
        "isBucketed": False,
        "operationType": value.operation,
        "scale": "ratio",
        "sourceField": value.field,
        "params": params,
    }


def _terms(field: str) -> Object:
    return {
        "label": field,
        "dataType": "string",
        "isBucketed": True,
        "operationType": "terms",
        "scale": "ordinal",
        "sourceField": field,
        "params": {
            "size": 10,
            "orderBy": {"type": "column", "columnId": "value-0"},
            "orderDirection": "desc",
            "otherBucket": True,
            "missingBucket": False,
            "parentFormat": {"id": "terms"},
            "include": [],
            "exclude": [],
            "includeIsRegex": False,
            "excludeIsRegex": False,
        },
    }


def _xy(panel: Panel, accessors: list[str]) -> Object:
    layer: Object = {
        "layerId": _LAYER,
        "layerType": "data",
        "seriesType": panel.kind,
        "xAccessor": "time",
        "accessors": accessors,
        "position": "top",
        "showGridlines": False,
    }
    if panel.split:
        layer["splitAccessor"] = "split"
    return {
        "preferredSeriesType": panel.kind,
        "legend": {"isVisible": True, "position": "right"},
        "valueLabels": "hide",
        "fittingFunction": "None",
        "layers": [layer],
    }


def _table(columns: Iterable[str]) -> Object:
    return {"layerId": _LAYER, "layerType": "data", "columns": [{"columnId": column} for column in columns]}


def text() -> str:
    """Return the file's text, an object a line."""
    return "".join(f"{_text(one)}\n" for one in objects())


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")

"""What is wrong with a dashboard's JSON: the rules of Grafana's own dashboard-linter, and what bit people elsewhere.

Works on plain data, so it judges what users import, not the code that made it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, Final, NamedTuple

from ..alerts.buckets import HISTOGRAMS
from ..promql.check import Schema, inferred_labels, problems, without_macros
from .build import panels_of
from .dashboard import SCHEMA_VERSION, TITLES
from .latency import OF_PLUGIN
from .limits import Limits
from .queries import EVERYTHING, Query, other_queries, panels, queries
from .variables import LABELS, labels_of, matcher

Data = Mapping[str, Any]

KINDS: Final = frozenset(
    {"bargauge", "heatmap", "logs", "nodeGraph", "row", "stat", "state-timeline", "status-history", "table",
     "timeseries", "traces"}
)  # fmt: skip
_WINDOW: Final = re.compile(r"\[([^\]]+)\]")
_RATIO: Final = re.compile(r"\)\s*/|histogram_quantile")
_LINKED: Final = re.compile(r"/d/([\w-]+)")
_LEGEND: Final = re.compile(r"\{\{(\w+)\}\}")
_FIELD: Final = re.compile(r"__field\.labels\.(\w+)")
_CELL: Final = re.compile(r"__data\.fields\.(\w+)")
_GRID: Final = 24


class Context(NamedTuple):
    """What dashboards are judged by: series that there are, and numbers of the SLA."""

    known: Schema
    limits: Limits


def findings(data: Data, context: Context) -> list[str]:
    """Return what is wrong with a dashboard, each with the rule's name."""
    return [
        f"{data['uid']}: {rule.__name__.strip('_').replace('_', '-')}: {text}"
        for rule in RULES
        for text in rule(data, context)
    ]


def _datasource_variable(data: Data, _context: Context) -> Iterator[str]:
    first = data["templating"]["list"][0]
    if (first["name"], first["type"], first["query"]) != ("datasource", "datasource", "prometheus"):
        yield f"expected the variable 'datasource' for prometheus first, found {first['name']!r}"


def _job_and_place_variables(data: Data, _context: Context) -> Iterator[str]:
    variables = {one["name"]: one for one in data["templating"]["list"]}
    if "job" not in variables:
        yield "no variable 'job'"
    if not {"instance", "server"} & {*variables}:
        yield "no variable 'instance' or 'server'"
    for name, one in variables.items():
        if one["type"] == "query" and not (one["includeAll"] and one["multi"] and one["allValue"]):
            yield f"variable {name!r}: expected includeAll, multi and an allValue"


def _variables_reload_on_time_change(data: Data, _context: Context) -> Iterator[str]:
    for one in data["templating"]["list"]:
        if one["type"] == "query" and one["refresh"] != 2:
            yield f"variable {one['name']!r}: expected refresh 2, found {one['refresh']}"


def _datasources_are_variables(data: Data, _context: Context) -> Iterator[str]:
    offered = {f"${{{one['name']}}}": one["query"] for one in data["templating"]["list"] if one["type"] == "datasource"}
    places = [
        (panel["title"], one.get("datasource")) for _, panel, _ in panels(data) for one in (panel, *panel["targets"])
    ]
    places += [(one["name"], one.get("datasource")) for one in data["annotations"]["list"]]
    places += [(one["name"], one.get("datasource")) for one in data["templating"]["list"] if one["type"] == "query"]
    for place, source in places:
        if not isinstance(source, dict) or offered.get(source.get("uid", "")) != source.get("type"):
            yield f"{place}: expected a data source variable, found {source!r}"


def _titles_and_descriptions(data: Data, _context: Context) -> Iterator[str]:
    for _, panel, _ in panels(data):
        if not panel.get("title") or "?" not in panel.get("description", ""):
            yield f"{panel.get('title')!r}: expected a title, and a question as description"


def _units(data: Data, _context: Context) -> Iterator[str]:
    for _, panel, _ in panels(data):
        if not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"{panel['title']}: no unit"


def _targets(data: Data, _context: Context) -> Iterator[str]:
    for _, panel, _ in panels(data):
        if not panel["targets"]:
            yield f"{panel['title']}: no query"
    for query in queries(data):
        if not query.expression and query.source == "prometheus":
            yield f"{query.panel}: {query.ref_id}: an empty query"


def _promql(data: Data, context: Context) -> Iterator[str]:
    for query in _of_prometheus(data):
        for problem in problems(query.runnable(), context.known):
            yield f"{query.panel}: {query.ref_id}: {problem}"


def _windows(data: Data, _context: Context) -> Iterator[str]:
    for query in queries(data):
        for window in _WINDOW.findall(query.expression if query.source == "prometheus" else ""):
            if not (window == "$__rate_interval" or (window == "$__range" and query.instant)):
                yield f"{query.panel}: {query.ref_id}: expected [$__rate_interval], found [{window}]"


def _variables_reach_every_query(data: Data, context: Context) -> Iterator[str]:
    names = {one["name"] for one in data["templating"]["list"]} & {*LABELS}
    for query in queries(data):
        if query.source != "prometheus":
            continue
        for series, given in _selectors(query.expression):
            labels = labels_of(series, context.known)
            for name in names:
                if LABELS[name] in labels and matcher(name, series) not in given:
                    yield f"{query.panel}: {query.ref_id}: ${name} does not reach {series}"


def _uneditable(data: Data, _context: Context) -> Iterator[str]:
    if data["editable"]:
        yield "expected editable: false, the code is where it is edited"


def _kinds(data: Data, _context: Context) -> Iterator[str]:
    for panel in panels_of(data):
        if panel["type"] not in KINDS:
            yield f"{panel['title']}: the panel type {panel['type']!r} is dead or unknown to the house"


def _duplicates(data: Data, _context: Context) -> Iterator[str]:
    every = panels_of(data)
    for what, values in (
        ("id", [panel["id"] for panel in every]),
        ("title", [panel["title"] for panel in every]),
        ("variable", [one["name"] for one in data["templating"]["list"]]),
    ):
        yield from (f"{what} {value!r} {count} times" for value, count in Counter(values).items() if count > 1)
    for _, panel, _ in panels(data):
        ids = Counter(target["refId"] for target in panel["targets"])
        yield from (f"{panel['title']}: refId {value!r} {count} times" for value, count in ids.items() if count > 1)


def _grid(data: Data, _context: Context) -> Iterator[str]:
    # Panels of a collapsed row lie below its bar only once it is opened, which moves what follows.
    for group in (data["panels"], *(panel["panels"] for panel in data["panels"] if panel["type"] == "row")):
        for panel in group:
            place = panel["gridPos"]
            if place["x"] < 0 or place["x"] + place["w"] > _GRID or place["w"] < 1 or place["h"] < 1:
                yield f"{panel['title']}: lies outside of the grid"
        for one, other in combinations(group, 2):
            if _overlap(one["gridPos"], other["gridPos"]):
                yield f"{one['title']} and {other['title']} overlap"
        for line in _lines(group):
            if sum(place["w"] for _, place in line) != _GRID or len({place["h"] for _, place in line}) > 1:
                yield f"{', '.join(title for title, _ in line)}: leave a hole in the page"


def _exemplars(data: Data, _context: Context) -> Iterator[str]:
    for _, panel, _ in panels(data):
        for target in panel["targets"]:
            if target.get("exemplar") and target.get("instant"):
                yield f"{panel['title']}: {target['refId']}: an instant query has no exemplars"


def _no_value(data: Data, _context: Context) -> Iterator[str]:
    for _, panel, _ in panels(data):
        text = panel["fieldConfig"]["defaults"].get("noValue")
        ratio = any(_RATIO.search(target.get("expr", "")) for target in panel["targets"])
        if not text:
            yield f"{panel['title']}: no noValue{', and a ratio is empty without traffic' if ratio else ''}"


def _thresholds(data: Data, context: Context) -> Iterator[str]:
    allowed = _limits_by_series(context.limits)
    for _, panel, _ in panels(data):
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        drawn = {step["value"] for step in steps} - {None}
        if steps[0]["value"] is not None or len(drawn) != len(steps) - 1:
            yield f"{panel['title']}: expected a first step of null, then numbers"
        series = {name for target in panel["targets"] for name, _ in _selectors(target.get("expr", ""))}
        if not series or not {*series} <= {*allowed}:
            continue
        wanted = set().union(*(allowed[name] for name in series))
        if not drawn <= wanted:
            yield f"{panel['title']}: draws {sorted(drawn - wanted)}, the SLA says {sorted(wanted)}"


def _links(data: Data, _context: Context) -> Iterator[str]:
    for _, panel, _ in panels(data):
        urls = [link["url"] for link in panel.get("links", ())]
        if panel["datasource"]["type"] == "prometheus" and not urls:
            yield f"{panel['title']}: no link to a dashboard that explains it"
        for uid in _LINKED.findall(str(panel)):
            if uid not in TITLES:
                yield f"{panel['title']}: links to {uid}, which is none of ours"
        if any(f"/d/{data['uid']}?" in url for url in urls):
            yield f"{panel['title']}: is explained by itself"


def _names_of_labels(data: Data, context: Context) -> Iterator[str]:
    """Legends, links and keys of tables name labels that the queries have."""
    for _, panel, _ in panels(data):
        if panel["datasource"]["type"] != "prometheus":
            continue
        text = json.dumps(panel)
        headings = {name for one in panel.get("transformations", ()) for name in _renamed(one).values()}
        for heading in {*_CELL.findall(text)} - headings:
            yield f"{panel['title']}: a link reads the column {heading!r}, which is not there"
        keys = {
            name for one in panel.get("transformations", ()) for name in _renamed(one) if not name.startswith("Value")
        }
        linked = {*_FIELD.findall(text)}
        for target in panel["targets"]:
            expr = without_macros(target["expr"], EVERYTHING)
            known = inferred_labels(expr, context.known) | (
                {"le"} if target.get("format") == "heatmap" else frozenset()
            )
            named = {*_LEGEND.findall(target["legendFormat"])} | linked
            named |= keys if target.get("format") == "table" else set()
            for label in sorted(named - known):
                yield f"{panel['title']}: {target['refId']}: names the label {label!r}, which the query has not"


def _renamed(transformation: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = transformation["options"].get("renameByName", {})
    return found


def _rows_name_what_they_need(data: Data, _context: Context) -> Iterator[str]:
    for panel in data["panels"]:
        if panel["type"] == "row" and panel["collapsed"] != panel["title"].endswith(")"):
            yield f"{panel['title']}: a row is collapsed if, and only if, its title says what it needs"


def _shape(data: Data, _context: Context) -> Iterator[str]:
    if data["schemaVersion"] != SCHEMA_VERSION:
        yield f"schemaVersion {data['schemaVersion']}"
    if "id" in data:
        yield "an id is left in, which means another dashboard in another Grafana"
    if data["uid"] not in TITLES:
        yield f"uid {data['uid']!r} is none of ours"
    yield from (f"null at {path}" for path in _nulls(data, "") if not path.endswith(".steps[0].value"))


RULES: Final[tuple[Callable[[Data, Context], Iterator[str]], ...]] = (
    _datasource_variable, _job_and_place_variables, _variables_reload_on_time_change, _datasources_are_variables,
    _titles_and_descriptions, _units, _targets, _promql, _windows, _variables_reach_every_query, _uneditable, _kinds,
    _duplicates, _grid, _exemplars, _no_value, _thresholds, _links, _names_of_labels, _rows_name_what_they_need, _shape,
)  # fmt: skip


def _of_prometheus(data: Data) -> list[Query]:
    return [query for query in (*queries(data), *other_queries(data)) if query.source == "prometheus"]


def _selectors(expression: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each series of a query with its matchers as they are written, variables included."""
    from promql_parser import parse  # noqa: PLC0415  an extra, as in promql/check.py

    if not expression:
        return
    # Variables stand in quotes, where they parse; windows do not.
    nodes: list[Any] = [parse(re.sub(r"\[\$__[\w]+\]", "[5m]", expression))]
    while nodes:
        node = nodes.pop()
        if type(node).__name__ == "VectorSelector":
            yield node.name, frozenset(_written(one) for one in node.matchers.matchers)
            continue
        for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
            child = getattr(node, name, None)
            if child is not None and not isinstance(child, str | float):
                nodes.append(child)
        nodes.extend(getattr(node, "args", ()))


_OPERATORS: Final = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}


def _written(one: Any) -> str:
    return f'{one.name}{_OPERATORS[str(one.op).rpartition(".")[2]]}"{one.value}"'


def _overlap(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def _lines(group: Iterable[Mapping[str, Any]]) -> Iterable[list[tuple[str, Mapping[str, int]]]]:
    """Return the panels that begin at one height, for each height."""
    found: dict[int, list[tuple[str, Mapping[str, int]]]] = {}
    for panel in group:
        found.setdefault(panel["gridPos"]["y"], []).append((panel["title"], panel["gridPos"]))
    return found.values()


def _nulls(value: Any, path: str) -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _nulls(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _nulls(inner, f"{path}[{index}]")


def _limits_by_series(limits: Limits) -> dict[str, set[float]]:
    """Return what may be drawn into a panel that shows nothing but this series."""
    single: dict[str, tuple[float | None, ...]] = {
        "vllm:num_requests_waiting": (limits.queue_length,),
        "vllm:kv_cache_usage_perc": (limits.kv_cache,),
        "vllm:num_preemptions_total": (limits.preemptions,),
        "nvidia_gpu_temperature_celsius": (limits.temperature, limits.memory_temperature),
        "nvidia_gpu_memory_used_bytes": (limits.memory_share,),
        "nvidia_gpu_memory_total_bytes": (limits.memory_share,),
        "nvidia_gpu_power_watts": (limits.power_share,),
        "nvidia_gpu_power_limit_watts": (limits.power_share,),
        "nvidia_gpu_throttle_seconds_total": (limits.throttle,),
        "nvidia_gpu_ecc_errors_total": (limits.corrected_ecc,),
    }
    found = {name: {value for value in values if value is not None} for name, values in single.items()}
    for table in (HISTOGRAMS, OF_PLUGIN):
        for indicator, histogram in table.items():
            for part in ("_bucket", "_sum", "_count"):
                found[f"{histogram}{part}"] = {*limits.promises[indicator]}
    factors = {1.0, *(tier.factor for tier in limits.tiers)}
    found["slo:objective:ratio"] = factors
    found |= {f"slo:sli_error:ratio{window}": factors for window in limits.burn_windows}
    return found

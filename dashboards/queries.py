"""Every query of a dashboard, as one list for checks, tests and pictures."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from ..promql.check import without_macros

# What a variable holds while everything is chosen.
EVERYTHING: Final = {
    "job": ".*", "instance": ".*", "server": ".*", "model": ".*", "gpu": ".*", "service": ".+", "slo": ".*",
    "trace_service": "vllm", "trace_id": "",
}  # fmt: skip
_LABEL_VALUES: Final = re.compile(r"label_values\((.+), (\w+)\)")


class Query(NamedTuple):
    """One query.

    Attributes:
        dashboard: its uid.
        row: title of the row that the panel lies in; a collapsed row's title ends with what it needs, in parentheses.
        panel: its title; of an annotation or variable the name, with what it is.
        ref_id: within the panel.
        source: prometheus, jaeger or elasticsearch.
        expression: as Grafana has it, with macros and variables.
        instant: asked for one point in time, not for a range.
        needs: without which it finds nothing, such as a flag of vLLM; empty for nothing.
        no_value: what the panel says where nothing is found.
    """

    dashboard: str
    row: str
    panel: str
    ref_id: str
    source: str
    expression: str
    instant: bool
    needs: str
    no_value: str

    def runnable(self, variables: Mapping[str, str] = EVERYTHING) -> str:
        """Return what Prometheus would get, with variables chosen as given and windows of five minutes."""
        return without_macros(self.expression, variables)


def queries(data: Mapping[str, Any]) -> Iterator[Query]:
    """Yield the queries of a dashboard's panels."""
    for row, panel, needs in panels(data):
        for target in panel["targets"]:
            yield Query(
                data["uid"],
                row,
                panel["title"],
                target["refId"],
                target["datasource"]["type"],
                target.get("expr", target.get("query", "")),
                bool(target.get("instant")),
                needs,
                panel["fieldConfig"]["defaults"]["noValue"],
            )


def other_queries(data: Mapping[str, Any]) -> Iterator[Query]:
    """Yield what variables and annotations ask Prometheus; of a variable the series whose labels it offers."""

    def asked(what: str, expression: str, *, instant: bool) -> Query:
        return Query(data["uid"], "", what, "", "prometheus", expression, instant, "", "")

    for one in data["annotations"]["list"]:
        yield asked(f"annotation {one['name']}", one["expr"], instant=False)
    for one in data["templating"]["list"]:
        found = _LABEL_VALUES.fullmatch(one["definition"]) if one["type"] == "query" else None
        if found:
            yield asked(f"variable {one['name']}", f"count by ({found[2]}) ({found[1]})", instant=True)


def panels(data: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (title of the row, panel, what it needs) in the order of the page, without the bars of rows."""
    row = ""
    for panel in data["panels"]:
        if panel["type"] != "row":
            yield row, panel, ""
            continue
        row = panel["title"]
        for inner in panel["panels"]:
            yield row, inner, row[row.rindex("(") + 1 : -1] if "(" in row else ""

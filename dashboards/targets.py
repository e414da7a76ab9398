"""Queries as grafanalib targets, with what grafanalib does not know: exemplars, today's Jaeger and Elasticsearch."""

from typing import Any, Final

import attrs
from grafanalib import core

PROMETHEUS: Final = {"type": "prometheus", "uid": "${datasource}"}
JAEGER: Final = {"type": "jaeger", "uid": "${jaeger}"}
ELASTICSEARCH: Final = {"type": "elasticsearch", "uid": "${elasticsearch}"}


@attrs.define(slots=False, kw_only=True)
class PromTarget(core.Target):
    """A PromQL query.

    Attributes:
        exemplar: ask for exemplars, too; range queries only.
    """

    exemplar: bool = False

    def to_json_data(self) -> dict[str, Any]:
        """Return the JSON."""
        data: dict[str, Any] = {
            "datasource": PROMETHEUS,
            "editorMode": "code",
            "expr": self.expr,
            "instant": self.instant,
            "legendFormat": self.legendFormat or "__auto",
            "range": not self.instant,
            "refId": self.refId,
        }
        if self.exemplar:
            data["exemplar"] = True
        if self.format != core.TIME_SERIES_TARGET_FORMAT:
            data["format"] = self.format
        return data


@attrs.define(slots=False, kw_only=True)
class LogTarget(core.Target):
    """A Lucene query whose log lines Elasticsearch returns."""

    def to_json_data(self) -> dict[str, Any]:
        """Return the JSON."""
        return {
            "bucketAggs": [],
            "datasource": ELASTICSEARCH,
            "metrics": [{"id": "1", "type": "logs", "settings": {"limit": "500"}}],
            "query": self.expr,
            "refId": self.refId,
            "timeField": "@timestamp",
        }


@attrs.define(slots=False, kw_only=True)
class TraceTarget(core.Target):
    """One trace by its id, or a search for traces.

    Attributes:
        service: search for traces of this service; empty: `expr` is a trace id.
        tags: of the search, logfmt.
    """

    service: str = ""
    tags: str = ""
    limit: int = 20

    def to_json_data(self) -> dict[str, Any]:
        """Return the JSON."""
        data: dict[str, Any] = {"datasource": JAEGER, "refId": self.refId}
        if not self.service:
            return {**data, "query": self.expr}
        return {**data, "queryType": "search", "service": self.service, "tags": self.tags, "limit": self.limit}


def query(expr: str, legend: str = "", *, exemplar: bool = False) -> PromTarget:
    """Return a query over the dashboard's time range."""
    return PromTarget(expr=expr, legendFormat=legend, exemplar=exemplar)


def now(expr: str, legend: str = "") -> PromTarget:
    """Return a query at the end of the time range."""
    return PromTarget(expr=expr, legendFormat=legend, instant=True)


def column(expr: str) -> PromTarget:
    """Return a query at the end of the time range, as a table."""
    return PromTarget(expr=expr, instant=True, format="table")


def buckets(histogram: str, *, exemplar: bool = False) -> PromTarget:
    """Return the query of a heatmap: how many events fell into each bucket of a histogram."""
    expr = f"sum by (le) (increase({histogram}_bucket[$__rate_interval]))"
    return PromTarget(expr=expr, legendFormat="{{le}}", format="heatmap", exemplar=exemplar)


def rate(counter: str, matchers: str = "") -> str:
    """Return the rate of a counter: `rate(x{y="z"}[$__rate_interval])`."""
    return f"rate({counter}{f'{{{matchers}}}' if matchers else ''}[$__rate_interval])"


def total(by: str, counter: str, matchers: str = "") -> str:
    """Return the sum of a counter's rates, by labels or of all."""
    return f"sum by ({by}) ({rate(counter, matchers)})" if by else f"sum({rate(counter, matchers)})"


def quantile(share: float, histogram: str, by: str = "") -> str:
    """Return a quantile over everything that `by` leaves together, absent without events instead of NaN."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({histogram}_bucket[$__rate_interval]))) >= 0"


def mean(histogram: str, by: str = "") -> str:
    """Return the mean of a histogram's events."""
    return ratio(rate(f"{histogram}_sum"), rate(f"{histogram}_count"), by)


def ratio(part: str, whole: str, by: str = "") -> str:
    """Return one sum over another, absent where there is nothing to divide by."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} ({part}) / ({grouped} ({whole}) > 0)"

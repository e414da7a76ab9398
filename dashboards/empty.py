"""Runs every query against a Prometheus and tells which find nothing there."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..prometheus_api import Prometheus, QueryError
from .queries import Query


class Result(NamedTuple):
    """What one query found.

    Attributes:
        series: how many; 0 where it failed.
        error: Prometheus' words, empty when it worked.
    """

    query: Query
    series: int
    error: str


def results(some: Iterable[Query], prometheus: Prometheus) -> Iterator[Result]:
    """Yield what each PromQL query finds now; raises ConfigError where no Prometheus answers at all."""
    known: dict[str, tuple[int, str]] = {}  # panels share queries
    for query in some:
        if query.source != "prometheus":
            continue
        text = query.runnable()
        if text not in known:
            try:
                known[text] = (len(prometheus.instant(text)), "")
            except QueryError as error:
                known[text] = (0, str(error))
        yield Result(query, *known[text])

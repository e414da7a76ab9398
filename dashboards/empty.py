"""Runs every query against a Prometheus and tells which find nothing there, and why."""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from ..promql.api import Prometheus, QueryError
from .queries import Query

_SELECTED: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{")
# What families need that no row's title says; the first that fits.
_NEEDS: Final = (
    ("vllm_vitals_host_", "--host on, or no node_exporter on that machine"),
    ("vllm_vitals_spot_", "a spot notice (--spot)"),
    ("vllm_vitals_engine_gpu_memory_", "processes of engines that the driver shows"),
    ("vllm_vitals_requests_", "tracing plugin, and its page scraped"),
    ("vllm_vitals_request_", "tracing plugin, and its page scraped"),
    ("vllm_vitals_goodput_", "tracing plugin, and its page scraped"),
    ("vllm_vitals_engine_fatal_", "an error that ends an engine"),
    ("nvidia_gpu_xid_", "an XID event"),
    ("nvidia_gpu_call_failures_", "a driver call that fails"),
    ("vllm_vitals_part_failures_", "a failure inside the exporter"),
    ("vllm_vitals_discovery_failures_", "a discovery that fails"),
    ("vllm_vitals_server_request_page_failures_", "a request page that did not come"),
    ("ALERTS", "an alert that is pending or fires"),
    ("vllm_vitals_http_rejected_", "a request that the exporter refuses"),
    ("vllm:mm_", "multimodal requests"),
    ("nvidia_gpu_", "a GPU and driver that report it"),
)


class Result(NamedTuple):
    """What one query found.

    Attributes:
        series: how many; 0 where it failed.
        error: Prometheus' words, empty when it worked.
        why: what an empty answer needs, or what is there without a value.
    """

    query: Query
    series: int
    error: str
    why: str = ""


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
        series, problem = known[text]
        yield Result(query, series, problem, "" if series or problem else _why(query, text, prometheus, known))


def _why(query: Query, text: str, prometheus: Prometheus, known: dict[str, tuple[int, str]]) -> str:
    """Return why a query finds nothing: what its row needs, what its absent series need, or that none has a value."""
    if query.needs:
        return f"needs {query.needs}"
    for name in dict.fromkeys(_SELECTED.findall(text)):
        asked = f"count({name})"
        if asked not in known:
            known[asked] = (len(prometheus.instant(asked)), "")
        if not known[asked][0]:
            need = next((words for begin, words in _NEEDS if name.startswith(begin)), "")
            return f"needs {need}: no {name} is there" if need else f"no {name} is there"
    return "its series are there, and none has such a value now"

"""What the plugin did itself, as metrics and as the log line of each minute."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from ...vocabulary.ours import PLUGIN
from ..counters import (
    AUDIT_FAILURES,
    EXPORT_FAILURES,
    FORCED_SAMPLING_REFUSED,
    HOOK_FAILURES,
    HOOK_FALLBACKS,
    REQUESTS_DROPPED,
    SINK_FAILURES,
    SPANS_DROPPED,
    SPANS_EMITTED,
    SPANS_FAILED,
    Counters,
)
from .gpu_facts import GPU_FACTS_FAILURES
from .values import Series, Values

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_INFO: Final = "vllm_vitals_tracing_info"

# kind -> family, and the value of its only label where that is fixed; None where it is the count's detail.
_SERIES: Final[Mapping[str, tuple[str, str | None]]] = {
    SPANS_EMITTED: ("vllm_vitals_tracing_spans_total", "emitted"),
    SPANS_DROPPED: ("vllm_vitals_tracing_spans_total", "dropped"),
    SPANS_FAILED: ("vllm_vitals_tracing_spans_total", "failed"),
    EXPORT_FAILURES: ("vllm_vitals_tracing_export_failures_total", ""),
    REQUESTS_DROPPED: ("vllm_vitals_tracing_requests_dropped_total", ""),
    HOOK_FALLBACKS: ("vllm_vitals_tracing_hook_fallbacks_total", None),
    HOOK_FAILURES: ("vllm_vitals_tracing_hook_failures_total", None),
    SINK_FAILURES: ("vllm_vitals_tracing_sink_failures_total", None),
    FORCED_SAMPLING_REFUSED: ("vllm_vitals_tracing_forced_sampling_refused_total", ""),
    AUDIT_FAILURES: ("vllm_vitals_tracing_audit_failures_total", ""),
    GPU_FACTS_FAILURES: ("vllm_vitals_tracing_gpu_facts_failures_total", ""),
}


class SelfMetrics:
    """The counts of this process.

    Args:
        counters: the plugin's.
        info: mode, export, version and vllm_version, the labels of vllm_vitals_tracing_info.
    """

    def __init__(self, counters: Counters, info: Mapping[str, str]) -> None:
        self._counters = counters
        self._info = tuple(info.get(label, "") for label in PLUGIN[_INFO].labels)

    def values(self) -> Values:
        """Return the counts as series."""
        return self_values(self._counters.snapshot(), self._info)

    def line(self) -> str:
        """Return the counts in words, for the log."""
        return minute_line(self._counters)

    def register(self) -> None:
        """Put the counts into prometheus_client's default registry, which vLLM's /metrics shows."""
        from prometheus_client import REGISTRY  # noqa: PLC0415  in vLLM's environment, and only where vLLM serves HTTP

        with contextlib.suppress(ValueError):  # they are there already
            REGISTRY.register(_Collector(self.values))


def self_values(counts: Mapping[tuple[str, str], int], info: tuple[str, ...]) -> Values:
    """Return the counts as series; those that have no detail are there with 0 from the start."""
    numbers: dict[Series, float] = {(_INFO, info): 1}
    for family, label in _SERIES.values():
        if label is not None:
            numbers[family, (label,) if label else ()] = 0
    for (kind, detail), count in counts.items():
        if kind in _SERIES:
            family, label = _SERIES[kind]
            labels = (detail,) if label is None else (label,) if label else ()
            numbers[family, labels] = numbers.get((family, labels), 0) + count
    return Values(numbers, {})


def minute_line(counters: Counters) -> str:
    """Return the counts since the start in words; equal texts mean that nothing happened in between."""
    words = [
        f"{counters.total(SPANS_EMITTED)} spans emitted",
        f"{counters.total(SPANS_DROPPED)} dropped",
        f"{counters.total(SPANS_FAILED)} failed",
    ]
    for (kind, detail), count in sorted(counters.snapshot().items()):
        if kind not in {SPANS_EMITTED, SPANS_DROPPED, SPANS_FAILED} and count:
            words.append(f"{kind.replace('_', ' ')}{f' of {detail}' if detail else ''}: {count}")
    return f"tracing since the start: {', '.join(words)}"


class _Collector:
    """Gives a registry of prometheus_client the values; a scrape of vLLM's never sees it fail."""

    def __init__(self, values: Callable[[], Values]) -> None:
        self._values = values

    def collect(self) -> "Iterator[Metric]":
        """Yield the families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415  see register

        try:
            numbers = self._values().numbers
        except Exception:  # a fault of ours must not take vLLM's page away
            return
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for (family, labels), number in sorted(numbers.items()):
            if family not in families:
                metric = PLUGIN[family]
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                families[family] = kind(family, metric.help, labels=metric.labels)
            families[family].add_metric(labels, number)
        yield from families.values()

    # What is there from the start; without it a registry could not tell that the families are taken.
    describe = collect

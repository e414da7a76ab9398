"""The text of the plugin's metrics: OpenMetrics 1.0 with exemplars, or text 0.0.4 without."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from ...vocabulary.ours import PLUGIN, Metric
from .values import Exemplar, Histogram, Series, Values

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_UNITS: Final = ("seconds",)


def render(values: Values, *, openmetrics: bool) -> bytes:
    """Return the page, families in the vocabulary's order; the first line is a TYPE line."""
    series_of: dict[str, list[Series]] = defaultdict(list)
    for series in (*values.numbers, *values.histograms):
        series_of[series[0]].append(series)
    lines: list[str] = []
    for family, metric in PLUGIN.items():
        if family not in series_of:
            continue
        lines += _header(metric, openmetrics=openmetrics)
        for series in sorted(series_of[family]):
            pairs = [
                f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(metric.labels, series[1], strict=True)
            ]
            if metric.kind == "histogram":
                lines += _histogram(family, pairs, values.histograms[series], exemplars=openmetrics)
            else:
                lines.append(f"{family}{_braces(pairs)} {_number(values.numbers[series])}")
    if openmetrics:
        lines.append("# EOF")
    return "\n".join((*lines, "")).encode(errors="replace")


def _header(metric: Metric, *, openmetrics: bool) -> list[str]:
    """Return TYPE, UNIT and HELP. A counter's samples end with _total; OpenMetrics leaves that out of its name."""
    name = metric.name.removesuffix("_total") if openmetrics else metric.name
    unit = next((unit for unit in _UNITS if openmetrics and name.endswith(f"_{unit}")), "")
    return [
        f"# TYPE {name} {metric.kind}",
        *([f"# UNIT {name} {unit}"] if unit else []),
        f"# HELP {name} {metric.help}",
    ]


def _histogram(family: str, pairs: list[str], histogram: Histogram, *, exemplars: bool) -> Iterator[str]:
    labels = ",".join(pairs)
    rows = zip(
        (*map(repr, map(float, histogram.bounds)), "+Inf"),
        accumulate(histogram.counts),
        histogram.exemplars,
        strict=True,
    )
    count = 0
    for bound, count, exemplar in rows:
        suffix = _exemplar(exemplar) if exemplars and exemplar is not None else ""
        yield f'{family}_bucket{{{labels},le="{bound}"}} {count}{suffix}'
    yield f"{family}_count{_braces(pairs)} {count}"
    yield f"{family}_sum{_braces(pairs)} {_number(histogram.sum)}"


def _exemplar(exemplar: Exemplar) -> str:
    """Return an exemplar; its labels have 63 characters, OpenMetrics allows 128."""
    trace_id, span_id, value, at = exemplar
    return f' # {{trace_id="{trace_id}",span_id="{span_id}"}} {value!r} {at:.3f}'


def _braces(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(value)

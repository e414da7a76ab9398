"""The values of the plugin's metrics at one moment, as plain data: what processes hand each other and pages show."""

import json
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final, NamedTuple

from ...vocabulary.ours import PLUGIN

# (family, label values in the vocabulary's order)
Series = tuple[str, tuple[str, ...]]

_EXEMPLAR_ID_DIGITS: Final = (32, 16)


class Exemplar(NamedTuple):
    """One observation with its trace; ids in hex, `at` in Unix seconds."""

    trace_id: str
    span_id: str
    value: float
    at: float


class Histogram(NamedTuple):
    """Observations by bucket.

    Attributes:
        bounds: upper bounds, increasing, without infinity.
        counts: observations of each bucket alone; the last one is above all bounds.
        sum: of all observations.
        exemplars: the newest of each bucket, None where there is none.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[Exemplar | None, ...]


class Values(NamedTuple):
    """All series: counters and gauges, and histograms."""

    numbers: dict[Series, float]
    histograms: dict[Series, Histogram]


def merged(parts: Iterable[Values]) -> Values:
    """Return several processes' values as one: what is counted adds up, of gauges the highest stands.

    Histograms of other bounds than the first of their series' are left out: they cannot be added.
    """
    numbers: dict[Series, float] = {}
    histograms: dict[Series, Histogram] = {}
    for part in parts:
        for series, number in part.numbers.items():
            known = numbers.get(series)
            if known is None:
                numbers[series] = number
            else:
                numbers[series] = max(known, number) if PLUGIN[series[0]].kind == "gauge" else known + number
        for series, histogram in part.histograms.items():
            before = histograms.get(series)
            if before is None:
                histograms[series] = histogram
            elif before.bounds == histogram.bounds:
                histograms[series] = _added(before, histogram)
    return Values(numbers, histograms)


def to_json(values: Values, server: str) -> bytes:
    """Return the values as one line; `server` says which server's they are."""
    document = {
        "server": server,
        "numbers": [(*series, number) for series, number in values.numbers.items()],
        "histograms": [(*series, *histogram) for series, histogram in values.histograms.items()],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def from_json(text: bytes, server: str) -> Values:
    """Return what `to_json` wrote; raises ValueError for anything else, another server's values included."""
    try:
        document = json.loads(text)
        if document["server"] != server:
            raise ValueError("another server's")
        numbers = {_series(family, labels): _number(value) for family, labels, value in document["numbers"]}
        histograms = {
            _series(family, labels): _histogram(*histogram) for family, labels, *histogram in document["histograms"]
        }
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not the values of a process: {error!r}") from error
    if any(_is_histogram(series) for series in numbers) or not all(_is_histogram(series) for series in histograms):
        raise ValueError("a family has another kind")
    return Values(numbers, histograms)


def _is_histogram(series: Series) -> bool:
    return PLUGIN[series[0]].kind == "histogram"


def _added(one: Histogram, other: Histogram) -> Histogram:
    return Histogram(
        one.bounds,
        tuple(map(int.__add__, one.counts, other.counts)),
        one.sum + other.sum,
        tuple(map(_newer, one.exemplars, other.exemplars)),
    )


def _newer(one: Exemplar | None, other: Exemplar | None) -> Exemplar | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda exemplar: (exemplar.at, exemplar))


def _series(family: Any, labels: Any) -> Series:
    values = tuple(labels)
    if len(values) != len(PLUGIN[family].labels) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{family} has other labels")
    return family, values


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no value")
    return value


def _histogram(bounds: Any, counts: Any, total: Any, exemplars: Any) -> Histogram:
    ordered = tuple(map(_number, bounds))
    if not (len(ordered) + 1 == len(counts) == len(exemplars)) or any(low >= high for low, high in pairwise(ordered)):
        raise ValueError("bounds, counts and exemplars do not belong together")
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts are integers")
    return Histogram(
        ordered,
        tuple(counts),
        _number(total),
        tuple(None if exemplar is None else _exemplar(*exemplar) for exemplar in exemplars),
    )


def _exemplar(trace_id: Any, span_id: Any, value: Any, at: Any) -> Exemplar:
    for text, digits in zip((trace_id, span_id), _EXEMPLAR_ID_DIGITS, strict=True):
        if len(text) != digits or not set(text) <= set("0123456789abcdef"):
            raise ValueError(f"{text!r} is no id")
    return Exemplar(trace_id, span_id, _number(value), _number(at))

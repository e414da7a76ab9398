"""What a running Prometheus says of an SLA: selectors that match nothing, and the error of promises between buckets."""

from collections.abc import Callable, Iterator, Mapping

from ..promql.api import Prometheus
from ..settings.scalars import ConfigError
from .buckets import HISTOGRAMS, le, position
from .promises import duration, percent
from .selectors import matchers, of_target
from .sla import LATENCIES, Indicator, Objective, Service, Sla

_PAST = "7d"


def refuse_unmatched(sla: Sla, prometheus: Prometheus, place: Callable[[str], str]) -> None:
    """Raise ConfigError for a selector that matches nothing there; `place` turns a key into what opens the error."""
    for number, service in enumerate(sla.services):
        up = "vllm_vitals_server_up" if service.via == "exporter" else "up"
        for metric, selector in (
            (up, of_target(service)),
            ("vllm:num_requests_running", service.selector),
        ):
            _refuse(prometheus, metric, selector, place(f"services[{number}].selector"))
    _refuse(prometheus, "vllm_vitals_nvml_up", sla.gpus.selector, place("gpus.selector"))


def bucket_notes(sla: Sla, prometheus: Prometheus) -> Iterator[str]:
    """Yield, for each promise between two buckets, between which shares the truth of the last week lies."""
    for service in sla.services:
        for indicator, objective in service.objectives:
            if indicator in LATENCIES and not service.custom_buckets:
                yield from _measured(service, indicator, objective, prometheus)


def _measured(service: Service, indicator: Indicator, objective: Objective, prometheus: Prometheus) -> Iterator[str]:
    assert objective.promise.threshold is not None
    where = position(indicator, objective.promise.threshold, custom=False)
    if where.exact:
        return
    histogram = HISTOGRAMS[indicator]

    def counted(part: str, *more: str) -> float:
        found = prometheus.instant(f"sum(increase({histogram}_{part}{matchers(service.selector, *more)}[{_PAST}]))")
        return found[0].value if found else 0.0

    total = counted("count")
    if not total:
        return
    # Not below nothing: increase() extrapolates a bucket of a young engine a little further than the whole.
    lower, upper = (
        max(0.0, 1 - counted("bucket", f'le="{le(bound)}"') / total) for bound in (where.lower, where.upper)
    )
    read = (1 - where.share) * lower + where.share * upper
    yield (
        f"{service.name}: {indicator} {objective.promise}: of the last {_PAST} between {_share(upper)} and "
        f"{_share(lower)} were later than {duration(objective.promise.threshold)}; read as {_share(read)}, and "
        f"{_share(objective.promise.budget)} may be"
    )


def _share(value: float) -> str:
    return f"{percent(round(value, 4))}%"


def _refuse(prometheus: Prometheus, metric: str, selector: Mapping[str, str], place: str) -> None:
    chosen = f"{metric}{matchers(selector)}"
    if prometheus.instant(f"count({chosen})"):
        return
    others = prometheus.instant(f"count by ({', '.join(selector) or 'job'}) ({metric})")
    known = "; ".join(sorted(matchers(series.labels) for series in others)[:5])
    hint = f"{metric} is there with {known}" if known else f"there is no {metric} at all"
    raise ConfigError(f"{place}: expected labels of series on {prometheus.url}, found none for {chosen}; {hint}")

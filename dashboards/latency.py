"""Latency panels: percentiles of a histogram with what is promised as a dashed line."""

from typing import Any, Final

from ..alerts.buckets import HISTOGRAMS
from ..alerts.sla import Indicator
from .fields import PLAIN, RED, SECONDS, Step, dashed
from .limits import Limits
from .panels import NO_TRAFFIC, ModernPanel, timeseries
from .targets import PromTarget, quantile, query

# The plugin's histograms of the same times, with exemplars.
OF_PLUGIN: Final[dict[Indicator, str]] = {
    "ttft": "vllm_vitals_request_time_to_first_token_seconds",
    "tpot": "vllm_vitals_request_time_per_output_token_seconds",
    "e2e": "vllm_vitals_request_e2e_seconds",
    "queue": "vllm_vitals_request_queue_seconds",
}


def percentiles(
    title: str, question: str, indicator: Indicator, limits: Limits, *, plugin: bool = False, **more: Any
) -> ModernPanel:
    """Return p50, p95 and p99 of everything that is chosen, with the promise."""
    histogram = (OF_PLUGIN if plugin else HISTOGRAMS)[indicator]
    targets = [query(quantile(share, histogram), f"p{share * 100:g}", exemplar=plugin) for share in (0.5, 0.95, 0.99)]
    return with_promise(title, question, indicator, limits, *targets, **more)


def with_promise(
    title: str, question: str, indicator: Indicator, limits: Limits, *targets: PromTarget, **more: Any
) -> ModernPanel:
    """Return times over time, with the promise as a line: fixed where all services promise the same, else a query."""
    promised = limits.promises[indicator]
    steps: tuple[Step, ...] = PLAIN
    lines: list[PromTarget] = []
    overrides: list[Any] = []
    if len(promised) == 1:
        steps = ((None, "green"), (min(promised), RED))
    elif promised:
        lines = [query(f'max(slo:threshold:seconds{{slo="{indicator}"}})', "slackest promise")]
        overrides = [dashed("slackest promise")]
    return timeseries(
        title,
        question,
        *targets,
        *lines,
        unit=SECONDS,
        steps=steps,
        overrides=overrides,
        **{"no_value": NO_TRAFFIC, **more},
    )

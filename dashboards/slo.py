"""SLO: how the error budgets are spent, how fast, by what, and what was told to whom."""

from typing import Final

from .alert_panels import alert_timeline, firing_alerts
from .dashboard import Page
from .fields import (
    COUNT,
    GREEN,
    ORANGE,
    RATIO,
    RED,
    SECONDS,
    TIMES,
    YELLOW,
    above,
    below,
    to_dashboard,
)
from .latency import OF_PLUGIN, percentiles
from .layout import Row
from .limits import Limits
from .panels import NO_TRAFFIC, heatmap, history, timeseries
from .slo_queries import burn_rate
from .tables import Column, table
from .targets import buckets, query
from .variables import MODEL, SERVER, SERVICE, job, label_values

_HEADINGS: Final = {
    "service": "Service",
    "slo": "Promise",
    "model_name": "Model",
    "server": "Server",
    "engine": "Engine",
}
_SLO = label_values("slo", "Promise", 'slo:objective:ratio{service=~"$service"}')

_TO_MODEL: Final = ("This model", to_dashboard("vitals-engine", model="${__data.fields.Model}"))


def page(limits: Limits) -> Page:
    """Return the dashboard."""
    return Page(
        "vitals-slo",
        "Are the promises of the SLA kept, how fast are their error budgets spent, and which requests spend them?",
        (SERVICE, _SLO, job("vllm:num_requests_running"), SERVER, MODEL),
        (_budgets(limits), _burning(limits), _events(limits), _spread(limits), _traces(), _alerts(limits)),
        hours=6,
    )


def _labels(limits: Limits) -> tuple[str, ...]:
    return ("service", "slo", *limits.kept)


def _by(limits: Limits) -> str:
    return ", ".join(_labels(limits))


def _legend(limits: Limits) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in _labels(limits))


def _left(limits: Limits) -> str:
    return f"min by ({_by(limits)}) (slo:error_budget_remaining:ratio)"


def _budgets(limits: Limits) -> Row:
    by, legend, left = _by(limits), _legend(limits), _left(limits)
    day, window = limits.long_windows[2], limits.window
    return Row(
        "How much of each budget is left?",
        (
            table(
                "Promises",
                "Which promise is in danger, and how long does its budget last at the rate of the last day? Little of "
                f"the {window} was seen while the rules are new.",
                {label: _HEADINGS.get(label, label) for label in _labels(limits)},
                Column(
                    "Promised",
                    f"{left} * 0 + on (service, slo) group_left () max by (service, slo) (slo:objective:ratio)",
                    RATIO,
                ),
                Column(
                    f"Kept, {limits.long_windows[0]}",
                    f"1 - max by ({by}) (slo:sli_error:ratio{limits.long_windows[0]})",
                    RATIO,
                ),
                Column(f"Kept, {day}", f"1 - max by ({by}) (slo:sli_error:ratio{day})", RATIO),
                Column("Budget left", left, RATIO, ((None, RED), (0, ORANGE), (0.25, GREEN))),
                Column(
                    f"Burn rate, {limits.burn_windows[0]}",
                    burn_rate(limits.burn_windows[0], by),
                    TIMES,
                    above(limits.tiers[0].factor, warn=1),
                ),
                Column(
                    "Lasts", f"clamp_min({left}, 0) * {_seconds(limits)} / ({burn_rate(day, by)} > 0)", "dtdurations"
                ),
                Column(f"Bad events, {day}", f"sum by ({by}) (slo:sli_bad:increase{day})", COUNT),
                Column("Window seen", f"max by ({by}) (slo:window_seen:ratio)", RATIO, below(0.1, warn=0.9)),
                links={"Model": _TO_MODEL} if "model_name" in limits.kept else {},
                no_value=NO_TRAFFIC,
                height=9,
            ),
            timeseries(
                "Budget left over time",
                "When was the budget spent: at once, or drop by drop?",
                query(left, legend),
                unit=RATIO,
                lowest=None,
                highest=1,
                steps=((None, GREEN), (0, RED)),
                no_value=NO_TRAFFIC,
                width=12,
            ),
            history(
                "Burn rate, cell by cell",
                "In which hours was more than the allowed share bad?",
                query(burn_rate(limits.long_windows[0], by), legend),
                unit=TIMES,
                steps=((None, GREEN), (1, YELLOW), (limits.tiers[0].factor, RED)),
                no_value=NO_TRAFFIC,
                width=12,
            ),
        ),
        see="vitals-overview",
    )


def _seconds(limits: Limits) -> str:
    fastest = limits.tiers[0]  # factor = share of the budget x window / long window
    return f"{fastest.factor * fastest.long / fastest.budget_share:.0f}"


def _burning(limits: Limits) -> Row:
    by, legend = _by(limits), _legend(limits)
    panels = []
    for tier in limits.tiers:
        long, short = limits.long_windows[limits.tiers.index(tier)], _short(limits, tier.name)
        panels.append(
            timeseries(
                f"Burn rate, tier {tier.name}",
                f"Are both windows above {tier.factor:g}? Then the tier fires: {tier.budget_share:.0%} of the "
                f"budget would be gone within {long}.",
                query(burn_rate(long, by), f"{legend} {long}"),
                query(burn_rate(short, by), f"{legend} {short}"),
                unit=TIMES,
                steps=above(tier.factor),
                no_value=NO_TRAFFIC,
                width=6,
                height=9,
            )
        )
    return Row("How fast are they spent?", tuple(panels), see="vitals-engine")


def _short(limits: Limits, name: str) -> str:
    ordered = limits.burn_windows
    tier = next(one for one in limits.tiers if one.name == name)
    seconds = sorted({window for one in limits.tiers for window in (one.short, one.long)})
    return ordered[seconds.index(tier.short)]


def _events(limits: Limits) -> Row:
    by, legend, hour = _by(limits), _legend(limits), limits.long_windows[0]
    return Row(
        "How many events are behind it?",
        (
            timeseries(
                f"Bad events per {hour}",
                "How many requests broke each promise?",
                query(f"sum by ({by}) (slo:sli_bad:increase{hour})", legend),
                unit=COUNT,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                f"Events per {hour}",
                "Out of how many? With few of them one bad request looks like a fire.",
                query(f"sum by ({by}) (slo:sli_total:increase{hour})", legend),
                unit=COUNT,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Goodput",
                "Which share of requests keeps TTFT and TPOT together? Without the plugin's page this is the "
                "best and the worst that vLLM's histograms allow.",
                query(f'1 - max by ({by}) (slo:sli_error:ratio{hour}{{slo=~"goodput.*"}})', legend),
                unit=RATIO,
                highest=1,
                no_value=NO_TRAFFIC,
            ),
        ),
        see="vitals-requests",
    )


def _spread(limits: Limits) -> Row:
    return Row(
        "Which requests spend them?",
        (
            percentiles("Time to first token", "How far from the promise are the slow ones?", "ttft", limits, width=12),
            percentiles(
                "Time per output token", "How far from the promise are the slow ones?", "tpot", limits, width=12
            ),
            heatmap(
                "Time to first token, spread",
                "Are all requests a bit slow, or a few very slow?",
                buckets("vllm:time_to_first_token_seconds"),
                unit=SECONDS,
            ),
            heatmap(
                "Time per output token, spread",
                "Are all answers a bit slow, or a few very slow?",
                buckets("vllm:request_time_per_output_token_seconds"),
                unit=SECONDS,
            ),
        ),
        see="vitals-requests",
    )


def _traces() -> Row:
    return Row(
        "Which request was it?",
        (
            heatmap(
                "Time to first token, with traces",
                "Which request was late? Each dot is one and leads to its trace.",
                buckets(OF_PLUGIN["ttft"], exemplar=True),
                unit=SECONDS,
            ),
            heatmap(
                "Time per output token, with traces",
                "Which answer was slow? Each dot is one and leads to its trace.",
                buckets(OF_PLUGIN["tpot"], exemplar=True),
                unit=SECONDS,
            ),
        ),
        needs="tracing plugin",
        see="vitals-requests",
    )


def _alerts(limits: Limits) -> Row:
    return Row("Who was told?", (firing_alerts(limits), alert_timeline()), see="vitals-pipeline")

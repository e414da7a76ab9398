"""Requests: what became of each request and where its time went, from the plugin, with its trace and its log lines."""

from .dashboard import Page
from .fields import COUNT, PER_SECOND, RATIO, REQUESTS_PER_SECOND, SECONDS, TOKENS_PER_SECOND, above
from .latency import OF_PLUGIN, percentiles
from .layout import Row
from .limits import Limits
from .panels import ModernPanel, heatmap, stat, timeseries
from .targets import buckets, mean, now, quantile, query, rate, ratio, total
from .trace_panels import logs, trace, trace_search
from .variables import TextVar, datasource, job, label_values

_PHASES = ("ingress", "queue", "prefill", "decode")
_NOTHING = "No traffic, or no tracing plugin"
_ALL, _GOOD = "vllm_vitals_requests_total", "vllm_vitals_requests_good_total"
# As goodput counts: a caller who gave up or asked for nonsense breaks no promise.
_OURS = 'outcome=~"ok|server_error|rejected"'
_SERVICE = "${trace_service}"
_SHOW = "/d/vitals-requests?${__url_time_range}&${__all_variables}&var-trace_id=${__value.raw}"


def page(limits: Limits) -> Page:
    """Return the dashboard."""
    series = 'vllm_vitals_requests_total{job=~"$job(-requests)?"'
    return Page(
        "vitals-requests",
        "What became of each request, and where did its time go? From the tracing plugin's page, traces and logs.",
        (
            datasource("jaeger", "jaeger", "Jaeger"),
            datasource("elasticsearch", "elasticsearch", "Logs"),
            job(_ALL, without_suffix=True),
            label_values("server", "Server", f"{series}}}"),
            label_values("model", "Model", f'{series},server=~"$server"}}'),
            TextVar(name="trace_service", label="Traced service", query="vllm"),  # OTEL_SERVICE_NAME of the engines
            TextVar(name="trace_id", label="Trace id", query=""),
        ),
        (_outcomes(), _goodput(), _time(), _percentiles(limits), _dots(), _tokens(), _traces(), _logs()),
    )


def _outcomes() -> Row:
    return Row(
        "What became of them?",
        (
            timeseries(
                "Requests by outcome",
                "Which were answered, refused, failed or given up? The tracing plugin counts this.",
                query(total("outcome", _ALL), "{{outcome}}"),
                unit=REQUESTS_PER_SECOND,
                stacked=True,
                no_value=_NOTHING,
            ),
            timeseries(
                "Given up by callers",
                "Which share was aborted or hung up on? vLLM itself does not count them.",
                query(ratio(rate(_ALL, 'outcome=~"aborted|disconnected"'), rate(_ALL), "model_name"), "{{model_name}}"),
                unit=RATIO,
                no_value=_NOTHING,
            ),
            timeseries(
                "Failed or rejected",
                "Which share failed for our fault?",
                query(
                    ratio(rate(_ALL, 'outcome=~"server_error|rejected"'), rate(_ALL), "model_name"), "{{model_name}}"
                ),
                unit=RATIO,
                no_value=_NOTHING,
            ),
            stat(
                "Errors that end an engine",
                "Did an engine's log tell of running out of memory and the like?",
                now("sum(increase(vllm_vitals_engine_fatal_errors_total[$__range])) or vector(0)", "errors"),
                unit=COUNT,
                steps=above(1),
                width=4,
                see="vitals-gpu",
            ),
            timeseries(
                "Such errors by kind",
                "Of which kind were they?",
                query(
                    "sum by (server, kind) (increase(vllm_vitals_engine_fatal_errors_total[$__rate_interval]))",
                    "{{server}} {{kind}}",
                ),
                unit=COUNT,
                width=10,
                height=5,
                see="vitals-gpu",
                no_value="No errors",
            ),
            timeseries(
                "Preemptions",
                "How often were sequences preempted?",
                query(total("model_name", "vllm_vitals_request_preemptions_total"), "{{model_name}}"),
                unit=PER_SECOND,
                width=10,
                height=5,
            ),
        ),
        see="vitals-engine",
    )


def _goodput() -> Row:
    return Row(
        "How many were good?",
        (
            timeseries(
                "Goodput",
                "Which share of requests kept TTFT and TPOT together?",
                query(ratio(rate(_GOOD), rate(_ALL, _OURS), "model_name"), "{{model_name}}"),
                unit=RATIO,
                highest=1,
                no_value=_NOTHING,
            ),
            timeseries(
                "Good requests",
                "How many good requests per second are served?",
                query(total("model_name", _GOOD), "{{model_name}}"),
                unit=REQUESTS_PER_SECOND,
                no_value=_NOTHING,
            ),
            timeseries(
                "What slow ones missed",
                "Is it the first token or the writing?",
                query(total("missed", "vllm_vitals_requests_slow_total"), "{{missed}}"),
                unit=REQUESTS_PER_SECOND,
                stacked=True,
                no_value=_NOTHING,
                width=4,
            ),
            stat(
                "Targets behind it",
                "Which times does the plugin call good? They should be those of the SLA.",
                now("max by (objective) (vllm_vitals_goodput_target_seconds)", "{{objective}}"),
                unit=SECONDS,
                height=8,
            ),
        ),
        see="vitals-slo",
    )


def _time() -> Row:
    sums = {name: rate(f"vllm_vitals_request_{name}_seconds_sum") for name in _PHASES}
    whole = " + ".join(f"sum({one})" for one in sums.values())
    return Row(
        "Where does their time go?",
        (
            timeseries(
                "Mean time by phase",
                "How long is each phase of a request? Ingress holds tokenising and the way to "
                "the engine, which vLLM's own metrics leave out.",
                *(query(mean(f"vllm_vitals_request_{name}_seconds"), name) for name in _PHASES),
                unit=SECONDS,
                stacked=True,
                no_value=_NOTHING,
            ),
            timeseries(
                "Share of time by phase",
                "Which phase is the one to work on?",
                *(query(f"sum({one}) / (({whole}) > 0)", name) for name, one in sums.items()),
                unit=RATIO,
                stacked=True,
                highest=1,
                no_value=_NOTHING,
            ),
            timeseries(
                "Time lain preempted",
                "How much time did sequences lie aside, as seconds per second?",
                query(total("model_name", "vllm_vitals_request_preempted_seconds_total"), "{{model_name}}"),
                unit=COUNT,
            ),
            *(
                timeseries(
                    f"Time in {name}",
                    question,
                    *(
                        query(
                            quantile(share, f"vllm_vitals_request_{name}_seconds"), f"p{share * 100:g}", exemplar=True
                        )
                        for share in (0.5, 0.95, 0.99)
                    ),
                    unit=SECONDS,
                    no_value=_NOTHING,
                )
                for name, question in (
                    (
                        "ingress",
                        "How long until the engine knows of a request? Long when the API server has no CPU left.",
                    ),
                    ("prefill", "How long from the first pick to the first token?"),
                    ("decode", "How long from first to last token?"),
                )
            ),
        ),
        see="vitals-engine",
    )


def _percentiles(limits: Limits) -> Row:
    return Row(
        "How long do callers wait?",
        (
            percentiles(
                "Time to first token",
                "How long do callers wait for the first token? Dots lead to traces.",
                "ttft",
                limits,
                plugin=True,
                width=6,
            ),
            percentiles(
                "Time per output token",
                "How fast are answers written? Dots lead to traces.",
                "tpot",
                limits,
                plugin=True,
                width=6,
            ),
            percentiles(
                "End-to-end latency",
                "How long does a whole answer take? Dots lead to traces.",
                "e2e",
                limits,
                plugin=True,
                width=6,
            ),
            percentiles(
                "Queue time",
                "How long do requests wait inside the engine? Dots lead to traces.",
                "queue",
                limits,
                plugin=True,
                width=6,
            ),
        ),
        see="vitals-slo",
    )


def _dots() -> Row:
    return Row(
        "Which request was it?",
        (
            _spread("Time to first token, spread", OF_PLUGIN["ttft"]),
            _spread("End-to-end latency, spread", OF_PLUGIN["e2e"]),
        ),
        see="vitals-slo",
    )


def _spread(title: str, histogram: str) -> ModernPanel:
    question = "Which requests were slow? Each dot is one and leads to its trace."
    return heatmap(title, question, buckets(histogram, exemplar=True), unit=SECONDS)


def _tokens() -> Row:
    names = ("input", "cached", "output")
    return Row(
        "What did they cost?",
        (
            *(
                timeseries(
                    f"{name.capitalize()} tokens by outcome",
                    question,
                    query(total("outcome", f"vllm_vitals_request_{name}_tokens_total"), "{{outcome}}"),
                    unit=TOKENS_PER_SECOND,
                    stacked=True,
                    width=6,
                )
                for name, question in zip(
                    names,
                    (
                        "How many prompt tokens were read, and for which kind of request?",
                        "How many of them did a cache hold?",
                        "How many tokens were written, and how many of them for nobody?",
                    ),
                    strict=True,
                )
            ),
            timeseries(
                "Cached share",
                "Which share of prompt tokens did a cache hold?",
                query(
                    ratio(
                        rate("vllm_vitals_request_cached_tokens_total"),
                        rate("vllm_vitals_request_input_tokens_total"),
                        "model_name",
                    ),
                    "{{model_name}}",
                ),
                unit=RATIO,
                highest=1,
                no_value=_NOTHING,
                width=6,
            ),
        ),
        see="vitals-engine",
    )


def _traces() -> Row:
    return Row(
        "What happened to one of them?",
        (
            trace_search(
                "Failed requests", "Which requests ended in an error?", "${trace_service}", "error=true", _SHOW
            ),
            trace_search("Latest requests", "What comes in at the moment?", "${trace_service}", "", _SHOW),
            trace(
                "The trace",
                "Where did the time of this request go? Click a trace id above, or paste one on top.",
                "${trace_id}",
                no_value="No trace id given",
            ),
        ),
        needs="Jaeger",
    )


def _logs() -> Row:
    return Row(
        "What was written?",
        (
            logs(
                "Lines of the trace", "What did vLLM and the plugin write about this request?", 'trace.id:"${trace_id}"'
            ),
            logs(
                "Requests that failed",
                "What is written about requests that failed?",
                "outcome:(server_error OR rejected)",
            ),
            logs(
                "Requests that were given up", "Who hung up, and after how long?", "outcome:(aborted OR disconnected)"
            ),
        ),
        needs="Elasticsearch",
    )

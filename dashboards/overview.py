"""Overview: are we keeping our promises now, and if not, where to look."""

from ..alerts.limit_rules import HARMFUL
from .alert_panels import firing_alerts
from .dashboard import Page
from .fields import (
    BYTES,
    CELSIUS,
    COUNT,
    GREEN,
    NO_UNIT,
    ORANGE,
    PER_SECOND,
    RATIO,
    RED,
    REQUESTS_PER_SECOND,
    SECONDS,
    TIMES,
    TOKENS_PER_SECOND,
    UP_DOWN,
    WATTS,
    above,
    data_link,
    to_dashboard,
)
from .latency import percentiles
from .layout import Row
from .limits import Limits
from .panels import NO_TRAFFIC, stat, timeseries
from .slo_queries import burn_rate
from .tables import Column, table
from .targets import now, quantile, query, rate, ratio, total
from .variables import MODEL, SERVER, SERVICE, job

_TO_SLO = data_link(
    "What happened to this promise",
    to_dashboard("vitals-slo", service="${__field.labels.service}", slo="${__field.labels.slo}"),
)
_TO_ENGINE = data_link("This server", to_dashboard("vitals-engine", server="${__field.labels.server}"))


def page(limits: Limits) -> Page:
    """Return the dashboard."""
    return Page(
        "vitals-overview",
        "Are we keeping our promises now, under which load, and what is close to its limit?",
        (job("vllm:num_requests_running"), SERVER, MODEL, SERVICE),
        (_promises(limits), _traffic(limits), _saturation(limits), _gpus(limits), _servers(limits)),
    )


def _promises(limits: Limits) -> Row:
    fastest = limits.tiers[0]
    return Row(
        "Are we keeping our promises?",
        (
            stat(
                "Error budget left",
                f"How much of what may go wrong within {limits.window} is left, per promise? Below zero it is broken.",
                now("min by (service, slo) (slo:error_budget_remaining:ratio)", "{{service}} {{slo}}"),
                unit=RATIO,
                steps=((None, RED), (0, ORANGE), (0.25, GREEN)),
                width=12,
                decimals=1,
                no_value=NO_TRAFFIC,
                data_links=[_TO_SLO],
            ),
            stat(
                "Burn rate, worst promise",
                "How many times too fast is the budget of the worst promise spent? At 1 it lasts exactly as long as it "
                f"has to; at {fastest.factor:g} somebody is paged.",
                now(f"max({burn_rate(limits.burn_windows[0], 'service, slo')})", "last minutes"),
                unit=TIMES,
                steps=above(fastest.factor, warn=1),
                decimals=1,
                no_value=NO_TRAFFIC,
            ),
            stat(
                "Alerts firing",
                "Does anything ask for somebody?",
                now('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"),
                unit=COUNT,
                steps=above(1),
            ),
            stat(
                "Servers down",
                "Which of the servers do not answer?",
                now("count(max by (job, instance, server) (vllm_vitals_server_up) == 0) or vector(0)", "down"),
                unit=COUNT,
                steps=above(1),
                see="vitals-fleet",
            ),
            firing_alerts(limits),
        ),
        see="vitals-slo",
    )


def _traffic(limits: Limits) -> Row:
    return Row(
        "How much is asked, and how fast is the answer?",
        (
            timeseries(
                "Requests",
                "How many requests come in, and how do they end? 4xx is the callers' fault, 5xx ours.",
                query(total("status", "http_requests_total", 'method="POST"'), "{{status}}"),
                unit=REQUESTS_PER_SECOND,
                no_value=NO_TRAFFIC,
                see="vitals-engine",
            ),
            timeseries(
                "Tokens",
                "How many tokens per second are read and written? Prompt tokens include those from a cache.",
                query(total("", "vllm:prompt_tokens_total"), "prompt"),
                query(total("", "vllm:generation_tokens_total"), "generated"),
                unit=TOKENS_PER_SECOND,
                see="vitals-engine",
            ),
            timeseries(
                "Running and waiting",
                "How many sequences are worked on, and how many wait for a place in a batch?",
                query("sum(vllm:num_requests_running)", "running"),
                query("sum(vllm:num_requests_waiting)", "waiting"),
                unit=COUNT,
                see="vitals-engine",
            ),
            percentiles(
                "Time to first token",
                "How long do callers wait for the first token? Requests that never get one are not in here.",
                "ttft",
                limits,
                see="vitals-engine",
            ),
            percentiles(
                "Time per output token",
                "How fast are answers written, as the mean gap between tokens of an answer?",
                "tpot",
                limits,
                see="vitals-engine",
            ),
            percentiles(
                "End-to-end latency",
                "How long does a whole answer take? It grows with the length of answers.",
                "e2e",
                limits,
                see="vitals-requests",
            ),
        ),
    )


def _saturation(limits: Limits) -> Row:
    return Row(
        "What is close to its limit?",
        (
            timeseries(
                "KV cache in use, fullest engine",
                "Is there room for more sequences? A full cache means preemptions.",
                query("max by (server) (vllm:kv_cache_usage_perc)", "{{server}}"),
                unit=RATIO,
                highest=1,
                steps=above(limits.kv_cache),
                width=6,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Longest queue",
                "How many requests wait at the engine that has most of them?",
                query("max by (server) (vllm:num_requests_waiting)", "{{server}}"),
                unit=COUNT,
                steps=above(limits.queue_length),
                width=6,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Preemptions",
                "How often is a sequence thrown out of the batch because KV blocks ran out?",
                query(f"max by (server) ({rate('vllm:num_preemptions_total')})", "{{server}}"),
                unit=PER_SECOND,
                steps=above(limits.preemptions),
                width=6,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Prefix cache hits",
                "Which share of prompt tokens need not be computed because they were seen before?",
                query(
                    ratio(rate("vllm:prefix_cache_hits_total"), rate("vllm:prefix_cache_queries_total"), "server"),
                    "{{server}}",
                ),
                unit=RATIO,
                highest=1,
                width=6,
                no_value=NO_TRAFFIC,
                data_links=[_TO_ENGINE],
            ),
        ),
        see="vitals-engine",
    )


def _gpus(limits: Limits) -> Row:
    by = "job, instance, gpu, uuid"
    return Row(
        "Is hardware the cause?",
        (
            table(
                "GPUs",
                "How busy, full, hot and thirsty is each GPU, and does the driver want something done?",
                {"instance": "Node", "gpu": "GPU"},
                Column("Up", "min by (instance, gpu) (nvidia_gpu_up)", NO_UNIT, mappings=UP_DOWN),
                Column("Busy", f"max by (instance, gpu) ({rate('nvidia_gpu_busy_seconds_total')})", RATIO),
                Column(
                    "Memory",
                    f"max by (instance, gpu) (sum by ({by}) (nvidia_gpu_memory_used_bytes) / "
                    f"(sum by ({by}) (nvidia_gpu_memory_total_bytes) > 0))",
                    RATIO,
                    above(limits.memory_share),
                ),
                Column("Memory used", "max by (instance, gpu) (nvidia_gpu_memory_used_bytes)", BYTES),
                Column("Power", "max by (instance, gpu) (nvidia_gpu_power_watts)", WATTS),
                Column(
                    "Temperature",
                    'max by (instance, gpu) (nvidia_gpu_temperature_celsius{sensor="gpu"})',
                    CELSIUS,
                    above(limits.temperature),
                ),
                Column(
                    "Held down",
                    "max by (instance, gpu) (sum by (job, instance, gpu, uuid) "
                    f"({rate('nvidia_gpu_throttle_seconds_total', HARMFUL)}))",
                    RATIO,
                    above(limits.throttle),
                ),
                Column("Recovery action", "max by (instance, gpu) (nvidia_gpu_recovery_action)", NO_UNIT, above(1)),
                links={
                    "GPU": (
                        "This GPU",
                        to_dashboard("vitals-gpu", instance="${__data.fields.Node}", gpu="${__data.fields.GPU}"),
                    )
                },
                sort="Busy",
                width=16,
            ),
            timeseries(
                "Power of all GPUs",
                "How much power do the GPUs draw together, and how much could they?",
                query("sum(max by (job, instance, gpu, uuid) (nvidia_gpu_power_watts))", "drawn"),
                query('sum(nvidia_gpu_power_limit_watts{kind="enforced"})', "limit"),
                unit=WATTS,
            ),
        ),
        see="vitals-gpu",
    )


def _servers(limits: Limits) -> Row:
    by = "server, model_name"
    return Row(
        "Which server or model is it?",
        (
            table(
                "Servers and models",
                "Which server is busy, slow or full?",
                {"server": "Server", "model_name": "Model"},
                Column("Running", f"sum by ({by}) (vllm:num_requests_running)", COUNT),
                Column("Waiting", f"sum by ({by}) (vllm:num_requests_waiting)", COUNT, above(limits.queue_length)),
                Column("KV cache", f"max by ({by}) (vllm:kv_cache_usage_perc)", RATIO, above(limits.kv_cache)),
                Column("Generated", total(by, "vllm:generation_tokens_total"), TOKENS_PER_SECOND),
                Column("TTFT p99", quantile(0.99, "vllm:time_to_first_token_seconds", by), SECONDS),
                Column("TPOT p95", quantile(0.95, "vllm:request_time_per_output_token_seconds", by), SECONDS),
                Column(
                    "Failed",
                    ratio(
                        rate("vllm:request_success_total", 'finished_reason="error"'),
                        rate("vllm:request_success_total"),
                        by,
                    ),
                    RATIO,
                ),
                links={"Server": ("This server", to_dashboard("vitals-engine", server="${__data.fields.Server}"))},
                sort="Waiting",
            ),
        ),
        see="vitals-engine",
    )

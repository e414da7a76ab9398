"""Fleet: many nodes and engines, the odd ones first."""

from typing import Any

from ..alerts.limit_rules import HARMFUL
from .dashboard import Page
from .fields import (
    BYTES,
    BYTES_PER_SECOND,
    CELSIUS,
    COUNT,
    NO_UNIT,
    ON_OFF,
    PER_SECOND,
    RATIO,
    SECONDS,
    SINCE,
    TIMES,
    TOKENS_PER_SECOND,
    UP_DOWN,
    WATTS,
    above,
    data_link,
    to_dashboard,
)
from .gpu import joined
from .layout import Row
from .limits import Limits
from .panels import NO_TRAFFIC, ModernPanel, bars, stat, timeseries
from .tables import Column, labels_table, table
from .targets import now, quantile, query, rate, ratio, total
from .variables import INSTANCE, MODEL, SERVER, job

_TO_ENGINE = data_link("This server", to_dashboard("vitals-engine", server="${__field.labels.server}"))
_TO_GPU = data_link(
    "This GPU", to_dashboard("vitals-gpu", instance="${__field.labels.instance}", gpu="${__field.labels.gpu}")
)
_NODE = "{{instance}}"


def page(limits: Limits) -> Page:
    """Return the dashboard."""
    return Page(
        "vitals-fleet",
        "Of many nodes, GPUs and engines: which are down, which are odd, and is the load spread evenly?",
        (job("vllm_vitals_build_info"), INSTANCE, SERVER, MODEL),
        (_totals(), _outliers(limits), _odd_gpus(limits), _balance(), _nodes(), _space(), _inventory()),
        hours=3,
    )


def _totals() -> Row:
    return Row(
        "How much is there, and how much of it works?",
        (
            stat(
                "Nodes",
                "How many exporters answer?",
                now("count(vllm_vitals_build_info) or vector(0)", "nodes"),
                unit=COUNT,
            ),
            stat(
                "Servers up",
                "How many servers answer?",
                now("sum(max by (job, instance, server) (vllm_vitals_server_up)) or vector(0)", "up"),
                unit=COUNT,
            ),
            stat(
                "Servers down",
                "How many do not?",
                now("count(max by (job, instance, server) (vllm_vitals_server_up) == 0) or vector(0)", "down"),
                unit=COUNT,
                steps=above(1),
            ),
            stat(
                "GPUs up",
                "How many GPUs can be read?",
                now("sum(max by (job, instance, gpu, uuid) (nvidia_gpu_up)) or vector(0)", "up"),
                unit=COUNT,
            ),
            stat(
                "GPUs lost",
                "How many can not?",
                now("count(max by (job, instance, gpu, uuid) (nvidia_gpu_up) == 0) or vector(0)", "lost"),
                unit=COUNT,
                steps=above(1),
            ),
            stat(
                "GPUs without an engine",
                "How many are paid for and idle?",
                now(
                    "count(nvidia_gpu_info unless on (job, instance, uuid) vllm_vitals_engine_gpu_info) or vector(0)",
                    "idle",
                ),
                unit=COUNT,
            ),
        ),
        see="vitals-overview",
    )


def _worst(title: str, question: str, expr: str, legend: str, unit: str, **more: Any) -> ModernPanel:
    return bars(title, question, now(f"topk(10, {expr})", legend), unit=unit, **{"height": 9, **more})


def _outliers(limits: Limits) -> Row:
    server = "{{server}}"
    return Row(
        "Which engines are odd?",
        (
            _worst(
                "Longest queues",
                "Where do most requests wait?",
                "sum by (server) (vllm:num_requests_waiting)",
                server,
                COUNT,
                steps=above(limits.queue_length),
                data_links=[_TO_ENGINE],
            ),
            _worst(
                "Fullest KV caches",
                "Where is no room left?",
                "max by (server) (vllm:kv_cache_usage_perc)",
                server,
                RATIO,
                highest=1,
                steps=above(limits.kv_cache),
                data_links=[_TO_ENGINE],
            ),
            _worst(
                "Slowest first tokens, p99",
                "Where do callers wait longest?",
                quantile(0.99, "vllm:time_to_first_token_seconds", "server"),
                server,
                SECONDS,
                no_value=NO_TRAFFIC,
                data_links=[_TO_ENGINE],
            ),
            _worst(
                "Slowest writing, p95",
                "Where are answers written most slowly?",
                quantile(0.95, "vllm:request_time_per_output_token_seconds", "server"),
                server,
                SECONDS,
                no_value=NO_TRAFFIC,
                data_links=[_TO_ENGINE],
            ),
            _worst(
                "Most preemptions",
                "Where is the KV cache too small for the load?",
                f"max by (server) ({rate('vllm:num_preemptions_total')})",
                server,
                PER_SECOND,
                steps=above(limits.preemptions),
                data_links=[_TO_ENGINE],
            ),
            _worst(
                "Largest share of 5xx",
                "Who fails its callers?",
                ratio(
                    rate("http_requests_total", 'method="POST",status="5xx"'),
                    rate("http_requests_total", 'method="POST"'),
                    "server",
                ),
                server,
                RATIO,
                no_value=NO_TRAFFIC,
                data_links=[_TO_ENGINE],
            ),
        ),
        see="vitals-engine",
    )


def _odd_gpus(limits: Limits) -> Row:
    legend = "{{instance}} GPU {{gpu}}"
    clocks = 'max by (instance, gpu) (nvidia_gpu_clock_max_hertz{domain="sm"})'
    busy = joined(f"sum by (job, instance, gpu, uuid) ({rate('nvidia_gpu_busy_seconds_total')})", "server", "avg")
    return Row(
        "Which GPUs are odd?",
        (
            _worst(
                "Hottest GPUs",
                "Where does cooling fail?",
                'max by (instance, gpu) (nvidia_gpu_temperature_celsius{sensor="gpu"})',
                legend,
                CELSIUS,
                steps=above(limits.temperature),
                data_links=[_TO_GPU],
            ),
            _worst(
                "Most held down",
                "Whose clocks are held down for a reason that costs speed?",
                f"sum by (instance, gpu) ({rate('nvidia_gpu_throttle_seconds_total', HARMFUL)})",
                legend,
                RATIO,
                data_links=[_TO_GPU],
            ),
            _worst(
                "Furthest below the full clock",
                "Which GPUs run slowest, as the share of clock that is missing?",
                f'1 - min by (instance, gpu) (nvidia_gpu_clock_hertz{{domain="sm"}}) / ({clocks} > 0)',
                legend,
                RATIO,
                data_links=[_TO_GPU],
            ),
            _worst(
                "Most power",
                "Which GPUs draw most?",
                "max by (instance, gpu) (nvidia_gpu_power_watts)",
                legend,
                WATTS,
                data_links=[_TO_GPU],
            ),
            _worst(
                "Idle GPUs of busy servers",
                "Which servers have work and leave their GPUs idle?",
                f"clamp_min(1 - {busy}, 0) and on (server) sum by (server) (vllm:num_requests_running) > 0",
                "{{server}}",
                RATIO,
                data_links=[_TO_ENGINE],
                no_value=NO_TRAFFIC,
            ),
            _worst(
                "Most XID codes",
                "Which GPUs logged most kinds of errors within a day?",
                "count by (instance, gpu) (time() - nvidia_gpu_xid_last_timestamp_seconds < 86400)",
                legend,
                COUNT,
                steps=above(1),
                data_links=[_TO_GPU],
                no_value="No XID events",
            ),
        ),
        see="vitals-gpu",
    )


def _balance() -> Row:
    running = "vllm:num_requests_running"
    by = "server, model_name"
    tokens = total(f"{by}, engine", "vllm:generation_tokens_total")
    return Row(
        "Is the load spread evenly?",
        (
            timeseries(
                "Imbalance of data-parallel engines",
                "How many times the mean does the fullest engine of a server carry? 1 is even.",
                query(f"max by ({by}) ({running}) / (avg by ({by}) ({running}) > 0)", "{{server}} {{model_name}}"),
                unit=TIMES,
                no_value=NO_TRAFFIC,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Imbalance of tokens",
                "Do the engines of a server write equally much?",
                query(f"max by ({by}) ({tokens}) / (avg by ({by}) ({tokens}) > 0)", "{{server}} {{model_name}}"),
                unit=TIMES,
                no_value=NO_TRAFFIC,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Imbalance of servers",
                "How many times the mean does the fullest server of a model carry?",
                query(
                    f"max by (model_name) (sum by ({by}) ({running})) / "
                    f"(avg by (model_name) (sum by ({by}) ({running})) > 0)",
                    "{{model_name}}",
                ),
                unit=TIMES,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Running by engine",
                "Which engine of which server has most?",
                query(f"topk(20, sum by (server, engine) ({running}))", "{{server}} {{engine}}"),
                unit=COUNT,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Tokens by model",
                "Which model is asked for most?",
                query(total("model_name", "vllm:generation_tokens_total"), "{{model_name}}"),
                unit=TOKENS_PER_SECOND,
                stacked=True,
            ),
            timeseries(
                "Restarts",
                "Which servers restart?",
                query("sum by (server) (increase(vllm_vitals_server_restarts_total[$__rate_interval]))", "{{server}}"),
                unit=COUNT,
                data_links=[_TO_ENGINE],
            ),
        ),
        see="vitals-engine",
    )


def _nodes() -> Row:
    busy = rate("vllm_vitals_host_cpu_seconds_total", 'mode!="idle"')
    return Row(
        "How are the machines?",
        (
            timeseries(
                "CPU",
                "Which share of its CPUs does each node use?",
                query(f"sum by (instance) ({busy}) / (max by (instance) (vllm_vitals_host_cpus) > 0)", _NODE),
                unit=RATIO,
                highest=1,
            ),
            timeseries(
                "Load per CPU",
                "Do processes wait for a CPU?",
                query(
                    "max by (instance) (vllm_vitals_host_load1) / (max by (instance) (vllm_vitals_host_cpus) > 0)",
                    _NODE,
                ),
                unit=NO_UNIT,
                steps=above(1),
            ),
            timeseries(
                "Memory in use",
                "Is memory short?",
                query(
                    "1 - max by (instance) (vllm_vitals_host_memory_available_bytes) / "
                    "(max by (instance) (vllm_vitals_host_memory_total_bytes) > 0)",
                    _NODE,
                ),
                unit=RATIO,
                highest=1,
            ),
            timeseries(
                "Swap in use",
                "Is memory swapped out? An engine that swaps is as good as down.",
                query("max by (instance) (vllm_vitals_host_swap_used_bytes)", _NODE),
                unit=BYTES,
            ),
            timeseries(
                "Processes killed",
                "Did the kernel kill processes for lack of memory?",
                query("sum by (instance) (increase(vllm_vitals_host_oom_kills_total[$__rate_interval]))", _NODE),
                unit=COUNT,
            ),
            table(
                "Spot notices",
                "Does the cloud take a machine away?",
                {"instance": "Node", "cloud": "Cloud", "action": "Action"},
                Column(
                    "When",
                    "min by (instance, cloud, action) (vllm_vitals_spot_interruption_timestamp_seconds) * 1000",
                    SINCE,
                ),
                width=8,
                no_value="No notice",
            ),
        ),
        see="vitals-gpu",
    )


def _space() -> Row:
    return Row(
        "Do disk and network keep up?",
        (
            timeseries(
                "Network",
                "How much goes in and out?",
                query(total("instance", "vllm_vitals_host_network_receive_bytes_total"), f"{_NODE} in"),
                query(total("instance", "vllm_vitals_host_network_transmit_bytes_total"), f"{_NODE} out"),
                unit=BYTES_PER_SECOND,
                width=6,
            ),
            timeseries(
                "Network errors",
                "Is a link bad?",
                query(
                    total("instance, direction", "vllm_vitals_host_network_errors_total"), f"{_NODE} {{{{direction}}}}"
                ),
                unit=PER_SECOND,
                width=6,
            ),
            timeseries(
                "Disk",
                "How much is read and written? Loading weights reads much.",
                query(total("instance", "vllm_vitals_host_disk_read_bytes_total"), f"{_NODE} read"),
                query(total("instance", "vllm_vitals_host_disk_written_bytes_total"), f"{_NODE} written"),
                unit=BYTES_PER_SECOND,
                width=6,
            ),
            timeseries(
                "Space left",
                "Which file system runs full?",
                query(
                    "min by (instance, mountpoint) (vllm_vitals_host_filesystem_available_bytes) / "
                    "(max by (instance, mountpoint) (vllm_vitals_host_filesystem_size_bytes) > 0)",
                    f"{_NODE} {{{{mountpoint}}}}",
                ),
                unit=RATIO,
                highest=1,
                width=6,
            ),
        ),
        see="vitals-pipeline",
    )


def _inventory() -> Row:
    return Row(
        "What runs where?",
        (
            table(
                "Servers",
                "Which servers are there, and which of them are ill?",
                {"instance": "Node", "server": "Server"},
                Column("Up", "min by (instance, server) (vllm_vitals_server_up)", NO_UNIT, mappings=UP_DOWN),
                Column("Stalled", "max by (instance, server) (vllm_vitals_server_stalled)", NO_UNIT, mappings=ON_OFF),
                Column(
                    "GPUs",
                    "count by (instance, server) (group by (instance, server, uuid) (vllm_vitals_engine_gpu_info))",
                    COUNT,
                ),
                Column("Running", "sum by (instance, server) (vllm:num_requests_running)", COUNT),
                Column("Generated", total("instance, server", "vllm:generation_tokens_total"), TOKENS_PER_SECOND),
                links={"Server": ("This server", to_dashboard("vitals-engine", server="${__data.fields.Server}"))},
                width=12,
            ),
            labels_table(
                "Found by",
                "Where does each server lie, and who named it?",
                "vllm_vitals_server_info",
                {"server": "Server", "kind": "Kind", "url": "Address", "origin": "Named by", "instance": "Node"},
                width=6,
            ),
            table(
                "Every node",
                "Which nodes are there, since when?",
                {"instance": "Node"},
                Column("Booted", "max by (instance) (vllm_vitals_host_boot_time_seconds) * 1000", SINCE),
                Column("GPUs", "max by (instance) (vllm_vitals_gpus)", COUNT),
                Column("CPUs", "max by (instance) (vllm_vitals_host_cpus)", COUNT),
                Column("Memory", "max by (instance) (vllm_vitals_host_memory_total_bytes)", BYTES),
                width=6,
            ),
        ),
        see="vitals-engine",
    )

"""Pipeline: the stack watches itself; can the other dashboards be trusted?"""

from .dashboard import Page
from .fields import (
    BYTES,
    CORES,
    COUNT,
    GREEN,
    PER_SECOND,
    RATIO,
    RED,
    SECONDS,
    SINCE,
    YELLOW,
    above,
)
from .layout import Row
from .limits import Limits
from .panels import stat, timeline, timeseries
from .tables import Column, labels_table, table
from .targets import now, query, rate, ratio, total
from .variables import INSTANCE, SERVER, job

_AT = "{{instance}}"
_QUIET = "None"
_OUR_FAILURES = (
    ("part", "vllm_vitals_part_failures_total", "part"),
    ("placement", "vllm_vitals_placement_failures_total", "source"),
    ("discovery", "vllm_vitals_discovery_failures_total", "origin"),
    ("refused", "vllm_vitals_http_rejected_total", "reason"),
)


def page(limits: Limits) -> Page:
    """Return the dashboard."""
    del limits  # nothing here is promised to callers
    return Page(
        "vitals-pipeline",
        "Can the other dashboards be trusted? Does everything that is measured, traced and written arrive?",
        (job("up"), INSTANCE, SERVER),
        (
            _scrapes(),
            _pages(),
            _exporter(),
            _plugin(),
            _prometheus(),
            _rules(),
            _alertmanager(),
            _collector(),
            _elasticsearch(),
        ),
    )


def _scrapes() -> Row:
    return Row(
        "Does Prometheus get its pages?",
        (
            timeline(
                "Targets",
                "Which targets answer?",
                query("min by (job, instance) (up)", "{{job}} {{instance}}"),
                states={"0": ("down", RED), "1": ("up", GREEN)},
                width=12,
            ),
            timeseries(
                "Scrape duration",
                "How long does Prometheus wait for each page? Its deadline is 10 s by default.",
                query("max by (job, instance) (scrape_duration_seconds)", "{{job}} {{instance}}"),
                unit=SECONDS,
                width=6,
            ),
            timeseries(
                "Samples per scrape",
                "Does a page grow?",
                query("max by (job, instance) (scrape_samples_scraped)", "{{job}} {{instance}}"),
                unit=COUNT,
                width=6,
            ),
        ),
        see="vitals-fleet",
    )


def _pages() -> Row:
    return Row(
        "Do the engines' pages come whole?",
        (
            timeseries(
                "Time to fetch a server's page",
                "Which server is slow to tell its metrics?",
                query("max by (server) (vllm_vitals_server_fetch_duration_seconds)", "{{server}}"),
                unit=SECONDS,
            ),
            timeseries(
                "Size of a server's page",
                "Does a page grow?",
                query("max by (server) (vllm_vitals_server_page_bytes)", "{{server}}"),
                unit=BYTES,
            ),
            timeseries(
                "Samples of a server",
                "How many series does each server add?",
                query("max by (server) (vllm_vitals_server_page_samples)", "{{server}}"),
                unit=COUNT,
            ),
            timeseries(
                "Lines left out",
                "Are lines dropped, because Prometheus would refuse the page for them, or doubled?",
                query(total("server", "vllm_vitals_server_dropped_lines_total"), "{{server}} dropped"),
                query(total("server", "vllm_vitals_server_duplicate_series_total"), "{{server}} doubled"),
                query(total("server", "vllm_vitals_server_type_conflicts_total"), "{{server}} other type"),
                unit=PER_SECOND,
            ),
            timeseries(
                "Request pages that did not come",
                "Is the plugin's page missing, and why?",
                query(
                    total("server, reason", "vllm_vitals_server_request_page_failures_total"), "{{server}} {{reason}}"
                ),
                unit=PER_SECOND,
                no_value=_QUIET,
            ),
            timeseries(
                "Age of GPU values",
                "How old is what the page says of GPUs?",
                query("max by (instance) (nvidia_gpu_snapshot_age_seconds)", _AT),
                unit=SECONDS,
            ),
        ),
        see="vitals-engine",
    )


def _exporter() -> Row:
    return Row(
        "Is the exporter well?",
        (
            timeseries(
                "Time to answer a scrape",
                "How long does the exporter take to build its page?",
                query("max by (instance) (vllm_vitals_scrape_duration_seconds)", _AT),
                unit=SECONDS,
            ),
            timeseries(
                "Time in the driver",
                "How long does a cycle of a GPU take?",
                query("max by (instance, gpu) (nvidia_gpu_collect_duration_seconds)", f"{_AT} GPU {{{{gpu}}}}"),
                unit=SECONDS,
            ),
            timeseries(
                "Placement",
                "How long does it take to find which engine is on which GPU, and how often is it done?",
                query("max by (instance) (vllm_vitals_placement_duration_seconds)", f"{_AT} seconds"),
                query(total("instance", "vllm_vitals_placement_walks_total"), f"{_AT} walks per second"),
                unit=COUNT,
            ),
            timeseries(
                "Failures inside",
                "Which part fails? The rest of the page stays.",
                *(
                    query(total(f"instance, {label}", metric), f"{_AT} {name} {{{{{label}}}}}")
                    for name, metric, label in _OUR_FAILURES
                ),
                unit=PER_SECOND,
                no_value=_QUIET,
            ),
            timeseries(
                "Failures of the driver",
                "Which cycles fail, and how often was NVML opened again?",
                query(
                    total("instance, reason", "nvidia_gpu_collect_failures_total"),
                    f"{_AT} {{{{reason}}}}",
                ),
                query(total("instance", "vllm_vitals_nvml_restarts_total"), f"{_AT} reopened"),
                query(total("instance", "vllm_vitals_web_config_reload_failures_total"), f"{_AT} web config"),
                unit=PER_SECOND,
                no_value=_QUIET,
            ),
            timeseries(
                "Calls that GPUs do not support",
                "How much is left out for lack of support?",
                query("max by (instance, gpu) (nvidia_gpu_unsupported_calls)", f"{_AT} GPU {{{{gpu}}}}"),
                unit=COUNT,
            ),
            timeseries(
                "CPU",
                "What does watching cost?",
                query(total("instance", "vllm_vitals_process_cpu_seconds_total"), _AT),
                unit=CORES,
                width=6,
            ),
            timeseries(
                "Memory",
                "Does the exporter grow?",
                query("max by (instance) (vllm_vitals_process_resident_memory_bytes)", _AT),
                unit=BYTES,
                width=6,
            ),
            timeseries(
                "Threads and files",
                "Does it leak?",
                query("max by (instance) (vllm_vitals_process_threads)", f"{_AT} threads"),
                query("max by (instance) (vllm_vitals_process_open_fds)", f"{_AT} files"),
                unit=COUNT,
                width=6,
            ),
            table(
                "Exporters",
                "Which version runs where, since when, and what does it see?",
                {"instance": "Node"},
                Column("Started", "max by (instance) (vllm_vitals_process_start_time_seconds) * 1000", SINCE),
                Column("NVML", "max by (instance) (vllm_vitals_nvml_up)", COUNT),
                Column("Host metrics", "max by (instance) (vllm_vitals_host_up)", COUNT),
                Column("Scrapes per second", total("instance", "vllm_vitals_scrapes_total"), PER_SECOND),
                width=6,
            ),
            labels_table(
                "Versions",
                "Do all nodes run the same?",
                "vllm_vitals_build_info",
                {"instance": "Node", "version": "Version", "python_version": "Python"},
                width=8,
                height=6,
            ),
            table(
                "Found servers",
                "Who names how many servers?",
                {"instance": "Node", "origin": "Named by"},
                Column("Servers", "max by (instance, origin) (vllm_vitals_discovery_servers)", COUNT),
                width=8,
                height=6,
            ),
            table(
                "Cloud",
                "Does the metadata service answer?",
                {"instance": "Node", "cloud": "Cloud"},
                Column("Answers", "max by (instance, cloud) (vllm_vitals_spot_up)", COUNT),
                width=8,
                height=6,
                no_value="Not asked",
            ),
        ),
        see="vitals-fleet",
    )


def _plugin() -> Row:
    return Row(
        "Does the plugin lose requests or spans?",
        (
            timeseries(
                "Spans",
                "Does the collector take them?",
                query(total("result", "vllm_vitals_tracing_spans_total"), "{{result}}"),
                unit=PER_SECOND,
            ),
            timeseries(
                "Lost",
                "Is anything lost between vLLM and its collector, its log or its audit file?",
                query(total("server", "vllm_vitals_tracing_requests_dropped_total"), "{{server}} requests"),
                query(total("server", "vllm_vitals_tracing_export_failures_total"), "{{server}} calls"),
                query(total("server, sink", "vllm_vitals_tracing_sink_failures_total"), "{{server}} {{sink}}"),
                query(total("server", "vllm_vitals_tracing_audit_failures_total"), "{{server}} audit"),
                query(total("server", "vllm_vitals_tracing_gpu_facts_failures_total"), "{{server}} GPU facts"),
                unit=PER_SECOND,
            ),
            timeseries(
                "Hooks",
                "Does a hook not fit this vLLM, or raise? And are callers' sampled flags capped?",
                query(total("server, hook", "vllm_vitals_tracing_hook_fallbacks_total"), "{{server}} {{hook}} misfit"),
                query(total("server, hook", "vllm_vitals_tracing_hook_failures_total"), "{{server}} {{hook}} raised"),
                query(total("server", "vllm_vitals_tracing_forced_sampling_refused_total"), "{{server}} flags refused"),
                unit=PER_SECOND,
                no_value=_QUIET,
            ),
            labels_table(
                "Plugins",
                "In which mode does it run, and on which vLLM?",
                "vllm_vitals_tracing_info",
                {
                    "server": "Server",
                    "version": "Version",
                    "vllm_version": "vLLM",
                    "mode": "Mode",
                    "export": "Export",
                    "instance": "Node",
                },
                height=6,
            ),
        ),
        needs="tracing plugin",
        see="vitals-requests",
    )


def _prometheus() -> Row:
    at = "{{instance}}"
    return Row(
        "Does Prometheus keep up?",
        (
            timeseries(
                "Series in memory",
                "How many series are there? Each costs some kilobytes.",
                query("max by (instance) (prometheus_tsdb_head_series)", at),
                unit=COUNT,
            ),
            timeseries(
                "Samples written",
                "How many samples per second come in?",
                query(total("instance", "prometheus_tsdb_head_samples_appended_total"), at),
                unit=PER_SECOND,
            ),
            timeseries(
                "Samples refused",
                "Do two sources write the same series, or is a page too large?",
                query(total("instance", "prometheus_target_scrapes_sample_out_of_order_total"), f"{at} out of order"),
                query(total("instance", "prometheus_target_scrapes_sample_duplicate_timestamp_total"), f"{at} doubled"),
                query(total("instance", "prometheus_target_scrapes_exceeded_sample_limit_total"), f"{at} too many"),
                unit=PER_SECOND,
            ),
            timeseries(
                "Time per query",
                "Are queries slow, those of dashboards and rules alike?",
                query(
                    ratio(
                        rate("prometheus_engine_query_duration_seconds_sum"),
                        rate("prometheus_engine_query_duration_seconds_count"),
                        "slice",
                    ),
                    "{{slice}}",
                ),
                unit=SECONDS,
            ),
            timeseries(
                "Disk",
                "How large are the blocks on disk?",
                query("max by (instance) (prometheus_tsdb_storage_blocks_bytes)", at),
                unit=BYTES,
            ),
            timeseries(
                "Storage failures",
                "Is data lost?",
                query(total("instance", "prometheus_tsdb_compactions_failed_total"), f"{at} compactions"),
                query(total("instance", "prometheus_tsdb_wal_corruptions_total"), f"{at} log"),
                unit=PER_SECOND,
            ),
            stat(
                "Oldest value",
                "Does the data reach back over the SLA's window?",
                now("min(prometheus_tsdb_lowest_timestamp_seconds > 0) * 1000", "oldest"),
                unit=SINCE,
                width=6,
                no_value="Not a day yet",
            ),
            stat(
                "Exemplars kept",
                "Are there exemplars? None without --enable-feature=exemplar-storage.",
                now("sum(prometheus_tsdb_exemplar_exemplars_in_storage)", "exemplars"),
                unit=COUNT,
                width=6,
                no_value="Exemplar storage is off",
            ),
            stat(
                "Chunks in memory",
                "How much is held in memory until it is written?",
                now("sum(prometheus_tsdb_head_chunks)", "chunks"),
                unit=COUNT,
                width=6,
            ),
            stat(
                "Alerts that wait",
                "Do alerts wait to be sent?",
                now("sum(prometheus_notifications_queue_length)", "alerts"),
                unit=COUNT,
                width=6,
                steps=above(100),
            ),
        ),
        see="vitals-fleet",
    )


def _rules() -> Row:
    return Row(
        "Are the rules evaluated in time?",
        (
            timeseries(
                "Slowest rule groups",
                "How near is a group to its interval? Beyond it, evaluations are left out.",
                query(
                    "topk(10, max by (rule_group) (prometheus_rule_group_last_duration_seconds) / "
                    "(max by (rule_group) (prometheus_rule_group_interval_seconds) > 0))",
                    "{{rule_group}}",
                ),
                unit=RATIO,
                steps=((None, GREEN), (0.5, YELLOW), (1, RED)),
                width=12,
            ),
            timeseries(
                "Time per rule",
                "How long does a rule take on average?",
                query(
                    ratio(
                        rate("prometheus_rule_evaluation_duration_seconds_sum"),
                        rate("prometheus_rule_evaluation_duration_seconds_count"),
                        "instance",
                    ),
                    _AT,
                ),
                unit=SECONDS,
                width=6,
            ),
            timeseries(
                "Failed and missed",
                "Do rules fail, or come too late?",
                query(
                    f"sum by (rule_group) ({rate('prometheus_rule_evaluation_failures_total')}) > 0",
                    "{{rule_group}} failed",
                ),
                query(
                    f"sum by (rule_group) ({rate('prometheus_rule_group_iterations_missed_total')}) > 0",
                    "{{rule_group}} missed",
                ),
                unit=PER_SECOND,
                width=6,
                no_value=_QUIET,
            ),
            timeseries(
                "Alerts sent",
                "Does each Alertmanager get its alerts?",
                query(total("alertmanager", "prometheus_notifications_sent_total"), "{{alertmanager}} sent"),
                query(total("alertmanager", "prometheus_notifications_errors_total"), "{{alertmanager}} failed"),
                query(total("instance", "prometheus_notifications_dropped_total"), "dropped"),
                unit=PER_SECOND,
                width=24,
                height=6,
            ),
        ),
        see="vitals-slo",
    )


def _alertmanager() -> Row:
    return Row(
        "Does Alertmanager reach people?",
        (
            timeseries(
                "Alerts by state",
                "How many alerts are active, and how many suppressed?",
                query("max by (state) (alertmanager_alerts)", "{{state}}"),
                unit=COUNT,
            ),
            timeseries(
                "Notifications",
                "Do they go out?",
                query(f"{total('integration', 'alertmanager_notifications_total')} > 0", "{{integration}} sent"),
                query(
                    f"{total('integration', 'alertmanager_notifications_failed_total')} > 0", "{{integration}} failed"
                ),
                unit=PER_SECOND,
                no_value=_QUIET,
            ),
            timeseries(
                "Silences",
                "Is something kept silent for longer than meant?",
                query("max by (state) (alertmanager_silences)", "{{state}}"),
                unit=COUNT,
            ),
        ),
        needs="Alertmanager scraped",
        see="vitals-slo",
    )


def _both(name: str, label: str) -> str:
    """Return the rate of a collector's counter, which is written with `_total` or without."""
    return f"{total(f'job, {label}', f'{name}_total')} or {total(f'job, {label}', name)}"


def _collector() -> Row:
    return Row(
        "Does the collector pass traces on?",
        (
            timeseries(
                "Spans taken",
                "How many spans come in, and are some refused?",
                query(_both("otelcol_receiver_accepted_spans", "receiver"), "{{job}} {{receiver}} taken"),
                query(_both("otelcol_receiver_refused_spans", "receiver"), "{{job}} {{receiver}} refused"),
                unit=PER_SECOND,
            ),
            timeseries(
                "Spans sent on",
                "How many go out, and are some lost?",
                query(_both("otelcol_exporter_sent_spans", "exporter"), "{{job}} {{exporter}} sent"),
                query(_both("otelcol_exporter_send_failed_spans", "exporter"), "{{job}} {{exporter}} failed"),
                query(_both("otelcol_exporter_enqueue_failed_spans", "exporter"), "{{job}} {{exporter}} queue full"),
                unit=PER_SECOND,
            ),
            timeseries(
                "Sending queue",
                "Is a store behind too slow?",
                query(
                    "max by (job, exporter) (otelcol_exporter_queue_size) / "
                    "(max by (job, exporter) (otelcol_exporter_queue_capacity) > 0)",
                    "{{job}} {{exporter}}",
                ),
                unit=RATIO,
                highest=1,
                width=4,
            ),
            timeseries(
                "Memory of collectors",
                "Does a collector grow towards its limit?",
                query(
                    "max by (job, instance) (otelcol_process_memory_rss_bytes) or "
                    "max by (job, instance) (otelcol_process_memory_rss)",
                    "{{job}} {{instance}}",
                ),
                unit=BYTES,
                width=4,
            ),
        ),
        needs="OpenTelemetry Collector scraped",
        see="vitals-requests",
    )


def _elasticsearch() -> Row:
    by = "cluster, name"
    return Row(
        "Can Elasticsearch take the logs?",
        (
            timeline(
                "Cluster",
                "Is every shard where it should be?",
                query(
                    'max by (cluster) (elasticsearch_cluster_health_status{color="yellow"}) + '
                    '2 * max by (cluster) (elasticsearch_cluster_health_status{color="red"})',
                    "{{cluster}}",
                ),
                states={"0": ("green", GREEN), "1": ("yellow", YELLOW), "2": ("red", RED)},
                width=8,
            ),
            timeseries(
                "Lines indexed",
                "How much is written?",
                query(total(by, "elasticsearch_indices_indexing_index_total"), "{{name}}"),
                unit=PER_SECOND,
            ),
            timeseries(
                "Work refused",
                "Is a queue full, so that lines are lost?",
                query(f"{total('name, type', 'elasticsearch_thread_pool_rejected_count')} > 0", "{{name}} {{type}}"),
                unit=PER_SECOND,
                no_value=_QUIET,
            ),
            timeseries(
                "Heap",
                "Is the JVM short of memory?",
                query(
                    f'max by ({by}) (elasticsearch_jvm_memory_used_bytes{{area="heap"}}) / '
                    f'(max by ({by}) (elasticsearch_jvm_memory_max_bytes{{area="heap"}}) > 0)',
                    "{{name}}",
                ),
                unit=RATIO,
                highest=1,
                width=12,
            ),
            timeseries(
                "Space for data",
                "Does the disk run full? At 5 % left indices become read-only.",
                query(
                    f"min by ({by}) (elasticsearch_filesystem_data_available_bytes) / "
                    f"(min by ({by}) (elasticsearch_filesystem_data_size_bytes) > 0)",
                    "{{name}}",
                ),
                unit=RATIO,
                highest=1,
                width=12,
            ),
        ),
        needs="elasticsearch_exporter",
        see="vitals-requests",
    )

"""Metrics of the programs around us that the Pipeline dashboard reads: names, types, labels as their makers write them.

Not run by us are the collector and Elasticsearch: their names are from documentation. The collector writes counters
with or without `_total`, by how its telemetry is configured, so both forms stand here.
"""

from typing import Final

from .ours import Metric

_NODE: Final = ("cluster", "name")

# fmt: off
# Source: /metrics of Prometheus 2.42 and 3.x.
PROMETHEUS: Final = (
    Metric("prometheus_tsdb_head_series", "gauge", "Series in memory."),
    Metric("prometheus_tsdb_head_chunks", "gauge", "Chunks in memory."),
    Metric("prometheus_tsdb_head_samples_appended_total", "counter", "Samples written; type: float or histogram, where Prometheus says it.", ("type",)),
    Metric("prometheus_tsdb_storage_blocks_bytes", "gauge", "Bytes of blocks on disk."),
    Metric("prometheus_tsdb_lowest_timestamp_seconds", "gauge", "Oldest time on disk; 0 before the first block."),
    Metric("prometheus_tsdb_compactions_failed_total", "counter", "Compactions that failed."),
    Metric("prometheus_tsdb_wal_corruptions_total", "counter", "Corruptions of the write-ahead log."),
    Metric("prometheus_tsdb_exemplar_exemplars_in_storage", "gauge", "Exemplars in memory; absent or 0 without exemplar storage."),
    Metric("prometheus_target_scrapes_sample_out_of_order_total", "counter", "Samples refused because they were older than what is there."),
    Metric("prometheus_target_scrapes_sample_duplicate_timestamp_total", "counter", "Samples refused because their time has another value."),
    Metric("prometheus_target_scrapes_exceeded_sample_limit_total", "counter", "Scrapes refused for too many samples."),
    Metric("prometheus_rule_group_last_duration_seconds", "gauge", "Time that a group's last evaluation took.", ("rule_group",)),
    Metric("prometheus_rule_group_interval_seconds", "gauge", "Interval of a group.", ("rule_group",)),
    Metric("prometheus_rule_group_iterations_missed_total", "counter", "Evaluations left out because the one before was not done.", ("rule_group",)),
    Metric("prometheus_rule_evaluation_failures_total", "counter", "Evaluations that failed.", ("rule_group",)),
    Metric("prometheus_rule_evaluation_duration_seconds", "summary", "Time per rule."),
    Metric("prometheus_engine_query_duration_seconds", "summary", "Time per query, by part of the work.", ("slice",)),
    Metric("prometheus_notifications_sent_total", "counter", "Alerts sent.", ("alertmanager",)),
    Metric("prometheus_notifications_errors_total", "counter", "Alerts that an Alertmanager did not take.", ("alertmanager",)),
    Metric("prometheus_notifications_dropped_total", "counter", "Alerts lost because the queue was full or no Alertmanager took them."),
    Metric("prometheus_notifications_queue_length", "gauge", "Alerts that wait to be sent."),
)
# Source: /metrics of Alertmanager 0.25.
ALERTMANAGER: Final = (
    Metric("alertmanager_alerts", "gauge", "Alerts by state.", ("state",)),
    Metric("alertmanager_notifications_total", "counter", "Attempts to notify, by receiver type.", ("integration",)),
    Metric("alertmanager_notifications_failed_total", "counter", "Those that failed.", ("integration",)),
    Metric("alertmanager_silences", "gauge", "Silences by state.", ("state",)),
)
# Source: opentelemetry.io/docs/collector/internal-telemetry.
_COLLECTOR_COUNTERS: Final = (
    ("otelcol_receiver_accepted_spans", "Spans taken.", "receiver"),
    ("otelcol_receiver_refused_spans", "Spans refused.", "receiver"),
    ("otelcol_exporter_sent_spans", "Spans sent on.", "exporter"),
    ("otelcol_exporter_send_failed_spans", "Spans that could not be sent.", "exporter"),
    ("otelcol_exporter_enqueue_failed_spans", "Spans lost because the sending queue was full.", "exporter"),
)
COLLECTOR: Final = (
    *(Metric(f"{name}{total}", "counter", text, (label,)) for name, text, label in _COLLECTOR_COUNTERS for total in ("", "_total")),
    Metric("otelcol_exporter_queue_size", "gauge", "Batches that wait.", ("exporter",)),
    Metric("otelcol_exporter_queue_capacity", "gauge", "Batches that can wait.", ("exporter",)),
    Metric("otelcol_process_memory_rss", "gauge", "Resident memory in bytes."),
    Metric("otelcol_process_memory_rss_bytes", "gauge", "Resident memory in bytes."),
)
# Source: README of prometheus-community/elasticsearch_exporter 1.10; Elasticsearch itself has no such page.
ELASTICSEARCH: Final = (
    Metric("elasticsearch_cluster_health_status", "gauge", "1 for the color that holds.", ("cluster", "color")),
    Metric("elasticsearch_filesystem_data_available_bytes", "gauge", "Space left for data.", _NODE),
    Metric("elasticsearch_filesystem_data_size_bytes", "gauge", "Space for data.", _NODE),
    Metric("elasticsearch_jvm_memory_used_bytes", "gauge", "Memory of the JVM in use.", (*_NODE, "area")),
    Metric("elasticsearch_jvm_memory_max_bytes", "gauge", "Memory that the JVM may use.", (*_NODE, "area")),
    Metric("elasticsearch_indices_indexing_index_total", "counter", "Documents indexed.", _NODE),
    Metric("elasticsearch_thread_pool_rejected_count", "counter", "Work refused because a queue was full.", (*_NODE, "type")),
)
# fmt: on

STACK: Final[dict[str, Metric]] = {
    metric.name: metric for metric in (*PROMETHEUS, *ALERTMANAGER, *COLLECTOR, *ELASTICSEARCH)
}

"""Every metric that we emit or read, as data: exporter, rules, dashboards, docs and tests take names from here.

Sources: ours are defined here; vLLM's were read off its own 0.32.0 page (tests/data/vllm-0.32.0-metrics.prom) and its
source at every release since 0.8.5; SGLang's from its metrics collector.
"""

from typing import Final, Literal, NamedTuple

from .reasons import DRIVER, FETCH, GPU, HOST, REFUSAL, THROTTLE

Kind = Literal["counter", "gauge", "histogram", "summary"]


class Metric(NamedTuple):
    """One metric family.

    Attributes:
        name: family name as the TYPE line states it (counters with `_total`).
        kind: Prometheus type.
        help: one sentence, unit included where the name does not say it.
        labels: label names, in the order in which we write them.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


_GPU = ("gpu", "uuid")

# fmt: off
# --- GPUs: prefix nvidia_gpu_, base units, labels gpu and uuid; names and bus ids only in nvidia_gpu_info. --------------
NVIDIA_GPU: Final = (
    Metric("nvidia_gpu_up", "gauge", "1 when the last cycle read this GPU, else 0; reason is empty when up.", (*_GPU, "reason")),
    Metric("nvidia_gpu_info", "gauge", "Constant 1 with what identifies the GPU.", (*_GPU, "name", "pci_bus_id", "serial", "compute_capability", "vbios", "mig_mode")),
    Metric("nvidia_gpu_snapshot_age_seconds", "gauge", "Age of the values on this page for this GPU.", _GPU),
    Metric("nvidia_gpu_collect_duration_seconds", "gauge", "Time that the last cycle spent in the driver and in rendering.", _GPU),
    Metric("nvidia_gpu_collect_failures_total", "counter", "Cycles that failed, by reason.", (*_GPU, "reason")),
    Metric("nvidia_gpu_call_failures_total", "counter", "Driver calls that failed although they are supported, by NVML return code; the rest of the cycle stayed.", (*_GPU, "code")),
    Metric("nvidia_gpu_unsupported_calls", "gauge", "Calls that this GPU or driver does not support; they are retried hourly.", _GPU),
    Metric("nvidia_gpu_utilization_ratio", "gauge", "Share of the driver's last sample period with at least one kernel running.", _GPU),
    Metric("nvidia_gpu_busy_seconds_total", "counter", "Busy time, integrated from the driver's own utilisation sample buffer.", _GPU),
    Metric("nvidia_gpu_memory_utilization_ratio", "gauge", "Share of the last sample period in which device memory was read or written.", _GPU),
    Metric("nvidia_gpu_matrix_stall_ratio", "gauge", "Share of time that the matrix units stalled (NVML field 297).", _GPU),
    Metric("nvidia_gpu_encoder_utilization_ratio", "gauge", "Utilisation of the video encoder.", _GPU),
    Metric("nvidia_gpu_decoder_utilization_ratio", "gauge", "Utilisation of the video decoder.", _GPU),
    Metric("nvidia_gpu_memory_total_bytes", "gauge", "Device memory.", _GPU),
    Metric("nvidia_gpu_memory_used_bytes", "gauge", "Device memory allocated by processes.", _GPU),
    Metric("nvidia_gpu_memory_free_bytes", "gauge", "Device memory free.", _GPU),
    Metric("nvidia_gpu_memory_reserved_bytes", "gauge", "Device memory reserved by driver and firmware.", _GPU),
    Metric("nvidia_gpu_bar1_memory_total_bytes", "gauge", "BAR1 window.", _GPU),
    Metric("nvidia_gpu_bar1_memory_used_bytes", "gauge", "BAR1 window in use.", _GPU),
    Metric("nvidia_gpu_power_watts", "gauge", "Board power; kind: average (one second) or instant.", (*_GPU, "kind")),
    Metric("nvidia_gpu_power_limit_watts", "gauge", "Power limits; kind: min, max, default, enforced or requested.", (*_GPU, "kind")),
    Metric("nvidia_gpu_energy_joules_total", "counter", "Energy since driver load, from the hardware counter.", _GPU),
    Metric("nvidia_gpu_temperature_celsius", "gauge", "Temperatures; sensor: gpu or memory.", (*_GPU, "sensor")),
    Metric("nvidia_gpu_temperature_limit_celsius", "gauge", "Temperature thresholds; kind: shutdown, slowdown, memory_max or gpu_max.", (*_GPU, "kind")),
    Metric("nvidia_gpu_temperature_margin_celsius", "gauge", "Distance to the thermal limit (T.limit).", _GPU),
    Metric("nvidia_gpu_temperature_margin_limit_celsius", "gauge", "Distance to the thermal limit (T.limit) at which the GPU acts; kind: shutdown, slowdown, memory_max or gpu_max.", (*_GPU, "kind")),
    Metric("nvidia_gpu_fan_speed_ratio", "gauge", "Fan speed as share of its maximum; fan: index.", (*_GPU, "fan")),
    Metric("nvidia_gpu_clock_hertz", "gauge", "Clocks; domain: graphics, sm, memory or video.", (*_GPU, "domain")),
    Metric("nvidia_gpu_clock_max_hertz", "gauge", "Highest clocks; domain: graphics, sm, memory or video.", (*_GPU, "domain")),
    Metric("nvidia_gpu_performance_state", "gauge", "Performance state, 0 (fastest) to 15.", _GPU),
    Metric("nvidia_gpu_throttle_active", "gauge", "1 while the clocks are held down for this reason.", (*_GPU, "reason")),
    Metric("nvidia_gpu_throttle_seconds_total", "counter", "Time that the clocks were held down for this reason.", (*_GPU, "reason")),
    Metric("nvidia_gpu_sm_active_ratio", "gauge", "GPM: share of cycles with a warp on an SM (Hopper and newer).", _GPU),
    Metric("nvidia_gpu_sm_occupancy_ratio", "gauge", "GPM: resident warps over the possible maximum.", _GPU),
    Metric("nvidia_gpu_tensor_active_ratio", "gauge", "GPM: share of cycles with any tensor pipe active.", _GPU),
    Metric("nvidia_gpu_dram_active_ratio", "gauge", "GPM: device memory bandwidth over its peak.", _GPU),
    Metric("nvidia_gpu_pcie_bytes_total", "counter", "PCIe traffic seen from the GPU; direction: tx or rx.", (*_GPU, "direction")),
    Metric("nvidia_gpu_pcie_link_generation", "gauge", "PCIe generation; kind: current or max.", (*_GPU, "kind")),
    Metric("nvidia_gpu_pcie_link_width_lanes", "gauge", "PCIe lanes; kind: current or max.", (*_GPU, "kind")),
    Metric("nvidia_gpu_pcie_errors_total", "counter", "PCIe errors by type.", (*_GPU, "type")),
    Metric("nvidia_gpu_nvlink_bytes_total", "counter", "NVLink payload summed over the links; direction: tx or rx.", (*_GPU, "direction")),
    Metric("nvidia_gpu_nvlink_errors_total", "counter", "NVLink errors summed over the links, by type.", (*_GPU, "type")),
    Metric("nvidia_gpu_nvlink_links_active", "gauge", "NVLink links that are up.", _GPU),
    Metric("nvidia_gpu_ecc_errors_total", "counter", "ECC errors; severity: corrected or uncorrected; scope: volatile (since driver load) or aggregate.", (*_GPU, "severity", "scope")),
    Metric("nvidia_gpu_remapped_rows", "gauge", "Remapped memory rows; cause: correctable or uncorrectable.", (*_GPU, "cause")),
    Metric("nvidia_gpu_row_remap_pending", "gauge", "1 when a row remapping waits for a GPU reset.", _GPU),
    Metric("nvidia_gpu_row_remap_failure", "gauge", "1 when a row remapping failed: the GPU wants replacement.", _GPU),
    Metric("nvidia_gpu_retired_pages", "gauge", "Retired memory pages (before Ampere); cause: single_bit or double_bit.", (*_GPU, "cause")),
    Metric("nvidia_gpu_xid_errors_total", "counter", "XID events since this exporter started, by code.", (*_GPU, "xid")),
    Metric("nvidia_gpu_xid_last_timestamp_seconds", "gauge", "Unix time of the last XID event of this code.", (*_GPU, "xid")),
    Metric("nvidia_gpu_recovery_action", "gauge", "What the driver asks for: 0 none, 1 GPU reset, 2 node reboot, 3 drain P2P, 4 drain and reset, 5 recover IMEX domain, 6 bus reset, 7 system reboot.", _GPU),
    Metric("nvidia_gpu_processes", "gauge", "Compute processes on the GPU.", _GPU),
    Metric("nvidia_gpu_mig_info", "gauge", "Constant 1 per MIG device.", (*_GPU, "mig_uuid", "gpu_instance", "compute_instance", "profile")),
    Metric("nvidia_gpu_mig_memory_total_bytes", "gauge", "Memory of a MIG device.", (*_GPU, "mig_uuid")),
    Metric("nvidia_gpu_mig_memory_used_bytes", "gauge", "Memory in use on a MIG device.", (*_GPU, "mig_uuid")),
    Metric("nvidia_gpu_mig_sm_active_ratio", "gauge", "GPM per MIG device: share of cycles with a warp on an SM.", (*_GPU, "mig_uuid")),
    Metric("nvidia_gpu_mig_sm_occupancy_ratio", "gauge", "GPM per MIG device: resident warps over the possible maximum.", (*_GPU, "mig_uuid")),
    Metric("nvidia_gpu_mig_tensor_active_ratio", "gauge", "GPM per MIG device: share of cycles with any tensor pipe active.", (*_GPU, "mig_uuid")),
    Metric("nvidia_gpu_mig_dram_active_ratio", "gauge", "GPM per MIG device: memory bandwidth over its peak.", (*_GPU, "mig_uuid")),
)

# --- The sidecar itself and what only it can know: prefix vllm_vitals_. ------------------------------------------------
_SERVER = ("server",)
VITALS: Final = (
    Metric("vllm_vitals_build_info", "gauge", "Constant 1 with the versions of exporter and Python.", ("version", "python_version")),
    Metric("vllm_vitals_nvml_up", "gauge", "1 when NVML is open and found a GPU, else 0; reason is empty when up.", ("reason",)),
    Metric("vllm_vitals_nvml_info", "gauge", "Constant 1 with the versions of driver, NVML and CUDA.", ("driver_version", "nvml_version", "cuda_version")),
    Metric("vllm_vitals_nvml_restarts_total", "counter", "Times that NVML was opened again (driver reload, lost GPU)."),
    Metric("vllm_vitals_gpus", "gauge", "GPUs that NVML counts."),
    Metric("vllm_vitals_server_up", "gauge", "1 when the server's page came whole within the deadline, else 0; reason is empty when up.", ("server", "reason")),
    Metric("vllm_vitals_server_info", "gauge", "Constant 1 per configured or discovered server; kind: vllm, sglang or unknown.", ("server", "url", "kind", "origin")),
    Metric("vllm_vitals_server_fetch_duration_seconds", "gauge", "Time to fetch the server's page for this scrape.", _SERVER),
    Metric("vllm_vitals_server_page_bytes", "gauge", "Size of the server's page.", _SERVER),
    Metric("vllm_vitals_server_page_samples", "gauge", "Samples of the server's page that are on this page.", _SERVER),
    Metric("vllm_vitals_server_dropped_lines_total", "counter", "Lines of the server's pages left out because Prometheus would refuse the whole page for them.", _SERVER),
    Metric("vllm_vitals_server_type_conflicts_total", "counter", "Families whose TYPE differed from the one seen first on a page; the first is kept.", _SERVER),
    Metric("vllm_vitals_server_restarts_total", "counter", "Restarts of the server seen (start time moved or counters fell back).", _SERVER),
    Metric("vllm_vitals_server_request_page_failures_total", "counter", "Times that the server's page of request metrics (/metrics/requests) did not come although the plugin may be there, by reason.", ("server", "reason")),
    Metric("vllm_vitals_server_healthy", "gauge", "1 when the server's own /health answers 200, 0 when it answers 5xx; absent where it has none.", _SERVER),
    Metric("vllm_vitals_server_stalled", "gauge", "1 when requests run but no token was produced for the configured time.", _SERVER),
    Metric("vllm_vitals_server_duplicate_series_total", "counter", "Series left out because the same page already had them.", _SERVER),
    Metric("vllm_vitals_engine_gpu_info", "gauge", "Constant 1: this engine runs on this GPU; source says how we know.", ("server", "model_name", "engine", "gpu", "uuid", "source")),
    Metric("vllm_vitals_engine_gpu_memory_bytes", "gauge", "Device memory that the engine's processes hold on this GPU.", ("server", "engine", "gpu", "uuid")),
    Metric("vllm_vitals_placement_duration_seconds", "gauge", "Duration of the last placement walk."),
    Metric("vllm_vitals_placement_walks_total", "counter", "Placement walks."),
    Metric("vllm_vitals_placement_failures_total", "counter", "Placement sources that failed, by source.", ("source",)),
    Metric("vllm_vitals_engine_process_cpu_seconds_total", "counter", "CPU time of the engine's processes; role: api_server, engine_core, worker or other.", ("server", "role")),
    Metric("vllm_vitals_engine_process_resident_memory_bytes", "gauge", "Resident memory of the engine's processes, by role.", ("server", "role")),
    Metric("vllm_vitals_engine_process_max_cpu_ratio", "gauge", "CPU use of the busiest single process of this role; 1 is one core.", ("server", "role")),
    Metric("vllm_vitals_engine_processes", "gauge", "Processes of the engine, by role.", ("server", "role")),
    Metric("vllm_vitals_host_cpu_seconds_total", "counter", "CPU time of the machine, by mode.", ("mode",)),
    Metric("vllm_vitals_host_cpus", "gauge", "Logical CPUs."),
    Metric("vllm_vitals_host_load1", "gauge", "Load average over one minute."),
    Metric("vllm_vitals_host_memory_total_bytes", "gauge", "Memory of the machine."),
    Metric("vllm_vitals_host_memory_available_bytes", "gauge", "Memory that can be given out without swapping."),
    Metric("vllm_vitals_host_swap_used_bytes", "gauge", "Swap in use."),
    Metric("vllm_vitals_host_oom_kills_total", "counter", "Processes that the kernel killed for lack of memory."),
    Metric("vllm_vitals_host_disk_read_bytes_total", "counter", "Bytes read.", ("device",)),
    Metric("vllm_vitals_host_disk_written_bytes_total", "counter", "Bytes written.", ("device",)),
    Metric("vllm_vitals_host_filesystem_size_bytes", "gauge", "Size of a mounted file system.", ("mountpoint",)),
    Metric("vllm_vitals_host_filesystem_available_bytes", "gauge", "Space left for ordinary users.", ("mountpoint",)),
    Metric("vllm_vitals_host_network_receive_bytes_total", "counter", "Bytes received.", ("device",)),
    Metric("vllm_vitals_host_network_transmit_bytes_total", "counter", "Bytes sent.", ("device",)),
    Metric("vllm_vitals_host_network_errors_total", "counter", "Errors and drops; direction: receive or transmit.", ("device", "direction")),
    Metric("vllm_vitals_host_boot_time_seconds", "gauge", "Unix time of the last boot."),
    Metric("vllm_vitals_host_up", "gauge", "1 when host metrics are read here; 0 with the reason (off, node_exporter, failed).", ("reason",)),
    Metric("vllm_vitals_spot_up", "gauge", "1 when the cloud's metadata service answered, else 0.", ("cloud",)),
    Metric("vllm_vitals_spot_interruption_timestamp_seconds", "gauge", "Unix time at which the cloud takes this machine; absent while there is no notice.", ("cloud", "action")),
    Metric("vllm_vitals_discovery_servers", "gauge", "Servers found by this origin: config, file, dns or process.", ("origin",)),
    Metric("vllm_vitals_discovery_failures_total", "counter", "Discovery refreshes that failed; the last good list stays in use.", ("origin",)),
    Metric("vllm_vitals_scrape_duration_seconds", "gauge", "Time to build the previous /metrics answer."),
    Metric("vllm_vitals_scrapes_total", "counter", "Answers on /metrics."),
    Metric("vllm_vitals_http_rejected_total", "counter", "Connections and requests refused, by reason.", ("reason",)),
    Metric("vllm_vitals_part_failures_total", "counter", "Failures inside a part of the exporter; the rest of the page stayed.", ("part",)),
    Metric("vllm_vitals_part_duration_seconds", "gauge", "Time that a part of the exporter took last: its samples for the page, or a round of observe, promises or discover, waiting included.", ("part",)),
    Metric("vllm_vitals_web_config_reload_failures_total", "counter", "Reloads of the web config file that failed; the last good one stays in use."),
    Metric("vllm_vitals_process_cpu_seconds_total", "counter", "CPU time of this exporter."),
    Metric("vllm_vitals_process_resident_memory_bytes", "gauge", "Resident memory of this exporter."),
    Metric("vllm_vitals_process_open_fds", "gauge", "Open file descriptors of this exporter."),
    Metric("vllm_vitals_process_threads", "gauge", "Threads of this exporter."),
    Metric("vllm_vitals_process_start_time_seconds", "gauge", "Unix time at which this exporter started."),
)

# --- The vLLM plugin's. On /metrics/requests: OpenMetrics with exemplars. ----------------------------------------------
# A request with several sequences (n > 1) is one request, and each of its sequences is one observation of the phases.
_MODEL = ("model_name",)
REQUESTS: Final = (
    Metric("vllm_vitals_requests_total", "counter", "Requests by outcome; model_name: the LoRA adapter or served model, other for a name that is not served; outcome: ok, aborted, disconnected, client_error, server_error or rejected.", (*_MODEL, "outcome")),
    Metric("vllm_vitals_request_ingress_seconds", "histogram", "Arrival at the API server to the engine core's queue: tokenising, and the wait for the running step.", _MODEL),
    Metric("vllm_vitals_request_queue_seconds", "histogram", "Engine core's queue to the scheduler's first pick.", _MODEL),
    Metric("vllm_vitals_request_prefill_seconds", "histogram", "First pick to the first token.", _MODEL),
    Metric("vllm_vitals_request_decode_seconds", "histogram", "First to last token, of requests that ended well.", _MODEL),
    Metric("vllm_vitals_request_time_to_first_token_seconds", "histogram", "Arrival at the API server to the engine's first token.", _MODEL),
    Metric("vllm_vitals_request_time_per_output_token_seconds", "histogram", "Decode time over output tokens less one, of requests that ended well with two tokens or more.", _MODEL),
    Metric("vllm_vitals_request_e2e_seconds", "histogram", "Begin to end of requests that ended well, on the HTTP side where the middleware is installed.", _MODEL),
    Metric("vllm_vitals_request_preempted_seconds_total", "counter", "Time that sequences lay preempted.", _MODEL),
    Metric("vllm_vitals_request_preemptions_total", "counter", "Preemptions of sequences.", _MODEL),
    Metric("vllm_vitals_request_input_tokens_total", "counter", "Prompt tokens of sequences that reached their first token, which is when vLLM counts them.", (*_MODEL, "outcome")),
    Metric("vllm_vitals_request_cached_tokens_total", "counter", "Those of the input tokens that a KV cache held.", (*_MODEL, "outcome")),
    Metric("vllm_vitals_request_output_tokens_total", "counter", "Tokens generated, also those of requests that did not end well.", (*_MODEL, "outcome")),
    Metric("vllm_vitals_requests_good_total", "counter", "Requests that ended well and met the TTFT and TPOT targets together, with each of their sequences; with one output token TTFT alone counts.", _MODEL),
    Metric("vllm_vitals_requests_slow_total", "counter", "Requests that ended well but missed a target; missed: ttft, tpot or both.", (*_MODEL, "missed")),
    Metric("vllm_vitals_goodput_target_seconds", "gauge", "Targets behind the good and slow requests; objective: ttft or tpot.", ("objective",)),
    Metric("vllm_vitals_engine_fatal_errors_total", "counter", "Errors that kill an engine, by kind, from the log stream.", ("kind",)),
)
# The plugin's own work: on vLLM's /metrics, with several API servers on /metrics/requests, never on both.
TRACING: Final = (
    Metric("vllm_vitals_tracing_info", "gauge", "Constant 1 per way of running the plugin.", ("mode", "export", "version", "vllm_version")),
    Metric("vllm_vitals_tracing_spans_total", "counter", "Spans; result: emitted (the collector took them), dropped (queue full or retries used up) or failed (the collector refused them).", ("result",)),
    Metric("vllm_vitals_tracing_export_failures_total", "counter", "Calls to the collector that failed."),
    Metric("vllm_vitals_tracing_requests_dropped_total", "counter", "Requests of which nothing is reported: the queue behind the event loop was full."),
    Metric("vllm_vitals_tracing_hook_fallbacks_total", "counter", "Hooks that do not fit this vLLM, so less is known.", ("hook",)),
    Metric("vllm_vitals_tracing_hook_failures_total", "counter", "Times that a hook raised and was passed by.", ("hook",)),
    Metric("vllm_vitals_tracing_sink_failures_total", "counter", "Requests that a sink could not report.", ("sink",)),
    Metric("vllm_vitals_tracing_forced_sampling_refused_total", "counter", "Sampled flags of callers above the cap."),
    Metric("vllm_vitals_tracing_audit_failures_total", "counter", "Audit records that could not be written."),
    Metric("vllm_vitals_tracing_gpu_facts_failures_total", "counter", "Times that the exporter did not tell the engine's GPUs."),
)

# fmt: on
# The exporter's own: an engine's page may not bring them. The plugin's come from engines.
OURS: Final[dict[str, Metric]] = {metric.name: metric for metric in (*VITALS, *NVIDIA_GPU)}
PLUGIN: Final[dict[str, Metric]] = {metric.name: metric for metric in (*REQUESTS, *TRACING)}

# Values of the labels that have few: (family, label) -> values. A label that says why nothing is wrong is empty.
_DOMAINS: Final = ("graphics", "sm", "memory", "video")
# The driver says of some reasons only that they hold now, of others only for how long they held.
_THROTTLES: Final = tuple(code for code in THROTTLE if code not in {"low_utilization", "power_smoothing"})
_THROTTLE_TIMES: Final = tuple(
    code for code in THROTTLE if code not in {"application_clocks", "display_clocks", "hw_slowdown"}
)
_LIMITS: Final = ("shutdown", "slowdown", "memory_max", "gpu_max")
_OUTCOMES: Final = ("ok", "aborted", "disconnected", "client_error", "server_error", "rejected")
_PCIE: Final = ("tx", "rx")
VALUES: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("nvidia_gpu_up", "reason"): tuple(GPU),
    ("nvidia_gpu_collect_failures_total", "reason"): tuple(code for code in GPU if code != "starting"),
    ("vllm_vitals_nvml_up", "reason"): tuple(code for code in DRIVER if code != "off"),
    ("vllm_vitals_server_up", "reason"): tuple(FETCH),
    ("vllm_vitals_server_request_page_failures_total", "reason"): tuple(FETCH),
    ("vllm_vitals_host_up", "reason"): tuple(HOST),
    ("vllm_vitals_http_rejected_total", "reason"): tuple(REFUSAL),
    ("nvidia_gpu_power_watts", "kind"): ("average", "instant"),
    ("nvidia_gpu_power_limit_watts", "kind"): ("min", "max", "default", "enforced", "requested"),
    ("nvidia_gpu_temperature_celsius", "sensor"): ("gpu", "memory"),
    ("nvidia_gpu_temperature_limit_celsius", "kind"): _LIMITS,
    ("nvidia_gpu_temperature_margin_limit_celsius", "kind"): _LIMITS,
    ("nvidia_gpu_clock_hertz", "domain"): _DOMAINS,
    ("nvidia_gpu_clock_max_hertz", "domain"): _DOMAINS,
    ("nvidia_gpu_throttle_active", "reason"): _THROTTLES,
    ("nvidia_gpu_throttle_seconds_total", "reason"): _THROTTLE_TIMES,
    ("nvidia_gpu_pcie_bytes_total", "direction"): _PCIE,
    ("nvidia_gpu_nvlink_bytes_total", "direction"): _PCIE,
    ("nvidia_gpu_pcie_link_generation", "kind"): ("current", "max"),
    ("nvidia_gpu_pcie_link_width_lanes", "kind"): ("current", "max"),
    ("nvidia_gpu_ecc_errors_total", "severity"): ("corrected", "uncorrected"),
    ("nvidia_gpu_ecc_errors_total", "scope"): ("volatile", "aggregate"),
    ("nvidia_gpu_remapped_rows", "cause"): ("correctable", "uncorrectable"),
    ("nvidia_gpu_retired_pages", "cause"): ("single_bit", "double_bit"),
    ("vllm_vitals_host_network_errors_total", "direction"): ("receive", "transmit"),
    ("vllm_vitals_engine_process_cpu_seconds_total", "role"): ("api_server", "engine_core", "worker", "other"),
    ("vllm_vitals_requests_total", "outcome"): _OUTCOMES,
    ("vllm_vitals_request_input_tokens_total", "outcome"): _OUTCOMES,
    ("vllm_vitals_request_cached_tokens_total", "outcome"): _OUTCOMES,
    ("vllm_vitals_request_output_tokens_total", "outcome"): _OUTCOMES,
    ("vllm_vitals_requests_slow_total", "missed"): ("ttft", "tpot", "both"),
    ("vllm_vitals_goodput_target_seconds", "objective"): ("ttft", "tpot"),
    ("vllm_vitals_tracing_spans_total", "result"): ("emitted", "dropped", "failed"),
}

# --- Engines' names. One dialect on our page: today's vLLM names. -------------------------------------------------------
# Families as their TYPE line states them, old -> new. Where a page has both, the old one is dropped: same thing twice.
# vLLM: read off the source of 0.8.5 to 0.33. SGLang: srt/observability/metrics_collector.py, only where the meaning is the
# same; the rest keeps its sglang: name.
RENAMES: Final[dict[str, str]] = {
    "vllm:gpu_cache_usage_perc": "vllm:kv_cache_usage_perc",  # both 0.9.2 to 0.10, old gone in 0.12
    "vllm:gpu_prefix_cache_queries_total": "vllm:prefix_cache_queries_total",
    "vllm:gpu_prefix_cache_queries_created": "vllm:prefix_cache_queries_created",
    "vllm:gpu_prefix_cache_hits_total": "vllm:prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_hits_created": "vllm:prefix_cache_hits_created",
    "vllm:time_per_output_token_seconds": "vllm:inter_token_latency_seconds",  # both 0.10.2 to 0.14
    "vllm:time_per_output_token_seconds_created": "vllm:inter_token_latency_seconds_created",
    "vllm:time_in_queue_requests": "vllm:request_queue_time_seconds",  # V0 engine of 0.8.5
    "vllm:time_in_queue_requests_created": "vllm:request_queue_time_seconds_created",
    "sglang:num_running_reqs": "vllm:num_requests_running",
    "sglang:num_queue_reqs": "vllm:num_requests_waiting",
    "sglang:token_usage": "vllm:kv_cache_usage_perc",  # 0 to 1 in both
    "sglang:prompt_tokens_total": "vllm:prompt_tokens_total",
    "sglang:generation_tokens_total": "vllm:generation_tokens_total",
    "sglang:cached_tokens_total": "vllm:prompt_tokens_cached_total",
    "sglang:num_requests_total": "vllm:request_success_total",  # without finished_reason
    "sglang:num_retracted_requests_total": "vllm:num_preemptions_total",
    "sglang:time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "sglang:inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "sglang:time_per_output_token_seconds": "vllm:inter_token_latency_seconds",  # its older name
    "sglang:e2e_request_latency_seconds": "vllm:e2e_request_latency_seconds",
    "sglang:queue_time_seconds": "vllm:request_queue_time_seconds",
}

# They describe the engine's API process and would collide with other exporters' families of the same name.
ENGINE_PROCESS_PREFIXES: Final = ("python_", "process_")

# vLLM creates a child of http_requests_total at the first event, so the first failure of a handler would be invisible to
# increase(). These children are on the page with 0 from the start; other handlers get theirs once they appear.
HTTP_REQUESTS: Final = "http_requests_total"
HTTP_HANDLERS: Final = (("/v1/chat/completions", "POST"), ("/v1/completions", "POST"), ("/v1/responses", "POST"))
HTTP_STATUSES: Final = ("2xx", "4xx", "5xx")

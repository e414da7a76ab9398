"""The families of vLLM 0.32.0's metrics page as data, in page order: names, types, help, labels and bucket bounds.

Read off tests/data/vllm-0.32.0-metrics.prom; names, help and bounds have to match it to the letter, so that whatever
works on the demo's page works on a real one. `_created` families are derived (see `created_name`).
"""

from typing import Final, Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram", "summary"]


class MetricFamily(NamedTuple):
    """One family of the page.

    Attributes:
        name: as the TYPE line states it.
        kind: Prometheus type.
        help: vLLM's own text.
        label: the one label beside `engine` and `model_name`, empty for none.
        children: values of that label, in page order.
        bounds: upper bounds of a histogram, without +Inf; TOKENS stands for `token_bounds`.
        per_engine: whether the family carries the `engine` label.
    """

    name: str
    kind: Kind
    help: str
    label: str = ""
    children: tuple[str, ...] = ("",)
    bounds: tuple[float, ...] = ()
    per_engine: bool = True


def created_name(family: MetricFamily) -> str:
    """Return the name of the gauge that says when a family was created."""
    base = family.name.removesuffix("_total") if family.kind == "counter" else family.name
    return f"{base}_created"


def token_bounds(max_model_len: int) -> tuple[float, ...]:
    """Return vLLM's bounds for token counts: 1, 2, 5, 10, ... up to the context length."""
    bounds: list[float] = []
    decade = 1
    while decade <= max_model_len:
        bounds += [step * decade for step in (1, 2, 5) if step * decade <= max_model_len]
        decade *= 10
    return tuple(bounds)


TOKENS: Final = (-1.0,)  # placeholder: the bounds depend on the model's context length
FIRST_TOKEN: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
TOKEN_GAP: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
LATENCY: Final = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)

# The API server's process, labels as prometheus_client's own collectors write them.
PROCESS: Final = (
    MetricFamily(
        "python_gc_objects_collected_total",
        "counter",
        "Objects collected during gc",
    ),
    MetricFamily(
        "python_gc_objects_uncollectable_total",
        "counter",
        "Uncollectable objects found during GC",
    ),
    MetricFamily(
        "python_gc_collections_total",
        "counter",
        "Number of times this generation was collected",
    ),
    MetricFamily(
        "python_info",
        "gauge",
        "Python platform information",
    ),
    MetricFamily(
        "process_virtual_memory_bytes",
        "gauge",
        "Virtual memory size in bytes.",
    ),
    MetricFamily(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
    ),
    MetricFamily(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
    ),
    MetricFamily(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
    ),
    MetricFamily(
        "process_open_fds",
        "gauge",
        "Number of open file descriptors.",
    ),
    MetricFamily(
        "process_max_fds",
        "gauge",
        "Maximum number of open file descriptors.",
    ),
)

# What the engine core reports, once per engine.
ENGINE: Final = (
    MetricFamily(
        "vllm:estimated_flops_per_gpu_total",
        "counter",
        "Estimated number of floating point operations per GPU (for Model Flops Utilization calculations).",
    ),
    MetricFamily(
        "vllm:estimated_read_bytes_per_gpu_total",
        "counter",
        "Estimated number of bytes read from memory per GPU (for Model Flops Utilization calculations).",
    ),
    MetricFamily(
        "vllm:estimated_write_bytes_per_gpu_total",
        "counter",
        "Estimated number of bytes written to memory per GPU (for Model Flops Utilization calculations).",
    ),
    MetricFamily(
        "vllm:num_requests_running",
        "gauge",
        "Number of requests in model execution batches.",
    ),
    MetricFamily(
        "vllm:num_requests_waiting",
        "gauge",
        "Number of requests waiting to be processed.",
    ),
    MetricFamily(
        "vllm:num_requests_waiting_by_reason",
        "gauge",
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; "
        "'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of "
        "all reasons equals vllm:num_requests_waiting.",
        label="reason",
        children=("capacity", "deferred"),
    ),
    MetricFamily(
        "vllm:engine_sleep_state",
        "gauge",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; "
        "weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
        label="sleep_state",
        children=("awake", "weights_offloaded", "discard_all"),
    ),
    MetricFamily(
        "vllm:kv_cache_usage_perc",
        "gauge",
        "KV-cache usage. 1 means 100 percent usage.",
    ),
    MetricFamily(
        "vllm:prefix_cache_queries_total",
        "counter",
        "Prefix cache queries, in terms of number of queried tokens.",
    ),
    MetricFamily(
        "vllm:prefix_cache_hits_total",
        "counter",
        "Prefix cache hits, in terms of number of cached tokens.",
    ),
    MetricFamily(
        "vllm:external_prefix_cache_queries_total",
        "counter",
        "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of "
        "queried tokens.",
    ),
    MetricFamily(
        "vllm:external_prefix_cache_hits_total",
        "counter",
        "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of "
        "cached tokens.",
    ),
    MetricFamily(
        "vllm:mm_cache_queries_total",
        "counter",
        "Multi-modal cache queries, in terms of number of queried items.",
    ),
    MetricFamily(
        "vllm:mm_cache_hits_total",
        "counter",
        "Multi-modal cache hits, in terms of number of cached items.",
    ),
    MetricFamily(
        "vllm:num_preemptions_total",
        "counter",
        "Cumulative number of preemption from the engine.",
    ),
    MetricFamily(
        "vllm:prompt_tokens_total",
        "counter",
        "Number of prefill tokens processed.",
    ),
    MetricFamily(
        "vllm:prompt_tokens_by_source_total",
        "counter",
        "Number of prompt tokens by source.",
        label="source",
        children=("local_compute", "local_cache_hit", "external_kv_transfer"),
    ),
    MetricFamily(
        "vllm:prompt_tokens_cached_total",
        "counter",
        "Number of cached prompt tokens (local + external).",
    ),
    MetricFamily(
        "vllm:prompt_tokens_cached_by_source_total",
        "counter",
        "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded "
        "to DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at "
        "admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
        label="source",
        children=("device", "host", "p2p", "disk", "external_unspecified"),
    ),
    MetricFamily(
        "vllm:generation_tokens_total",
        "counter",
        "Number of generation tokens processed.",
    ),
    MetricFamily(
        "vllm:request_success_total",
        "counter",
        "Count of successfully processed requests.",
        label="finished_reason",
        children=("stop", "length", "abort", "error", "repetition"),
    ),
    MetricFamily(
        "vllm:admission_rejections_total",
        "counter",
        "Number of admission attempts rejected by a queue limit, by reason.",
        label="reason",
        children=("max_num_queued_reqs", "max_num_queued_tokens"),
        per_engine=False,
    ),
    MetricFamily(
        "vllm:request_prompt_tokens",
        "histogram",
        "Number of prefill tokens processed.",
        bounds=TOKENS,
    ),
    MetricFamily(
        "vllm:request_generation_tokens",
        "histogram",
        "Number of generation tokens processed.",
        bounds=TOKENS,
    ),
    MetricFamily(
        "vllm:iteration_tokens_total",
        "histogram",
        "Histogram of number of tokens per engine_step.",
        bounds=(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    ),
    MetricFamily(
        "vllm:request_max_num_generation_tokens",
        "histogram",
        "Histogram of maximum number of requested generation tokens.",
        bounds=TOKENS,
    ),
    MetricFamily(
        "vllm:request_params_n",
        "histogram",
        "Histogram of the n request parameter.",
        bounds=(1, 2, 5, 10, 20),
    ),
    MetricFamily(
        "vllm:request_params_max_tokens",
        "histogram",
        "Histogram of the max_tokens request parameter.",
        bounds=TOKENS,
    ),
    MetricFamily(
        "vllm:time_to_first_token_seconds",
        "histogram",
        "Histogram of time to first token in seconds.",
        bounds=FIRST_TOKEN,
    ),
    MetricFamily(
        "vllm:inter_token_latency_seconds",
        "histogram",
        "Histogram of inter-token latency in seconds.",
        bounds=TOKEN_GAP,
    ),
    MetricFamily(
        "vllm:request_time_per_output_token_seconds",
        "histogram",
        "Histogram of time_per_output_token_seconds per request.",
        bounds=TOKEN_GAP,
    ),
    MetricFamily(
        "vllm:e2e_request_latency_seconds",
        "histogram",
        "Histogram of e2e request latency in seconds.",
        bounds=LATENCY,
    ),
    MetricFamily(
        "vllm:request_queue_time_seconds",
        "histogram",
        "Histogram of time spent in WAITING phase for request.",
        bounds=LATENCY,
    ),
    MetricFamily(
        "vllm:request_inference_time_seconds",
        "histogram",
        "Histogram of time spent in RUNNING phase for request.",
        bounds=LATENCY,
    ),
    MetricFamily(
        "vllm:request_prefill_time_seconds",
        "histogram",
        "Histogram of time spent in PREFILL phase for request.",
        bounds=LATENCY,
    ),
    MetricFamily(
        "vllm:request_decode_time_seconds",
        "histogram",
        "Histogram of time spent in DECODE phase for request.",
        bounds=LATENCY,
    ),
    MetricFamily(
        "vllm:request_num_preemptions",
        "histogram",
        "Histogram of the number of times a request was preempted.",
        bounds=(1, 2, 3, 4, 5, 10, 20),
    ),
    MetricFamily(
        "vllm:request_prefill_kv_computed_tokens",
        "histogram",
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        bounds=TOKENS,
    ),
)

CACHE_CONFIG: Final = MetricFamily(
    "vllm:cache_config_info",
    "gauge",
    "Information of the LLMEngine CacheConfig",
)

# The HTTP layer's instrumentation; its children appear with the first request of each kind.
HTTP: Final = (
    MetricFamily(
        "http_requests_total",
        "counter",
        "Total number of requests by method, status and handler.",
    ),
    MetricFamily(
        "http_request_size_bytes",
        "summary",
        "Content length of incoming requests by handler. Only value of header is respected. Otherwise "
        "ignored. No percentile calculated. ",
    ),
    MetricFamily(
        "http_response_size_bytes",
        "summary",
        "Content length of outgoing responses by handler. Only value of header is respected. Otherwise "
        "ignored. No percentile calculated. ",
    ),
    MetricFamily(
        "http_request_duration_highr_seconds",
        "histogram",
        "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. ",
        bounds=(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60),
    ),
    MetricFamily(
        "http_request_duration_seconds",
        "histogram",
        "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. ",
        bounds=(0.1, 0.5, 1),
    ),
)

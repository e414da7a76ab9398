"""The metrics of vLLM's own pages that rules, dashboards and reports read: names, types, labels, and values of labels.

Read off pages of vLLM 0.32.0 (tests/data) and, for what a server shows only with a flag, its source up to 0.33. Every
`vllm:` family carries `model_name` and, but for admission_rejections, `engine`; behind our exporter also `server`.
"""

from collections.abc import Mapping
from typing import Final

from .ours import Metric

_ENGINE: Final = ("model_name", "engine")

# fmt: off
VLLM: Final = (
    Metric("vllm:num_requests_running", "gauge", "Sequences in the running batch.", _ENGINE),
    Metric("vllm:num_requests_waiting", "gauge", "Sequences that wait for the scheduler.", _ENGINE),
    Metric("vllm:num_requests_waiting_by_reason", "gauge", "The same by reason.", (*_ENGINE, "reason")),
    Metric("vllm:kv_cache_usage_perc", "gauge", "Share of KV blocks in use, 0 to 1.", _ENGINE),
    Metric("vllm:engine_sleep_state", "gauge", "1 for the state that holds.", (*_ENGINE, "sleep_state")),
    Metric("vllm:cache_config_info", "gauge", "Constant 1 with the KV cache's configuration.", ("engine", "block_size", "num_gpu_blocks", "cache_dtype", "gpu_memory_utilization", "enable_prefix_caching", "kv_cache_size_tokens")),
    Metric("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the local prefix cache.", _ENGINE),
    Metric("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found there.", _ENGINE),
    Metric("vllm:external_prefix_cache_queries_total", "counter", "Prompt tokens looked up in a cache shared through a KV connector.", _ENGINE),
    Metric("vllm:external_prefix_cache_hits_total", "counter", "Prompt tokens found there.", _ENGINE),
    Metric("vllm:mm_cache_queries_total", "counter", "Items looked up in the multi-modal cache.", _ENGINE),
    Metric("vllm:mm_cache_hits_total", "counter", "Items found there.", _ENGINE),
    Metric("vllm:num_preemptions_total", "counter", "Preemptions.", _ENGINE),
    Metric("vllm:prompt_tokens_total", "counter", "Prompt tokens, cached ones included.", _ENGINE),
    Metric("vllm:prompt_tokens_by_source_total", "counter", "Prompt tokens by where they came from.", (*_ENGINE, "source")),
    Metric("vllm:prompt_tokens_cached_total", "counter", "Prompt tokens that were not computed.", _ENGINE),
    Metric("vllm:prompt_tokens_cached_by_source_total", "counter", "The same by the cache tier that supplied them.", (*_ENGINE, "source")),
    Metric("vllm:generation_tokens_total", "counter", "Tokens generated.", _ENGINE),
    Metric("vllm:request_success_total", "counter", "Sequences that ended, in spite of its name however they ended.", (*_ENGINE, "finished_reason")),
    Metric("vllm:admission_rejections_total", "counter", "Requests refused by a queue limit; also counted as HTTP 503.", ("model_name", "reason")),
    Metric("vllm:request_prompt_tokens", "histogram", "Prompt tokens per finished sequence.", _ENGINE),
    Metric("vllm:request_generation_tokens", "histogram", "Generated tokens per finished sequence.", _ENGINE),
    Metric("vllm:request_max_num_generation_tokens", "histogram", "Most tokens that a request could get.", _ENGINE),
    Metric("vllm:request_params_n", "histogram", "Parameter n.", _ENGINE),
    Metric("vllm:request_params_max_tokens", "histogram", "Parameter max_tokens.", _ENGINE),
    Metric("vllm:iteration_tokens_total", "histogram", "Tokens per engine step; a histogram in spite of its name.", _ENGINE),
    Metric("vllm:time_to_first_token_seconds", "histogram", "Arrival at the API server to the first token.", _ENGINE),
    Metric("vllm:inter_token_latency_seconds", "histogram", "Gap between two outputs of a sequence.", _ENGINE),
    Metric("vllm:request_time_per_output_token_seconds", "histogram", "Mean gap of a sequence.", _ENGINE),
    Metric("vllm:e2e_request_latency_seconds", "histogram", "Arrival to the last token.", _ENGINE),
    Metric("vllm:request_queue_time_seconds", "histogram", "Wait in the engine core, known when the sequence ends.", _ENGINE),
    Metric("vllm:request_prefill_time_seconds", "histogram", "First pick by the scheduler to the first token.", _ENGINE),
    Metric("vllm:request_decode_time_seconds", "histogram", "First to last token, preempted time included.", _ENGINE),
    Metric("vllm:request_inference_time_seconds", "histogram", "Prefill and decode.", _ENGINE),
    Metric("vllm:request_num_preemptions", "histogram", "Preemptions per sequence.", _ENGINE),
    Metric("vllm:request_prefill_kv_computed_tokens", "histogram", "Prompt tokens that were really computed.", _ENGINE),
    Metric("vllm:estimated_flops_per_gpu_total", "counter", "Estimated floating point operations; 0 without --enable-mfu-metrics.", _ENGINE),
    Metric("vllm:estimated_read_bytes_per_gpu_total", "counter", "Estimated bytes read from device memory.", _ENGINE),
    Metric("vllm:estimated_write_bytes_per_gpu_total", "counter", "Estimated bytes written to device memory.", _ENGINE),
    Metric("http_requests_total", "counter", "HTTP requests; status is a class such as 5xx.", ("handler", "method", "status")),
    Metric("http_request_duration_seconds", "histogram", "Time of HTTP requests in few buckets.", ("handler", "method")),
    Metric("http_request_duration_highr_seconds", "histogram", "Time of HTTP requests in many buckets."),
)
# Families that a server shows only with a flag or a feature; the text says which, for `no series` messages.
OPTIONAL: Final[Mapping[Metric, str]] = {
    Metric("vllm:corrupted_requests_total", "counter", "Requests with NaN in their logits.", _ENGINE): "VLLM_COMPUTE_NANS_IN_LOGITS=1",
    Metric("vllm:kv_block_lifetime_seconds", "histogram", "Life of a KV block.", _ENGINE): "--kv-cache-metrics",
    Metric("vllm:kv_block_idle_before_evict_seconds", "histogram", "Idle time of a KV block before it was evicted.", _ENGINE): "--kv-cache-metrics",
    Metric("vllm:kv_block_reuse_gap_seconds", "histogram", "Time between two uses of a KV block.", _ENGINE): "--kv-cache-metrics",
    Metric("vllm:lora_requests_info", "gauge", "Adapters that run and wait, in labels; its value is a time.", ("max_lora", "running_lora_adapters", "waiting_lora_adapters")): "--enable-lora",
    Metric("vllm:spec_decode_num_drafts_total", "counter", "Drafts.", _ENGINE): "--speculative-config",
    Metric("vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens drafted.", _ENGINE): "--speculative-config",
    Metric("vllm:spec_decode_num_accepted_tokens_total", "counter", "Drafted tokens that were accepted.", _ENGINE): "--speculative-config",
    Metric("vllm:spec_decode_num_accepted_tokens_per_pos_total", "counter", "The same by position in the draft.", (*_ENGINE, "position")): "--speculative-config",
}
# fmt: on

_TIERS: Final = ("device", "host", "disk", "p2p", "external_unspecified")
VALUES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("vllm:num_requests_waiting_by_reason", "reason"): ("capacity", "deferred"),
    ("vllm:engine_sleep_state", "sleep_state"): ("awake", "weights_offloaded", "discard_all"),
    ("vllm:prompt_tokens_by_source_total", "source"): ("local_compute", "local_cache_hit", "external_kv_transfer"),
    ("vllm:prompt_tokens_cached_by_source_total", "source"): _TIERS,
    ("vllm:request_success_total", "finished_reason"): ("stop", "length", "abort", "error", "repetition"),
    ("vllm:admission_rejections_total", "reason"): ("max_num_queued_reqs", "max_num_queued_tokens"),
    ("http_requests_total", "status"): ("1xx", "2xx", "3xx", "4xx", "5xx"),
    ("http_requests_total", "method"): ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"),
}

ENGINES: Final[dict[str, Metric]] = {metric.name: metric for metric in (*VLLM, *OPTIONAL)}

"""Why promises break: what to look at, what it says, and what to change. Runbooks are put together from these."""

from typing import Final, NamedTuple

from .selectors import matchers, of_target
from .sla import Service, Sla


class Cause(NamedTuple):
    """One thing to look at.

    Attributes:
        question: answered by the query.
        query: PromQL with SERVICE, TARGET and GPUS in the place of label matchers.
        reading: what an answer means, and what to change then.
        dashboard: which of ours shows it: the part of its uid after `vitals-`.
    """

    question: str
    query: str
    reading: str
    dashboard: str


CAUSES: Final = {
    "arrivals": Cause(
        "Do more requests come than an hour or a day ago?",
        'sum by (server) (rate(http_requests_total{TARGET,method="POST"}[5m]))',
        "A step up: a caller without a limit, a retry storm, a campaign. Limit it at the gateway, or add replicas. "
        "Nothing changed: look on.",
        "overview",
    ),
    "queue": Cause(
        "Do requests wait for the scheduler?",
        "max by (server, model_name, engine) (vllm:num_requests_waiting{SERVICE})",
        "Waiting requests with a KV cache that has room: raise `--max-num-seqs`. With a full one: see the KV cache. "
        "On one engine only: the load balancer does not spread by load.",
        "engine",
    ),
    "kv-cache": Cause(
        "Is the KV cache full?",
        "max by (server, model_name, engine) (vllm:kv_cache_usage_perc{SERVICE})",
        "Near 1 the scheduler admits nobody and preempts. Make room: a higher `--gpu-memory-utilization`, "
        "`--kv-cache-dtype fp8`, a lower `--max-model-len`, more GPUs per engine (`--tensor-parallel-size`), replicas. "
        "Or admit fewer at a time: a lower `--max-num-seqs`.",
        "engine",
    ),
    "preemptions": Cause(
        "Are sequences preempted?",
        "sum by (server, model_name) (rate(vllm:num_preemptions_total{SERVICE}[5m]))",
        "Each preempted sequence is computed again from its prompt. Lower `--max-num-seqs` until it stops, or make "
        "room in the KV cache.",
        "engine",
    ),
    "prompt-length": Cause(
        "Did prompts become longer?",
        "histogram_quantile(0.95, sum by (le, model_name) (rate(vllm:request_prompt_tokens_bucket{SERVICE}[15m])))",
        "Long prompts take the steps of all others. Chunked prefill with a lower `--max-num-batched-tokens` protects "
        "running answers, a higher one shortens first tokens; `--max-model-len` refuses the longest.",
        "engine",
    ),
    "prefix-cache": Cause(
        "Did the prefix cache stop helping?",
        "sum by (server, model_name) (rate(vllm:prefix_cache_hits_total{SERVICE}[15m]))\n"
        "/ (sum by (server, model_name) (rate(vllm:prefix_cache_queries_total{SERVICE}[15m])) > 0)",
        "A fall: a changed prompt template (something variable at its beginning), callers spread over replicas "
        "without affinity, or no room for cached blocks. `--enable-prefix-caching` must be on.",
        "engine",
    ),
    "phases": Cause(
        "Which phase takes the time?",
        "sum by (model_name) (rate(vllm:request_queue_time_seconds_sum{SERVICE}[5m]))\n"
        "/ (sum by (model_name) (rate(vllm:request_queue_time_seconds_count{SERVICE}[5m])) > 0)",
        "The mean wait in the queue; the same with `prefill` and `decode` for the other two. Queue: capacity. Prefill: "
        "prompts, prefix cache, GPU. Decode: batch size, preemptions, GPU.",
        "engine",
    ),
    "batch": Cause(
        "How many tokens does a step compute?",
        "sum by (server, model_name) (rate(vllm:iteration_tokens_total_sum{SERVICE}[5m]))\n"
        "/ (sum by (server, model_name) (rate(vllm:iteration_tokens_total_count{SERVICE}[5m])) > 0)",
        "Large steps hold up each running answer. Lower `--max-num-batched-tokens` (chunked prefill) or "
        "`--max-num-seqs`; add replicas when throughput then falls short.",
        "engine",
    ),
    "odd-replica": Cause(
        "Is it one replica?",
        "topk(3, histogram_quantile(0.95, sum by (le, server, model_name) "
        "(rate(vllm:time_to_first_token_seconds_bucket{SERVICE}[5m]))))",
        "One stands out: look at its GPUs, drain it, restart it. All alike: load or workload.",
        "fleet",
    ),
    "api-server": Cause(
        "Is the API process out of CPU?",
        'max by (server) (vllm_vitals_engine_process_max_cpu_ratio{TARGET,role="api_server"})',
        "Near 1: one Python process tokenises, detokenises and streams for all. `--api-server-count 2` or more, or "
        "replicas.",
        "engine",
    ),
    "http-errors": Cause(
        "Which handlers fail?",
        'sum by (server, handler) (rate(http_requests_total{TARGET,status="5xx"}[5m]))',
        "5xx are the server's: engine errors, refused admissions (503), a dead engine. 4xx are the callers' and are "
        "not in this budget.",
        "engine",
    ),
    "admission": Cause(
        "Are requests refused by a queue limit?",
        "sum by (model_name, reason) (rate(vllm:admission_rejections_total{MODEL}[5m]))",
        "They are among the 5xx, as 503. The limit protects the engine: add replicas, raise the limit "
        "(`--max-num-queued-reqs`), or let callers retry later.",
        "engine",
    ),
    "finish-reasons": Cause(
        "How do sequences end?",
        "sum by (model_name, finished_reason) (rate(vllm:request_success_total{SERVICE}[5m]))",
        "`error`: the engine could not continue a request; the reason is in vLLM's log and in our request line. "
        "`length` where `stop` was usual: answers run to `max_tokens`.",
        "engine",
    ),
    "fatal-errors": Cause(
        "Did an engine log an out-of-memory error or a crash?",
        "sum by (server, kind) (increase(vllm_vitals_engine_fatal_errors_total[1h])) > 0",
        "Needs the tracing plugin. CUDA out of memory: lower `--gpu-memory-utilization` or `--max-num-batched-tokens`, "
        "look for other processes on the GPU. Host out of memory: the container's limit.",
        "requests",
    ),
    "server-up": Cause(
        "Which servers do not answer, and why?",
        "vllm_vitals_server_up{TARGET} == 0",
        "`refused`: no process; `timeout`: it hangs or the machine is busy; `http_status`: its log says why. The "
        "container's exit code and last lines say more.",
        "fleet",
    ),
    "restarts": Cause(
        "Did servers restart?",
        "increase(vllm_vitals_server_restarts_total{TARGET}[1h]) > 0",
        "Somebody, a liveness probe or a crash: Kubernetes' events and exit codes tell. A model that takes long to "
        "load needs a startup probe.",
        "fleet",
    ),
    "running": Cause(
        "Do requests run, and do tokens come?",
        "sum by (server, model_name) (rate(vllm:generation_tokens_total{SERVICE}[5m]))",
        "Running requests without tokens: the engine hangs, often in a collective after a GPU or a worker was lost. "
        "Look for XIDs, save py-spy's dump of the worker, restart the server.",
        "engine",
    ),
    "throttle": Cause(
        "Are the model's GPUs held down?",
        "sum by (uuid, reason) (rate(nvidia_gpu_throttle_seconds_total"
        '{GPUS,reason=~"hw_thermal|sw_thermal|hw_power_brake"}[5m]))'
        "\n* on (uuid) group_left (server, model_name) "
        "group by (uuid, server, model_name) (vllm_vitals_engine_gpu_info)",
        "Thermal: cooling, dust, neighbours. Power brake: the machine's supply. Drain the replica until it is mended.",
        "gpu",
    ),
    "clocks": Cause(
        "Do clocks differ between GPUs?",
        'nvidia_gpu_clock_hertz{GPUS,domain="sm"} / (nvidia_gpu_clock_max_hertz{GPUS,domain="sm"} > 0)',
        "In a tensor-parallel group the slowest GPU sets the pace for all.",
        "gpu",
    ),
    "temperature": Cause(
        "How hot are GPU and memory?",
        "max by (instance, gpu, sensor) (nvidia_gpu_temperature_celsius{GPUS})",
        "One hot GPU: its fan, its slot, its paste. All: the room or the load.",
        "gpu",
    ),
    "power": Cause(
        "How much power is drawn of what is allowed?",
        "max by (instance, gpu) (nvidia_gpu_power_watts{GPUS})",
        "A limit set below the default (`nvidia-smi -q -d POWER`) slows decode little and prefill much.",
        "gpu",
    ),
    "gpu-memory": Cause(
        "Who holds the memory?",
        "sum by (instance, gpu, uuid) (nvidia_gpu_memory_used_bytes{GPUS})",
        "vLLM takes `--gpu-memory-utilization` at its start and keeps it. More than that: a second process, or a "
        "leftover of a crashed one (`nvidia-smi`).",
        "gpu",
    ),
    "xid": Cause(
        "What did the driver report?",
        "sum by (instance, gpu, xid) (increase(nvidia_gpu_xid_errors_total{GPUS}[1h])) > 0",
        "The code says who is at fault; NVIDIA's catalogue says what to do. 13, 31, 43, 45: mostly the application.",
        "gpu",
    ),
    "ecc": Cause(
        "Which memory errors were there?",
        'sum by (instance, gpu, severity) (increase(nvidia_gpu_ecc_errors_total{GPUS,scope="volatile"}[1d]))',
        "Corrected ones in numbers, or any uncorrected one: plan a reset, which remaps rows, then a field diagnosis.",
        "gpu",
    ),
    "rows": Cause(
        "Are memory rows remapped, or is that still to come?",
        "nvidia_gpu_row_remap_pending{GPUS} == 1 or nvidia_gpu_row_remap_failure{GPUS} == 1",
        "Pending: drain and reset the GPU. Failure: replace it.",
        "gpu",
    ),
    "recovery": Cause(
        "What does the driver ask for?",
        "nvidia_gpu_recovery_action{GPUS} > 0",
        "1: `nvidia-smi --gpu-reset` after draining; 2: restart the machine; 3, 4: drain peer-to-peer traffic first.",
        "gpu",
    ),
    "gpu-up": Cause(
        "Which GPUs cannot be read, and why?",
        "nvidia_gpu_up{GPUS} == 0",
        "`lost`: it fell off the bus, only a reset or restart of the machine brings it back.",
        "gpu",
    ),
    "nvml": Cause(
        "Does the driver answer?",
        "vllm_vitals_nvml_up{GPUS} == 0",
        "The reason is in the label. After a driver update the old library does not fit: restart the container or the "
        "machine.",
        "pipeline",
    ),
    "exporter": Cause(
        "Is the exporter alive, and is it fast?",
        "vllm_vitals_scrape_duration_seconds",
        "No series: the process is gone or the network closed. Seconds: an engine's page is slow, its deadline is "
        "spent on it.",
        "pipeline",
    ),
    "placement": Cause(
        "Which engine is on which GPU?",
        "group by (server, model_name, gpu, uuid, source) (vllm_vitals_engine_gpu_info)",
        "Missing engines: the exporter cannot see their processes. Give it the host's PID namespace, or name the GPUs "
        "in vitals.yaml. `vllm-vitals doctor` says what is missing.",
        "gpu",
    ),
    "tracing-drops": Cause(
        "What does the plugin lose?",
        "sum by (server, result) (increase(vllm_vitals_tracing_spans_total{TARGET}[15m]))",
        "`dropped`: the collector is down or too slow; `failed`: it refuses them. Requests dropped: the machine has no "
        "CPU left for the plugin's thread.",
        "pipeline",
    ),
    "host": Cause(
        "Is the machine out of CPU or memory?",
        "vllm_vitals_host_memory_available_bytes / (vllm_vitals_host_memory_total_bytes > 0)",
        "Below a tenth: the kernel will kill somebody, and vLLM is the largest. Look at load, too.",
        "fleet",
    ),
}  # fmt: skip


def query_of(cause: Cause, sla: Sla, service: Service | None = None) -> str:
    """Return a cause's query for a service of an SLA, by default the first one."""
    chosen = service or sla.services[0]
    texts = {
        "SERVICE": matchers(chosen.selector),
        "MODEL": matchers({label: value for label, value in chosen.selector.items() if label != "engine"}),
        "TARGET": matchers(of_target(chosen)),
        "GPUS": matchers(sla.gpus.selector),
    }
    query = cause.query
    for name, text in texts.items():
        inner = text[1:-1]
        query = query.replace(f"{{{name},", f"{{{inner}," if inner else "{").replace(f"{{{name}}}", text)
    return query

"""Every field of a log line in Elasticsearch: its type, and what it says.

From here come the index template, the pipeline's renames and the table in docs/logs-and-traces.md.
"""

from typing import Final, Literal, NamedTuple

Type = Literal["boolean", "date", "flattened", "float", "keyword", "long", "match_only_text"]


class Field(NamedTuple):
    """A field under its ECS name.

    Attributes:
        made_here: Filebeat or the pipeline makes it; no line of ours has it.
    """

    name: str
    type: Type
    says: str
    made_here: bool = False


FIELDS: Final = (
    # Of every line
    Field("@timestamp", "date", "when it was written; of lines without a full time, when Docker got it"),
    Field("message", "match_only_text", "the text"),
    Field("log.level", "keyword", "debug, info, warning, error, critical; of other programs as they name it"),
    Field("log.logger", "keyword", "which logger"),
    Field("log.origin.file.name", "keyword", "source file"),
    Field("log.origin.file.line", "long", "line of it"),
    Field("log.iostream", "keyword", "stdout or stderr", made_here=True),
    Field("service.name", "keyword", "OTEL_SERVICE_NAME; of lines without one, the Compose service"),
    Field("process.pid", "long", "process that wrote it, as its container counts"),
    Field("process.name", "keyword", "vLLM's name of the process: APIServer, EngineCore ..."),
    Field("container.name", "keyword", "Docker's name of the container", made_here=True),
    Field("kubernetes.namespace", "keyword", "on Kubernetes", made_here=True),
    Field("kubernetes.pod.name", "keyword", "on Kubernetes", made_here=True),
    Field("kubernetes.container.name", "keyword", "on Kubernetes", made_here=True),
    Field("kubernetes.node.name", "keyword", "on Kubernetes", made_here=True),
    Field("error.type", "keyword", "HTTP status, disconnected, aborted, an exception's class, kind of engine failure"),
    Field("error.message", "match_only_text", "the exception's text"),
    Field("error.stack_trace", "match_only_text", "its traceback"),
    Field("stack_info", "match_only_text", "the stack where the line was written"),
    Field("request_id", "keyword", "X-Request-Id; of every line that is written while a request is served"),
    Field("session_id", "keyword", "the caller's session"),
    Field("trace.id", "keyword", "leads to the trace"),
    Field("span.id", "keyword", "span of the request"),
    # Of the one line per request
    Field("trace.sampled", "boolean", "whether there are spans to look for"),
    Field("model", "keyword", "model that was asked for"),
    Field("lora", "keyword", "LoRA adapter"),
    Field("outcome", "keyword", "ok, aborted, disconnected, client_error, server_error, rejected"),
    Field("event.outcome", "keyword", "success or failure"),
    Field("event.duration", "long", "nanoseconds from first byte in to last byte out"),
    Field("late", "boolean", "the engine's part of a request that was reported before"),
    Field("http.request.method", "keyword", "method"),
    Field("http.response.status_code", "long", "status of the answer"),
    Field("status", "long", "the same, shorter to type"),
    Field("url.path", "keyword", "path, without the query"),
    Field("client.address", "keyword", "who asked"),
    Field("client.port", "long", "from which port"),
    Field("client_disconnect", "boolean", "whether the caller disconnected before the answer was complete"),
    Field("stream", "boolean", "whether a stream was requested"),
    Field("operation", "keyword", "chat, text_completion, embeddings ..."),
    Field("user.hash", "keyword", "keyed hash of the body's user"),
    Field("labels", "flattened", "keyed hashes of chosen headers, and what else programs call a label"),
    Field("input_tokens", "long", "prompt tokens"),
    Field("output_tokens", "long", "generated tokens"),
    Field("cached_tokens", "long", "prompt tokens found in a KV cache"),
    Field("cache_hit", "boolean", "whether any were cached"),
    Field("preemptions", "long", "how often it was preempted"),
    Field("preempted_ms", "float", "for how long"),
    Field("ingress_ms", "float", "arrival to queue"),
    Field("queue_ms", "float", "queue to scheduler"),
    Field("prefill_ms", "float", "scheduler to first token"),
    Field("decode_ms", "float", "first to last token"),
    Field("ttft_ms", "float", "arrival to first token"),
    Field("tpot_ms", "float", "mean per token after the first"),
    Field("e2e_ms", "float", "arrival to the end"),
    Field("timing", "keyword", "events, durations, none: how exact these are"),
    Field("finish_reason", "keyword", "stop, length, abort, error ..."),
    Field("finish_reasons", "keyword", "of several sequences with different ones"),
    Field("sequences", "long", "how many, where not one"),
    Field("engine_index", "long", "data-parallel rank"),
    Field("gpu_memory_mb", "float", "memory in use on the engine's GPUs"),
    # Of engine failures
    Field("fatal_kind", "keyword", "cuda_oom, engine_dead, worker_dead ..."),
    Field("fatal_causes", "keyword", "kinds that were reported before it"),
    Field("fatal_detail", "keyword", "logger, line and exception's class"),
    Field("requests_lost", "long", "requests that it took down"),
    Field("request_ids", "keyword", "their ids, the first 200"),
    # What is left
    Field("json", "flattened", "what a JSON line said beyond these fields, searched as json.NAME", made_here=True),
    Field("pipeline_error.processor", "keyword", "the pipeline's step that failed; the line is kept", made_here=True),
    Field("pipeline_error.message", "match_only_text", "why it failed", made_here=True),
)
BY_NAME: Final = {field.name: field for field in FIELDS}

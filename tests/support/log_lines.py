"""Log lines as they come: of our writers, of vLLM, of others; and Docker's json-file around them."""

import io
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vllm_vitals.settings.tracing import RequestLogSettings
from vllm_vitals.tracing.fatal import watch as fatal
from vllm_vitals.tracing.json_logs import VitalsJsonFormatter
from vllm_vitals.tracing.logs.context import SERVED, IdFilter
from vllm_vitals.tracing.logs.request_line import RequestLogSink
from vllm_vitals.tracing.request.records import Gpu, Http, RequestRecord, SequenceRecord, Trace

AT: Final = 1_790_000_000.0
DOCKER_TIME: Final = "2026-11-26T06:40:00.123456789Z"
TRACE: Final = Trace(0xABC, 0xDEF, sampled=True)
HTTP: Final = Http("POST", "/v1/chat/completions", 200, AT, AT + 0.812, AT + 0.1, client="10.0.0.5:4242", streamed=True)
ONE: Final = SequenceRecord(
    "chatcmpl-r", "chatcmpl-r-1", 0, "llama", AT, AT + 0.8125, lora="adapter", engine_index=1, queued=AT + 0.002,
    scheduled=AT + 0.01, first_token=AT + 0.1, last_token=AT + 0.79, preemptions=((AT + 0.2, AT + 0.3),),
    input_tokens=12, cached_tokens=8, output_tokens=40, finish_reason="stop",
)  # fmt: skip
# Between them they have every field that a request's line can have.
REQUESTS: Final = (
    RequestRecord(
        "r-1", "llama", "ok", AT, AT + 0.812, TRACE, HTTP, (ONE,), "chat-7", "", "chat", stream=True, user="0f0f",
        headers={"x-tenant": "beef"}, gpus=(Gpu("GPU-1", "H100", 40_000_000_000, 310.5),),
    ),
    RequestRecord(
        "r-2", "llama", "server_error", AT, AT + 2, TRACE,
        Http("POST", "/v1/completions", 500, AT, AT + 2, client="10.0.0.5:4243", disconnected=True),
        (ONE, SequenceRecord("b", "b", 1, "llama", AT, AT + 2, first_token=AT + 1, output_tokens=3,
                             finish_reason="length")),
        error_type="EngineDeadError", late=True,
    ),
)  # fmt: skip


class Served:
    """The request that a task serves."""

    request_id, session_id, trace_id, span_id, sampled = "r-1", "chat-7", 0xABC, 0xDEF, True


@contextmanager
def written(*names: str, flat: bool = False) -> Iterator[io.StringIO]:
    """Let loggers write as `vllm-vitals logging-config` makes them."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(VitalsJsonFormatter(names="flat" if flat else "ecs", service_name="vllm"))
    handler.addFilter(IdFilter())
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers[:], logger.propagate = [handler], False
            logger.setLevel(logging.DEBUG)
        yield stream
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


def ours(state: Path, *, flat: bool = False) -> list[str]:
    """Return a line of each kind that our writers write, made by themselves."""
    loggers = ("vllm_vitals.request", "vllm_vitals.fatal", "vllm.engine", "uvicorn.access")
    with written(*loggers, flat=flat) as stream:
        sink = RequestLogSink(RequestLogSettings())
        for request in REQUESTS:
            sink.take(request)
        engine = logging.getLogger("vllm.engine")
        token = SERVED.set(Served())
        try:
            engine.info("%d blocks", 12)
            engine.warning("with more", extra={"kv_blocks": 7, "error": "text"})
            try:
                raise RuntimeError("no luck")
            except RuntimeError:
                engine.exception("failed", stack_info=True)
        finally:
            SERVED.reset(token)
        access = logging.getLogger("uvicorn.access")
        access.info('%s - "%s %s HTTP/%s" %d', "10.0.0.5:4242", "GET", "/health?secret=1", "1.1", 200)
        watch = fatal.FatalWatch(state, "api_server")
        fatal.fatal_file.prepare(state)
        watch.report("cuda_oom", ["r-1"], "vllm.engine:17 OutOfMemoryError")
        watch.report("engine_dead", ["r-1", "r-2"], "vllm.engine:18 EngineDeadError")
    return stream.getvalue().splitlines()


def json_file(lines: Iterable[str], *, stream: str = "stdout", service: str = "vllm", limit: int = 16384) -> bytes:
    """Return the lines as Docker's json-file driver writes them: attributes sorted, long lines in several records."""
    attributes = {
        "com.docker.compose.project": "vllm-vitals",
        "com.docker.compose.service": service,
        "tag": f"vllm-vitals-{service}-1",
    }
    records: list[dict[str, Any]] = []
    for line in lines:
        text = f"{line}\n"
        parts = [text[begin : begin + limit] for begin in range(0, len(text), limit)]
        records += [{"log": part, "stream": stream, "attrs": attributes, "time": DOCKER_TIME} for part in parts]
    return "".join(json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n" for record in records).encode()

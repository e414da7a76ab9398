"""The log line of each request: its fields, its text, and the sink that writes it.

What several sequences (`n` > 1, several prompts) share in one line: ingress, queue, prefill and time to first token are
those of the sequence that answered first, so they still add up; decode and e2e are the longest; time per output token
is the mean over all tokens after the first ones; tokens and preemptions are sums.
"""

import logging
from typing import Any, Final

from ...settings.tracing import RequestLogSettings
from ..request import phases
from ..request.phases import time_to_first_token
from ..request.records import RequestRecord, SequenceRecord
from .formatter import split_address
from .handler import install_default_handler

LOGGER: Final = "vllm_vitals.request"
_MS: Final = {
    phases.INGRESS: "ingress_ms",
    phases.QUEUE: "queue_ms",
    phases.PREFILL: "prefill_ms",
    phases.DECODE: "decode_ms",
}
_TIMINGS: Final = ("events", "durations", "none")  # from best to worst


def fields(request: RequestRecord) -> dict[str, Any]:
    """Return what a request's line says, under ECS names; what is not known is absent. Times in milliseconds."""
    trace = request.trace
    line: dict[str, Any] = {"request_id": request.request_id}
    if request.session_id:
        line["session_id"] = request.session_id
    if trace.trace_id:
        line["trace.id"] = f"{trace.trace_id:032x}"
        if trace.span_id:
            line["span.id"] = f"{trace.span_id:016x}"
        line["trace.sampled"] = trace.sampled  # false: the id is for other logs, there are no spans to look for
    if request.model:
        line["model"] = request.model
    line["outcome"] = request.outcome
    if request.late:
        line["late"] = True
    line["event.outcome"] = "success" if request.outcome == "ok" else "failure"
    if request.error_type:
        line["error.type"] = request.error_type
    line["event.duration"] = max(0, round((request.ended - request.started) * 1e9))
    if request.http is not None:
        line["http.request.method"] = request.http.method
        line["url.path"] = request.http.path
        if request.http.status:
            line["http.response.status_code"] = line["status"] = request.http.status
        line.update(split_address(request.http.client))
        line["client_disconnect"] = request.http.disconnected
    if request.stream is not None:
        line["stream"] = request.stream
    if request.operation:
        line["operation"] = request.operation
    if request.user:
        line["user.hash"] = request.user
    for name, value in (request.headers or {}).items():
        line[f"labels.{name.replace('-', '_').replace('.', '_')}"] = value
    if request.sequences:
        line.update(_engine_fields(request))
    memory = [gpu.memory_used for gpu in request.gpus]
    known = [used for used in memory if used is not None]
    if known and len(known) == len(memory):  # a sum over some of the GPUs would mislead
        line["gpu_memory_mb"] = _rounded(sum(known) / 1e6)
    return line


def text(request: RequestRecord) -> str:
    """Return the line's text, such as `POST /v1/chat/completions 200 stop 12+40 tokens in 812 ms`."""
    words = [request.http.method, request.http.path] if request.http is not None else ["request"]
    if request.http is not None and request.http.status:
        words.append(str(request.http.status))
    if request.outcome in {"aborted", "disconnected", "rejected"}:
        words.append(request.outcome)
    elif request.outcome != "ok" and request.error_type and request.error_type not in words:
        words.append(request.error_type)
    if request.sequences:
        words += _finish_reasons(request.sequences)
        words.append(f"{request.input_tokens}+{request.output_tokens} tokens")
    words.append(f"in {max(0.0, request.ended - request.started) * 1000:.0f} ms")
    return " ".join(words)


class RequestLogSink:
    """Writes one line per request at INFO, at WARNING where the server failed."""

    name = "request_log"

    def __init__(self, settings: RequestLogSettings) -> None:
        """Make sure that the lines go somewhere; `names` counts only where nobody configured logging for us."""
        install_default_handler(settings.names)
        self._logger = logging.getLogger(LOGGER)

    def take(self, request: RequestRecord) -> None:
        """Log a request."""
        level = logging.WARNING if request.outcome == "server_error" else logging.INFO
        if not self._logger.isEnabledFor(level):
            return
        extra = {"vitals": fields(request)}
        self._logger.handle(self._logger.makeRecord(LOGGER, level, __file__, 0, text(request), (), None, "take", extra))

    def idle(self) -> None:
        """Nothing is ever due."""

    def close(self, deadline: float) -> None:
        """Nothing is left: lines are written as they come."""


def _engine_fields(request: RequestRecord) -> dict[str, Any]:
    sequences = request.sequences
    # One pass without generators: next to the encoding this is what a line costs.
    input_tokens = output_tokens = cached = preemptions = decoded = 0
    e2e = preempted = decoding = 0.0
    timing = _TIMINGS[0]
    first: SequenceRecord | None = None
    answered = 0
    for sequence in sequences:
        input_tokens += sequence.input_tokens
        output_tokens += sequence.output_tokens
        cached += sequence.cached_tokens
        e2e = max(e2e, sequence.finished - sequence.arrival)
        if sequence.timing != timing:
            timing = max(timing, sequence.timing, key=_TIMINGS.index)
        if sequence.preemptions:
            preemptions += len(sequence.preemptions)
            preempted += phases.preempted_seconds(sequence)
        if sequence.first_token is not None:
            answered += 1
            if first is None or sequence.first_token < (first.first_token or 0.0):
                first = sequence
        tpot = phases.time_per_output_token(sequence)
        if tpot is not None:
            decoding += tpot * (sequence.output_tokens - 1)
            decoded += sequence.output_tokens - 1
    line: dict[str, Any] = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cached_tokens": cached,
        "cache_hit": cached > 0,
        "preemptions": preemptions,
        "e2e_ms": _ms(e2e),
        "timing": timing,
    }
    reasons = _finish_reasons(sequences)
    if len(reasons) == 1:
        line["finish_reason"] = reasons[0]
    elif reasons:
        line["finish_reasons"] = reasons
    if len(sequences) > 1:
        line["sequences"] = len(sequences)
    if preemptions:
        line["preempted_ms"] = _ms(preempted)
    if first is not None:
        for name, begin, end in phases.phases(first):
            line[_MS[name]] = _ms(end - begin)
        line["ttft_ms"] = _ms(time_to_first_token(first) or 0.0)
        for other in sequences if answered > 1 else ():
            for name, begin, end in phases.phases(other):
                if name == phases.DECODE:
                    line["decode_ms"] = max(line.get("decode_ms", 0.0), _ms(end - begin))
    if decoded:
        line["tpot_ms"] = _ms(decoding / decoded)
    loras = {sequence.lora for sequence in sequences if sequence.lora}
    if loras:
        line["lora"] = ",".join(sorted(loras))
    rank = sequences[0].engine_index
    if rank is not None and (len(sequences) == 1 or all(sequence.engine_index == rank for sequence in sequences)):
        line["engine_index"] = rank
    return line


def _finish_reasons(sequences: tuple[SequenceRecord, ...]) -> list[str]:
    """Return the different reasons in the order of the sequences."""
    if len(sequences) == 1:
        return [reason] if (reason := sequences[0].finish_reason) else []
    return list(dict.fromkeys(sequence.finish_reason for sequence in sequences if sequence.finish_reason))


def _ms(seconds: float) -> float:
    return round(seconds * 1e6) / 1000


def _rounded(number: float) -> float:
    return round(number * 1000) / 1000  # a tenth of what round(number, 3) costs, which does it in decimal digits

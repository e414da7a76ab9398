"""How many bytes one request leaves behind: its log lines, its spans on the wire, its documents in Elasticsearch.

.venv/bin/python benchmarks/stored_bytes.py

Lines are made by our writers, spans by ours. Jaeger's documents are written after its model (v2.20.0
internal/storage/v2/elasticsearch/tracestore/core/dbmodel/model.go): what Elasticsearch makes of them on its disk is not
measured here. Lucene keeps each element of a nested field as a document of its own.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from measured import table
from support import log_lines
from support.finished_requests import T0, request, sequence
from vllm_vitals.tracing.request.records import Http, Trace
from vllm_vitals.tracing.spans.otlp import span_bytes
from vllm_vitals.tracing.spans.otlp_settings import resource
from vllm_vitals.tracing.spans.tree import Span, spans_of


def main() -> None:
    with tempfile.TemporaryDirectory() as state:
        lines = {json.loads(line)["log.logger"]: line for line in reversed(log_lines.ours(Path(state) / "s"))}
    spans = _spans()
    documents = [_document(span) for span in spans]
    stored = sum(len(json.dumps(document, separators=(",", ":"))) for document in documents)
    rows = [
        (f"line of {logger}, bytes (in Docker's file)", f"{len(line)} ({len(log_lines.json_file([line]))})")
        for logger, line in ((name, lines[name]) for name in ("vllm_vitals.request", "uvicorn.access"))
    ]
    rows += [
        ("spans of a chat", str(len(spans))),
        ("on the wire, OTLP without compression, bytes", str(sum(len(span_bytes(span)) for span in spans))),
        ("as Jaeger's documents, JSON bytes", str(stored)),
        ("as Lucene's documents, nested ones included", str(sum(map(_lucene, documents)))),
    ]
    table(["what", "figure"], rows)


def _spans() -> list[Span]:
    http = Http(
        "POST", "/v1/chat/completions", 200, T0 - 0.002, T0 + 1.05, first_byte=T0 + 0.14, client="10.0.0.7:4711",
        server_address="llm.example", server_port=8000, user_agent="curl/8",
    )  # fmt: skip
    whole = replace(request(sequence()), http=http, trace=Trace(1, 2, 3, sampled=True), session_id="chat-7")
    return spans_of(whole)


def _document(span: Span) -> dict[str, Any]:
    process = resource({}, {"vllm.version": "0.32.0"})
    return {
        "traceID": f"{span.trace_id:032x}",
        "spanID": f"{span.span_id:016x}",
        "flags": 1,
        "operationName": span.name,
        "references": [{"refType": "CHILD_OF", "traceID": f"{span.trace_id:032x}", "spanID": f"{span.span_id:016x}"}],
        "startTime": span.start_ns // 1000,
        "startTimeMillis": span.start_ns // 1_000_000,
        "duration": (span.end_ns - span.start_ns) // 1000,
        "tags": [*_pairs(span.attributes), *_pairs([("span.kind", "internal"), ("otel.scope.name", "vllm_vitals")])],
        "logs": [{"timestamp": one.time_ns // 1000, "fields": _pairs([("event", one.name)])} for one in span.events],
        "process": {
            "serviceName": "vllm",
            "tags": _pairs(pair for pair in process.items() if pair[0] != "service.name"),
        },
    }


def _pairs(attributes: Any) -> list[dict[str, Any]]:
    kinds = {bool: "bool", int: "int64", float: "float64"}
    return [
        {"key": key, "type": kinds.get(type(value), "string"), "value": value if type(value) in kinds else str(value)}
        for key, value in attributes
    ]


def _lucene(document: dict[str, Any]) -> int:
    logs = document["logs"]
    nested = len(document["references"]) + len(document["tags"]) + len(document["process"]["tags"])
    return 1 + nested + len(logs) + sum(len(one["fields"]) for one in logs)


if __name__ == "__main__":
    main()

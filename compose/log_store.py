"""Elasticsearch's files for the logs, made from the table of fields.

    python -m vllm_vitals.compose.log_store     writes elasticsearch/logs-*.json and the table in docs/

A test compares them. The pipeline needs no script; a condition never looks inside what may not be an object, because a
condition that fails ends the pipeline whatever `ignore_failure` says.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .log_fields import FIELDS, Field

FOLDER: Final = Path(__file__).parent / "elasticsearch"
DOCS: Final = Path(__file__).parents[1] / "docs/logs-and-traces.md"
PIPELINE: Final = "vllm-vitals-logs"
JSON_PIPELINE: Final = "vllm-vitals-logs-json"
_BEGIN: Final = "<!-- fields: written by python -m vllm_vitals.compose.log_store -->"
_END: Final = "<!-- end of fields -->"
_KEYWORD_CHARACTERS: Final = 1024  # longer ones are kept and shown, not searched
# Programs that write JSON of their own: Jaeger and Caddy (zap) and others.
_FOREIGN: Final = {"msg": "message", "level": "log.level", "logger": "log.logger"}  # where they lack ours
_LEVELS: Final = "DEBUG|INFO|WARNING|ERROR|CRITICAL|debug|info|warn|warning|error|critical|fatal|panic"

Processor = dict[str, dict[str, Any]]
_FROM_LINES: Final = tuple(field for field in FIELDS if not field.made_here)


def mappings() -> dict[str, Any]:
    """Return the type of every field.

    `dynamic: false`: a field that is not named is kept and shown, never searched, so no line of whatever program makes
    the mapping grow or fails on it. What JSON lines say beyond our fields is moved to `json`, which can be searched.
    """
    properties: dict[str, Any] = {}
    for field in FIELDS:
        *parents, last = field.name.split(".")
        inner = properties
        for parent in parents:
            inner = inner.setdefault(parent, {"properties": {}})["properties"]
        inner[last] = _type(field)
    return {"dynamic": False, "properties": properties}


def _type(field: Field) -> dict[str, Any]:
    if field.type in {"keyword", "flattened"}:
        return {"type": field.type, "ignore_above": _KEYWORD_CHARACTERS}
    return {"type": field.type}


def pipeline() -> dict[str, Any]:
    """Return the pipeline that every line goes through; it keeps a line that it cannot read, and marks it."""
    plain = "ctx.json == null && ctx.message instanceof String"
    grown = "ctx.message instanceof String"
    return {
        "description": "vLLM's log lines: JSON under its names, plain lines taken apart, nothing lost",
        "processors": [
            # vLLM breaks lines inside a record with \r\n.
            {"gsub": {"field": "message", "pattern": r"\r$", "replacement": "", "if": grown}},
            # Older vLLM puts the process in front of all that its children write, so also in front of our JSON.
            {
                "grok": {
                    "field": "message",
                    "patterns": ["^%{PROCESS}%{OBJECT:message}$"],
                    "pattern_definitions": {**_process(), "OBJECT": r"\{.*\}"},
                    "if": f"{grown} && ctx.message.startsWith('(')",
                    "ignore_failure": True,
                }
            },
            {
                "json": {
                    "field": "message",
                    "target_field": "json",
                    "if": f"{grown} && ctx.message.startsWith('{{')",
                    "ignore_failure": True,
                }
            },
            {"pipeline": {"name": JSON_PIPELINE, "if": "ctx.json instanceof Map"}},
            {
                "grok": {
                    "field": "message",
                    "patterns": [
                        # vLLM: no year and no zone, so Docker's time stays
                        r"^(?:%{PROCESS})?%{LEVEL:log.level} %{CLOCK} \[%{PLACE}\] ?%{REST:message}$",
                        r"^(?:%{PROCESS})?%{LEVEL:log.level}: +%{REST:message}$",  # uvicorn
                        r"^%{STAMP} %{LEVEL:log.level} %{REST:message}$",  # exporter: no zone
                        r"(?:^| )level=%{LEVEL:log.level}(?: |$)",  # Prometheus, Alertmanager, Grafana
                        r"^[^\t]+\t%{LEVEL:log.level}\t",  # collector
                        r"^%{PROCESS}%{REST:message}$",
                    ],
                    "pattern_definitions": {
                        **_process(),
                        "LEVEL": f"(?:{_LEVELS})",
                        "CLOCK": r"\d\d-\d\d \d\d:\d\d:\d\d",
                        "STAMP": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}",
                        "PLACE": "%{FILE:log.origin.file.name}:%{LINE:log.origin.file.line:long}",
                        "FILE": r"[^\]\[:]+",
                        "LINE": r"\d{1,9}",
                        "REST": ".*",
                    },
                    "if": plain,
                    "ignore_failure": True,
                }
            },
            {"lowercase": {"field": "log.level", "ignore_missing": True, "ignore_failure": True}},
            # Docker's labels have dots in their names.
            {
                "dot_expander": {
                    "path": "docker.attrs",
                    "field": "*",
                    "if": "ctx.docker != null",
                    "ignore_failure": True,
                }
            },
            {
                "set": {
                    "field": "service.name",
                    "copy_from": "docker.attrs.com.docker.compose.service",
                    "override": False,
                    "ignore_empty_value": True,
                    "ignore_failure": True,
                }
            },
            {
                "rename": {
                    "field": "docker.attrs.tag",
                    "target_field": "container.name",
                    "ignore_missing": True,
                    "ignore_failure": True,
                }
            },
            {"remove": {"field": "docker", "ignore_missing": True}},
            {"remove": {"field": "json", "if": "ctx.json instanceof Map && ctx.json.isEmpty()"}},
        ],
        "on_failure": _mark(),
        "_meta": {"managed_by": "vllm-vitals"},
    }


def json_pipeline() -> dict[str, Any]:
    """Return the pipeline that puts what a JSON line says under the names of the table; the rest stays in `json`."""
    return {
        "description": "Fields of a JSON line to their places, by ECS or by flat names",
        "processors": [*_expanded(), *_renamed(), *_timed(), *_emptied()],
        "_meta": {"managed_by": "vllm-vitals"},
    }


def _process() -> dict[str, str]:
    return {
        "PROCESS": r"\(%{PROCESS_NAME:process.name} pid=%{PID:process.pid:long}\) ",
        "PROCESS_NAME": r"[A-Za-z0-9_ .:-]{1,64}",
        "PID": r"\d{1,9}",
    }


def _mark() -> list[Processor]:
    return [
        {"set": {"field": "pipeline_error.processor", "value": "{{{_ingest.on_failure_processor_type}}}"}},
        {"set": {"field": "pipeline_error.message", "value": "{{{_ingest.on_failure_message}}}"}},
    ]


def _expanded() -> Iterator[Processor]:
    """Names with dots become objects; flat names become those with dots."""
    yield {"dot_expander": {"path": "json", "field": "*", "on_failure": _mark()}}
    for field in _FROM_LINES:
        if "." in field.name:
            yield _rename(f"json.{field.name.replace('.', '_')}", f"json.{field.name}", override=False)
    for foreign, name in _FOREIGN.items():
        moved = _rename(f"json.{foreign}", f"json.{name}", override=False)
        moved["rename"]["if"] = f"ctx.json.{foreign} instanceof String"
        yield moved


def _renamed() -> Iterator[Processor]:
    for field in _FROM_LINES:
        if field.name == "@timestamp":
            continue
        moved = _rename(f"json.{field.name}", field.name)
        moved["rename"]["if"] = _holds(field)
        yield moved


def _timed() -> Iterator[Processor]:
    yield {
        "date": {
            "field": "json.@timestamp",
            "formats": ["ISO8601"],
            "if": "ctx.json['@timestamp'] instanceof String",
            "on_failure": _mark(),
        }
    }
    yield {
        "remove": {
            "field": "json.@timestamp",
            "ignore_missing": True,
            "if": "ctx.json['@timestamp'] instanceof String && ctx.pipeline_error == null",
        }
    }


def _emptied() -> Iterator[Processor]:
    """Objects that nothing is left of are taken away, the innermost first."""
    objects = {
        ".".join(parts[:depth])
        for parts in (field.name.split(".") for field in _FROM_LINES)
        for depth in range(1, len(parts))
    }
    for name in sorted(objects, key=lambda one: (-one.count("."), one)):
        yield {"remove": {"field": f"json.{name}", "if": f"{_is_map(name)} && ctx.json.{name}.isEmpty()"}}


def _rename(field: str, target: str, *, override: bool = True) -> Processor:
    return {
        "rename": {
            "field": field,
            "target_field": target,
            "ignore_missing": True,
            "override": override,
            "ignore_failure": True,
        }
    }


def _holds(field: Field) -> str:
    """Return the condition that a value can be in its place: an object cannot be a keyword, `message` is text."""
    parent, _, _ = field.name.rpartition(".")
    within = f"{_is_map(parent)} && " if parent else ""
    if field.name == "message":
        return f"{within}ctx.json.message instanceof String"
    if field.type == "flattened":
        return f"{within}ctx.json.{field.name} instanceof Map"
    return f"{within}!(ctx.json.{field.name} instanceof Map)"


def _is_map(name: str) -> str:
    parts = name.split(".")
    return " && ".join(f"ctx.json.{'.'.join(parts[: depth + 1])} instanceof Map" for depth in range(len(parts)))


def table() -> str:
    """Return the table of fields for the docs."""
    rows = ["| field | type | meaning |", "| --- | --- | --- |"]
    return "\n".join(rows + [f"| `{field.name}` | {field.type} | {field.says} |" for field in FIELDS])


def files() -> dict[Path, str]:
    """Return what each file shall hold."""
    made = {
        "logs-fields.json": mappings(),
        "logs-pipeline.json": pipeline(),
        "logs-json-pipeline.json": json_pipeline(),
    }
    result = {FOLDER / name: json.dumps(content, indent=1) + "\n" for name, content in made.items()}
    if DOCS.is_file():
        before, begin, rest = DOCS.read_text(encoding="utf-8").partition(_BEGIN)
        _, end, after = rest.partition(_END)
        result[DOCS] = f"{before}{begin}\n{table()}\n{end}{after}"
    return result


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")

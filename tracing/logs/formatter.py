"""The formatter that turns log records into JSON lines: ECS names, or the same names in flat snake_case.

Names: `@timestamp` stays as it is in both, since Filebeat and Elasticsearch look for it; every other name of the flat
kind is the ECS one with underscores for dots (`trace.id` -> `trace_id`).
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from ..json_values import plain, text_of
from .redaction import Redactor

Names = Literal["ecs", "flat"]

# Record attributes that have a name of their own in ECS.
_RENAMED: Final = {"trace_id": "trace.id", "span_id": "span.id"}
_NOT_FIELDS: Final = frozenset(
    {*RESERVED_ATTRS, "taskName", "message", "asctime", "vitals", "vllm_process_name", "color_message", "fileinfo"}
)
# The first parts of our dotted names. Filebeat turns dotted names into objects, and `error` cannot be text and object.
_OBJECTS: Final = frozenset(
    {"client", "error", "event", "http", "labels", "log", "process", "service", "span", "trace", "url", "user"}
)
# Ids are exempt from redaction: they are made of digits and must be found again.
_IDS: Final = frozenset({"@timestamp", "request_id", "trace.id", "span.id", "trace_id", "span_id"})


class VitalsJsonFormatter(JsonFormatter):
    """Formats a record as one line of JSON; whatever a record carries, it neither raises nor loses the line.

    A record with a dict in the attribute `vitals` (fields under their ECS names) is written from that.

    Attributes:
        arguments: that make another one like it, in another process.
    """

    def __init__(
        self,
        *,
        names: Names = "ecs",
        service_name: str | None = None,
        redact: Sequence[str] = (),
        redact_patterns: Mapping[str, str] | None = None,
    ) -> None:
        """Take the settings.

        Args:
            names: `ecs` or `flat`.
            service_name: None takes OTEL_SERVICE_NAME, else `vllm`.
            redact: kinds to black out, see redaction.py.
            redact_patterns: more kinds, name -> regular expression.

        Raises:
            ConfigError: an unknown kind, or an expression that does not compile.
        """
        super().__init__()
        self.arguments = {
            "names": names,
            "service_name": service_name,
            "redact": [*redact],
            "redact_patterns": dict(redact_patterns or {}),
        }
        self.flat = names == "flat"
        self.service = service_name or os.environ.get("OTEL_SERVICE_NAME") or "vllm"
        self.redactor = Redactor(redact, redact_patterns) if redact or redact_patterns else None
        self._second = (0, "")
        self._encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=plain).encode

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        try:
            line = self._fields(record)
        except Exception as problem:  # a record that is broken beyond what _fields expects
            line = self._head(
                record, f"{text_of(record.msg)} (record could not be formatted: {type(problem).__name__})"
            )
        if self.redactor is not None:
            redact = self.redactor.everywhere
            line = {name: value if name in _IDS else redact(plain(value)) for name, value in line.items()}
        if self.flat:
            line = {_flat(name): value for name, value in line.items()}
        try:
            return self._encode(line)
        except Exception:  # NaN, keys that are no text, circles, too deep
            return self._encode({name: plain(value) for name, value in line.items()})

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        extra = record.__dict__
        ready = extra.get("vitals")
        if type(ready) is dict:
            return {**self._head(record, _message(record)), **ready}
        access = _access(record)
        given = record.msg if isinstance(record.msg, dict) else {}
        if access is not None:
            message, fields = access
        else:
            message = text_of(given.get("message", "")) if given else _message(record)
            fields = {"log.origin.file.name": record.filename, "log.origin.file.line": record.lineno}
        line = {**self._head(record, message), **fields}
        for source in (given, extra):
            for name, value in source.items():
                if name not in _NOT_FIELDS and not text_of(name).startswith("_"):
                    line[_name(text_of(name))] = value
        line.update(self._error(record))
        return line

    def _head(self, record: logging.LogRecord, message: str) -> dict[str, Any]:
        return {
            "@timestamp": self._timestamp(record.created),
            "log.level": record.levelname.lower(),
            "message": message,
            "service.name": self.service,
            "log.logger": record.name,
            "process.pid": record.process,
            "process.name": record.__dict__.get("vllm_process_name") or record.processName,
        }

    def _timestamp(self, created: float) -> str:
        """Return RFC 3339 UTC with milliseconds; the text of a second is kept, most lines share it with others."""
        milliseconds = int(created * 1000)
        second, rest = divmod(milliseconds, 1000)
        kept, text = self._second
        if kept != second or not text:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = (second, text)
        return f"{text}.{rest:03d}Z"

    def _error(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            fields["error.type"] = class_name(kind)
            fields["error.message"] = text_of(error)
            try:
                fields["error.stack_trace"] = self.formatException(record.exc_info)
            except Exception as problem:
                fields["error.stack_trace"] = f"not available: {type(problem).__name__}"
        elif record.exc_text:
            fields["error.stack_trace"] = record.exc_text
        if record.stack_info:
            fields["stack_info"] = record.stack_info
        return fields


def class_name(kind: type[BaseException]) -> str:
    """Return a class's name with its module, without `builtins`."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def split_address(text: str) -> dict[str, Any]:
    """Return client.address and client.port of `ADDRESS:PORT` (IPv6 without brackets, as uvicorn writes it)."""
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal():
        return {"client.address": text} if text else {}
    return {"client.address": address.strip("[]"), "client.port": int(port)}


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the text and its arguments do not fit each other
        return f"{text_of(record.msg)} {text_of(record.args)}"


def _access(record: logging.LogRecord) -> tuple[str, dict[str, Any]] | None:
    """Return text and fields of uvicorn's access line; without the query, which may hold secrets."""
    arguments = record.args
    if record.name != "uvicorn.access" or not isinstance(arguments, tuple) or len(arguments) != 5:
        return None
    client, method, target, version, status = arguments
    path = text_of(target).partition("?")[0]
    message = f'{text_of(client)} - "{text_of(method)} {path} HTTP/{text_of(version)}" {text_of(status)}'
    fields = {"http.request.method": method, "url.path": path, "http.response.status_code": status}
    return message, {**split_address(text_of(client)), **fields}


def _name(name: str) -> str:
    if name in _OBJECTS:
        return f"labels.{name}"
    return _RENAMED.get(name, name)


@lru_cache(maxsize=1024)
def _flat(name: str) -> str:
    return name.replace(".", "_")

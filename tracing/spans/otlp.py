"""Spans as OTLP's protobuf bytes, and what a collector's answer means; by hand, as the generated classes are slow.

Field numbers are those of opentelemetry/proto/trace/v1/trace.proto and its collector service; tests compare every
field with the official classes.
"""

import functools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from .tree import Attribute, Link, Span, SpanEvent

# The last release of the core conventions that holds the GenAI names; their own repository has none yet.
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.0"

_INT64: Final = (1 << 63) - 1
_KNOWN_KEYS: Final = 1024  # bound of the cache; our names are some seventy


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_VARINTS: Final = tuple(_varint(value) for value in range(4096))
# What stands between a key and its value: KeyValue.value, its length, the kind of value and its length.
_STRING_HEADS: Final = tuple(b"\x12" + _varint(size + 2) + b"\x0a" + _varint(size) for size in range(126))
_INT_HEADS: Final = tuple(b"\x12" + bytes((size + 1,)) + b"\x18" for size in range(11))
_DOUBLE_HEAD: Final = b"\x12\x09\x21"
_BOOLEANS: Final = (b"\x12\x02\x10\x00", b"\x12\x02\x10\x01")
_double: Final = struct.Struct("<d").pack
_times: Final = struct.Struct("<BQBQ").pack
_time: Final = struct.Struct("<BQ").pack
_flags: Final = struct.Struct("<HI").pack

_keys: dict[str, bytes] = {}


def span_bytes(span: Span) -> bytes:
    """Return a span as an element of ScopeSpans.spans, tag and length included."""
    trace_id, span_id, parent, name, kind, start, end, attributes, status, message, events, links, state, flags = span
    parts = [b"\x0a\x10", trace_id.to_bytes(16, "big"), b"\x12\x08", span_id.to_bytes(8, "big")]
    if state:
        parts.append(_text(0x1A, state))
    if parent:
        parts += (b"\x22\x08", parent.to_bytes(8, "big"))
    parts += (_name(name), b"\x30", _VARINTS[kind], _times(0x39, start, 0x41, end))
    _add_attributes(parts, b"\x4a", attributes)
    for event in events:
        parts.append(_event(event))
    for link in links:
        parts.append(_link(link))
    if status or message:
        inner = (_text(0x12, message) if message else b"") + (b"\x18" + _VARINTS[status] if status else b"")
        parts += (b"\x7a", _size(len(inner)), inner)
    if flags:
        parts.append(_flags(0x0185, flags))  # field 16's tag takes two bytes
    body = b"".join(parts)
    return b"\x12" + _size(len(body)) + body


def resource_bytes(attributes: Mapping[str, str | int]) -> bytes:
    """Return ResourceSpans.resource."""
    parts: list[bytes] = []
    _add_attributes(parts, b"\x0a", list(attributes.items()))
    return _message(0x0A, b"".join(parts))


def scope_bytes(name: str, version: str) -> bytes:
    """Return ScopeSpans.scope."""
    return _message(0x0A, _text(0x0A, name) + _text(0x12, version))


def export_request(resource: bytes, scope: bytes, spans: Iterable[bytes]) -> bytes:
    """Return an ExportTraceServiceRequest of one resource and one scope."""
    schema = _text(0x1A, SCHEMA_URL)
    scope_spans = b"".join((scope, *spans, schema))
    return _message(0x0A, b"".join((resource, b"\x12", _size(len(scope_spans)), scope_spans, schema)))


def rejected_spans(answer: bytes) -> int:
    """Return how many spans an ExportTraceServiceResponse refuses; raises ValueError for bytes that are none."""
    rejected = 0
    for number, value in _fields(answer):
        if number == 1:
            if not isinstance(value, bytes):
                raise ValueError("partial_success is no message")
            for inner, count in _fields(value):
                if inner == 1:
                    if not isinstance(count, int):
                        raise ValueError("rejected_spans is no number")
                    rejected = count
    return rejected if rejected <= _INT64 else 0  # negative in two's complement


def retry_delay(status: bytes) -> float | None:
    """Return the seconds of a google.rpc.RetryInfo in a google.rpc.Status (`grpc-status-details-bin`), None for none.

    Bytes that are no such message say nothing.
    """
    try:
        for number, detail in _fields(status):
            if number != 3 or not isinstance(detail, bytes):
                continue
            packed = dict(_fields(detail))  # google.protobuf.Any: 1 type_url, 2 value
            if not str(packed.get(1, b""), "utf-8", "replace").endswith("google.rpc.RetryInfo"):
                continue
            delay = dict(_fields(dict(_fields(packed.get(2, b""))).get(1, b"")))  # Duration: 1 seconds, 2 nanos
            seconds = delay.get(1, 0) + delay.get(2, 0) / 1e9
            return seconds if 0 <= seconds < 1e9 else 0.0
    except (ValueError, TypeError):
        pass
    return None


def _add_attributes(parts: list[bytes], tag: bytes, attributes: Sequence[Attribute]) -> None:
    """Append attributes as KeyValue messages under a tag; a value of another type becomes its text."""
    for key, value in attributes:
        known = _keys.get(key) or _key(key)
        kind = type(value)
        if kind is str:
            data = value.encode("utf-8", "replace")  # type: ignore[union-attr]  # a lone surrogate becomes '?'
            if (size := len(data)) < 126:
                parts += (tag, _VARINTS[len(known) + 4 + size], known, _STRING_HEADS[size], data)
                continue
        elif kind is int:
            if 0 <= value < 4096:  # type: ignore[operator]
                data = _VARINTS[value]  # type: ignore[index]
                parts += (tag, _VARINTS[len(known) + 3 + len(data)], known, _INT_HEADS[len(data)], data)
                continue
        elif kind is float:
            parts += (tag, _VARINTS[len(known) + 11], known, _DOUBLE_HEAD, _double(value))
            continue
        elif kind is bool:
            parts += (tag, _VARINTS[len(known) + 4], known, _BOOLEANS[value])  # type: ignore[index]
            continue
        any_value = _any_value(value)
        size = len(any_value)
        length = _size(size)
        parts += (tag, _size(len(known) + 1 + len(length) + size), known, b"\x12", length, any_value)


def _key(key: str) -> bytes:
    """Return a key as KeyValue.key; remembered, while there are few, and short enough for the tables."""
    result = _text(0x0A, key[:1024])
    if len(_keys) < _KNOWN_KEYS and len(key) < 128:
        _keys[key] = result
    return result


def _any_value(value: object) -> bytes:
    match value:
        case bool():
            return b"\x10\x01" if value else b"\x10\x00"
        case int() if -_INT64 - 1 <= value <= _INT64:
            return b"\x18" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
        case float():
            return b"\x21" + _double(value)
        case list() | tuple():
            return _message(0x2A, b"".join(_message(0x0A, _any_value(item)) for item in value))
        case _:
            return _text(0x0A, str(value))


@functools.lru_cache(maxsize=256)
def _name(name: str) -> bytes:
    return _text(0x2A, name)


def _event(event: SpanEvent) -> bytes:
    parts = [_time(0x09, event.time_ns), _text(0x12, event.name)]
    _add_attributes(parts, b"\x1a", event.attributes)
    return _message(0x5A, b"".join(parts))


def _link(link: Link) -> bytes:
    return _message(
        0x6A, b"\x0a\x10" + link.trace_id.to_bytes(16, "big") + b"\x12\x08" + link.span_id.to_bytes(8, "big")
    )


def _text(tag: int, text: str) -> bytes:
    return _message(tag, text.encode("utf-8", "replace"))


def _message(tag: int, data: bytes) -> bytes:
    return b"%c%b%b" % (tag, _size(len(data)), data)


def _size(size: int) -> bytes:
    return _VARINTS[size] if size < 4096 else _varint(size)


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    """Yield (field number, int or bytes) of a message; raises ValueError where it is none."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("field 0")
        if wire == 0:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _read_varint(data, at)
        elif wire in {1, 5}:
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("cut off")
        yield number, bytes(data[at : at + size])
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("cut off")
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ValueError("a number of more than 64 bits")

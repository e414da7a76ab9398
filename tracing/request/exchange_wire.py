"""What middleware and hooks saw of a request, as bytes for the child of `export: process`: cheap here, read there.

marshal writes plain values in a few microseconds. What is no plain value, such as a header of another class that some
server or middleware of the user's put there, is made one first.
"""

import marshal
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple

from ..json_values import text_of
from .durations import Durations
from .in_flight import Exchange, Timeline
from .records import NativeSpan
from .sampling import Head

_VERSION: Final = 2  # of marshal: newer ones look for shared objects, which costs more than it saves

_SCOPE: Final = ("method", "path", "root_path", "scheme", "client", "server", "headers")
_SEEN: Final = (
    "raw_id", "span_id", "started", "ended", "first_byte", "status", "answer_headers", "disconnected", "error_type",
    "body",
)  # fmt: skip
_TOLD: Final = (
    "facts", "_times", "engine_index", "finished", "error_type", "output_text", "session_id", "remote_prefill",
)  # fmt: skip
_seen: Final = attrgetter(*_SEEN)
_told: Final = attrgetter(*_TOLD)
_native: Final = attrgetter(*NativeSpan.__match_args__)


class Event(NamedTuple):
    """An engine event as it is read: vLLM's EngineCoreEvent."""

    type: int
    timestamp: float


def packed(exchange: Exchange | None, timelines: list[Timeline]) -> bytes:
    """Return an exchange with the sequences that are done as bytes."""
    whole = (None if exchange is None else _exchange(exchange), [_timeline(timeline) for timeline in timelines])
    try:
        return marshal.dumps(whole, _VERSION)
    except ValueError:
        return marshal.dumps(_plain(whole), _VERSION)


def unpacked(data: Any) -> tuple[Exchange | None, list[Timeline]]:
    """Return what was packed, from bytes or a memoryview."""
    exchange, timelines = marshal.loads(data)  # noqa: S302 - our parent wrote it
    made = None if exchange is None else _made_exchange(*exchange)
    return made, [_made_timeline(made, *timeline) for timeline in timelines]


def _exchange(exchange: Exchange) -> tuple[Any, ...]:
    get = exchange.scope.get
    return [get(key) for key in _SCOPE], tuple(exchange.head), _seen(exchange)


def _made_exchange(scope: Any, head: Any, seen: Any) -> Exchange:
    made = Exchange()
    made.scope = {key: value for key, value in zip(_SCOPE, scope, strict=True) if value is not None}
    known = dict(zip(_SEEN, seen, strict=True))
    made.__dict__.update(known, _head=Head(*head), _span_id=known.pop("span_id"))
    return made


def _timeline(timeline: Timeline) -> tuple[Any, ...]:
    durations, native, events, carried = timeline.durations, timeline.native, timeline.events, timeline.traceparent
    reason = timeline.finish_reason
    return (
        _told(timeline),
        reason if type(reason) is str else str(reason),
        None if durations is None else tuple(durations),
        None if native is None else _native(native),
        None if events is None else [[(int(e.type), e.timestamp) for e in some] for some in events],
        dict(carried) if isinstance(carried, Mapping) else None,
    )


def _made_timeline(
    exchange: Exchange | None, told: Any, reason: str, durations: Any, native: Any, events: Any, carried: Any
) -> Timeline:
    made = Timeline()
    made.exchange = exchange
    made.__dict__.update(zip(_TOLD, told, strict=True))
    made.finish_reason = reason
    if durations is not None:
        made.durations = Durations(*durations)
    if native is not None:
        made.native = NativeSpan(*native)
    if events is not None:
        made.events = [[Event(*event) for event in some] for some in events]
    made.traceparent = carried
    made.done = True
    return made


def _plain(value: Any) -> Any:
    """Return a value as marshal knows it; classes derived from plain ones become those, others their text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return [*map(_plain, value)] if isinstance(value, list) else text_of(value)

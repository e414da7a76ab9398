"""Any Python value as one that JSON can hold; used where a log line must not get lost for what it carries."""

import math
from collections.abc import Mapping
from datetime import date, time
from typing import Any, Final

_DEPTH: Final = 8
_ITEMS: Final = 1000  # per list or mapping: a log line is no place for a data set


def text_of(value: object) -> str:
    """Return str(value), or the class's name where that raises."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def plain(value: Any, depth: int = _DEPTH) -> Any:
    """Return a value as None, bool, int, float, str, list or dict; never raises.

    NaN and infinity become None: JSON has no such numbers, and a search index refuses a text in their place.
    """
    try:
        return _plain(value, depth)
    except Exception:
        return f"<{type(value).__name__}>"


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value) if value.bit_length() <= 64 else text_of(int(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping) and depth:
        pairs = list(value.items())[:_ITEMS]
        return {key if isinstance(key, str) else text_of(key): plain(item, depth - 1) for key, item in pairs}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return [plain(item, depth - 1) for item in list(value)[:_ITEMS]]
    return text_of(value)

"""How audit records are sealed: each carries its number, the hash of the one before and a keyed hash of itself.

    hash = HMAC-SHA256(key, prev + canonical JSON of the record without hash)

A line is the canonical JSON (sorted names, no spaces, ASCII) with the hash, so not even a space can be changed.
"""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

GENESIS: Final = "0" * 64  # `prev` of the first record of a chain

Kind = Literal["head", "request", "gap", "repair"]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A record as it stands in a file.

    Attributes:
        kind: `head` opens each file, `gap` counts requests that could not be written, `repair` closes off a line that
            a crash tore.
        seq: its number in the chain, from 0.
        values: everything, seq, prev and hash included.
    """

    kind: str
    seq: int
    prev: str
    hash: str
    values: Mapping[str, Any]


def canonical(values: Mapping[str, Any]) -> bytes:
    """Return the one JSON text of values; raises ValueError for what JSON cannot hold."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def seal(values: Mapping[str, Any], kind: Kind, after: Sealed | None, key: bytes) -> Sealed:
    """Return a record behind another, or the first one of a chain."""
    seq, prev = (0, GENESIS) if after is None else (after.seq + 1, after.hash)
    record = {**values, "kind": kind, "seq": seq, "prev": prev}
    digest = hmac.digest(key, prev.encode("ascii") + canonical(record), "sha256").hex()
    return Sealed(kind, seq, prev, digest, {**record, "hash": digest})


def unseal(line: bytes, key: bytes) -> Sealed | None:
    """Return the record of a line without its newline; None unless it is exactly as it was sealed with this key."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or canonical(record) != line:
            return None
        values = dict(record)
        digest, prev = record.pop("hash"), record["prev"]
        good = hmac.digest(key, prev.encode("ascii") + canonical(record), "sha256").hex()
        if not hmac.compare_digest(digest, good):
            return None
        return Sealed(record["kind"], record["seq"], prev, digest, values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def claimed_seq(line: bytes) -> int | None:
    """Return the number that a line claims which is not as it was sealed."""
    try:
        seq = json.loads(line)["seq"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return seq if isinstance(seq, int) and not isinstance(seq, bool) else None

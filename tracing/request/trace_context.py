"""W3C Trace Context: what a caller may send, read strictly, and ids of our own."""

import os
import random
import re
from binascii import hexlify
from typing import Final, NamedTuple

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE_LENGTH: Final = 512  # the least that the recommendation asks everybody to pass on
_TRACESTATE: Final = re.compile(rb"[\x20-\x7e\t]*")


class Incoming(NamedTuple):
    """The caller's span."""

    trace_id: int
    span_id: int
    sampled: bool


def parse_traceparent(header: bytes) -> Incoming | None:
    """Return the caller's span, None when the header is not one: W3C Trace Context 3.2."""
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    incoming = Incoming(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & 1))
    return incoming if incoming.trace_id and incoming.span_id else None


def format_traceparent(trace_id: int, span_id: int, *, sampled: bool) -> bytes:
    """Return the header for a span of ours."""
    return b"00-%032x-%016x-%02x" % (trace_id, span_id, sampled)


def clean_tracestate(header: bytes) -> str:
    """Return the caller's tracestate as it may be passed on, empty when it may not."""
    if len(header) > _TRACESTATE_LENGTH or _TRACESTATE.fullmatch(header) is None:
        return ""
    return header.decode("ascii").strip()


# Not a secret, so no system call per id; seeded apart from everybody who calls random.seed().
_random = random.Random(os.urandom(16))  # noqa: S311
_bits = _random.getrandbits
os.register_at_fork(after_in_child=lambda: _random.seed(os.urandom(16)))


def new_trace_id() -> int:
    """Return 128 random bits, not all zero."""
    return _bits(128) or 1


def new_request_id() -> bytes:
    """Return 128 random bits as 32 hexadecimal digits."""
    return hexlify(_bits(128).to_bytes(16, "big"))


def new_span_id() -> int:
    """Return 64 random bits, not all zero."""
    return _bits(64) or 1

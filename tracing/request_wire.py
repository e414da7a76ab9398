"""A Request as bytes between our own processes: nested tuples through marshal, which costs a tenth of its spans.

Both ends run the same release, so the order of the fields is the format.
"""

import marshal
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from .records import Gpu, Http, NativeSpan, Request, Sequence, Trace

_VERSION: Final = 2  # of marshal: newer ones look for shared objects, which costs more than it saves


def _getter(kind: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    names: tuple[str, ...] = kind.__match_args__
    return attrgetter(*names)


_FIELDS: Final = Request.__match_args__
_PLAIN: Final = tuple(name for name in _FIELDS if name not in {"trace", "http", "sequences", "headers", "gpus"})
_plain: Final = attrgetter(*_PLAIN)
_trace: Final = _getter(Trace)
_http: Final = _getter(Http)
_gpu: Final = _getter(Gpu)
_native: Final = _getter(NativeSpan)
_SEQUENCE_PLAIN: Final = tuple(name for name in Sequence.__match_args__ if name != "native")
_sequence: Final = attrgetter(*_SEQUENCE_PLAIN)


def packed(request: Request) -> bytes:
    """Return a request as bytes; raises ValueError for values that are not plain."""
    http, headers = request.http, request.headers
    return marshal.dumps(
        (
            _plain(request),
            _trace(request.trace),
            None if http is None else _http(http),
            [
                (_sequence(sequence), None if sequence.native is None else _native(sequence.native))
                for sequence in request.sequences
            ],
            None if headers is None else dict(headers),
            [_gpu(gpu) for gpu in request.gpus],
        ),
        _VERSION,
    )


def unpacked(data: Any) -> Request:
    """Return the request of some bytes, or of a memoryview."""
    plain, trace, http, sequences, headers, gpus = marshal.loads(data)  # noqa: S302 - our parent wrote them
    return Request(
        **dict(zip(_PLAIN, plain, strict=True)),
        trace=Trace(*trace),
        http=None if http is None else Http(*http),
        sequences=tuple(
            Sequence(
                **dict(zip(_SEQUENCE_PLAIN, fields, strict=True)),
                native=None if native is None else NativeSpan(*native),
            )
            for fields, native in sequences
        ),
        headers=headers,
        gpus=tuple(Gpu(*gpu) for gpu in gpus),
    )

"""Encoded spans on their way to the sender: a queue bounded in spans and bytes that drops its oldest."""

from collections import deque
from typing import Final, NamedTuple

MAX_BYTES: Final = 16 * 1024 * 1024
BATCH_SPANS: Final = 512
BATCH_BYTES: Final = 1024 * 1024  # a gRPC server takes 4 MiB unless told otherwise
_PIECE_SPANS: Final = 128  # of one request, so that a large one cannot make a batch too large


class Batch(NamedTuple):
    """Some requests' spans, as many as one call carries."""

    spans: int
    data: list[bytes]


class SpanBuffer:
    """Pieces of up to 128 spans of one request each, so that a dropped trace is dropped as a whole. Not thread-safe."""

    def __init__(self, max_spans: int, max_bytes: int = MAX_BYTES) -> None:
        self._max_spans = max_spans
        self._max_bytes = max_bytes
        self._pieces: deque[tuple[int, int, bytes]] = deque()  # spans, bytes, what they are
        self.spans = 0
        self.bytes = 0

    def add(self, encoded: list[bytes]) -> int:
        """Take a request's spans; returns how many spans had to go for them."""
        dropped = 0
        for at in range(0, len(encoded), _PIECE_SPANS):
            piece = encoded[at : at + _PIECE_SPANS]
            data = b"".join(piece)
            self._pieces.append((len(piece), len(data), data))
            self.spans += len(piece)
            self.bytes += len(data)
        while self._pieces and (self.spans > self._max_spans or self.bytes > self._max_bytes):
            dropped += self._pop()[0]
        return dropped

    def take(self) -> Batch:
        """Return the oldest pieces that fit into one call, at least one; an empty batch when there is none."""
        spans, size = 0, 0
        data: list[bytes] = []
        while self._pieces:
            number, length, _ = self._pieces[0]
            if data and (spans + number > BATCH_SPANS or size + length > BATCH_BYTES):
                break
            data.append(self._pop()[2])
            spans += number
            size += length
        return Batch(spans, data)

    @property
    def full_batch(self) -> bool:
        """Whether waiting would not make the next call larger."""
        return self.spans >= BATCH_SPANS or self.bytes >= BATCH_BYTES

    def _pop(self) -> tuple[int, int, bytes]:
        piece = self._pieces.popleft()
        self.spans -= piece[0]
        self.bytes -= piece[1]
        return piece

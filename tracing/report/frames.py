"""Messages over a stream socket between a process and its child: neither side ever waits, and none arrives in part."""

import socket
from collections import deque
from collections.abc import Callable
from typing import Final

_LENGTH: Final = 4  # bytes of the length before each message
_CHUNK_BYTES: Final = 64 * 1024  # that one call hands to the kernel
_READ_BYTES: Final = 256 * 1024


def _nothing(_: bytes) -> None:
    """Take no note."""


class Frames:
    """One end. Messages wait in `backlog` until they are flushed; whoever puts them there bounds it.

    Attributes:
        channel: the socket, which is not closed here.
        backlog: messages that no part of was sent.
        ended: the other end is gone, and all that it sent was read.
    """

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self.channel = channel
        self.backlog: deque[bytes] = deque()
        self.ended = False
        self._leaving = memoryview(b"")
        self._arrived = bytearray()

    @property
    def is_clear(self) -> bool:
        """Whether all was handed to the kernel."""
        return not self._leaving and not self.backlog

    def flush(self, leaves: Callable[[bytes], None] = _nothing) -> None:
        """Send until the kernel takes no more; raises OSError when the other end is gone.

        Args:
            leaves: gets each message when it begins to leave: from then on it may arrive.
        """
        while self._leaving or self.backlog:
            if not self._leaving:
                self._leaving = memoryview(self._next(leaves))
            try:
                sent = self.channel.send(self._leaving)
            except BlockingIOError:
                return
            self._leaving = self._leaving[sent:]

    def read(self, most: int = 1 << 20) -> list[bytes]:
        """Return the messages that are complete, after reading up to about `most` bytes."""
        arrived = self._arrived
        while most > 0 and not self.ended:
            try:
                piece = self.channel.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            self.ended = not piece
            arrived += piece
            most -= len(piece)
        found = []
        at = 0
        while len(arrived) - at >= _LENGTH:
            begin = at + _LENGTH
            end = begin + int.from_bytes(arrived[at:begin], "little")
            if end > len(arrived):
                break
            found.append(bytes(arrived[begin:end]))
            at = end
        del arrived[:at]
        return found

    def _next(self, leaves: Callable[[bytes], None]) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while self.backlog and size < _CHUNK_BYTES:
            message = self.backlog.popleft()
            leaves(message)
            pieces += (len(message).to_bytes(_LENGTH, "little"), message)
            size += len(message)
        return b"".join(pieces)

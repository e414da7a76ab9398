"""The child of `export: process`, a program: makes records, lines, metrics, audit and spans of what its parent saw.

It learns everything over the socket, so that nothing of it stands in its arguments, and ends when the socket does:
whether its parent closed it or died. It leaves the family at once: with several API servers vLLM stops by killing each
with all its descendants, and what they had sent must still come out.
"""

import contextlib
import logging
import marshal
import os
import pickle
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import Final

from ..counters import SINK_FAILURES, Counters
from ..json_values import plain, text_of
from ..logs.line_outputs import follow
from ..metrics.values import to_json
from ..request.exchange_wire import unpacked
from ..request.sampling import Sampler
from ..spans.export import SpanSink
from .frames import Frames
from .messages import ALONE, END, LINE, OUTPUTS, PID, REPORT, REQUEST
from .reporter import Reporter, Reporting

_REPORT_SECONDS: Final = 0.5
_ORPHAN_SECONDS: Final = 5.0  # to flush in after the parent died
_MOST_LINES: Final = 4096  # that wait for a parent that does not listen
_NICENESS: Final = 10


class Child:
    """Reports what comes over a socket.

    Args:
        frames: the way to the parent.
        reporting: what reporting depends on.
        outputs: where lines go, pickled.
    """

    def __init__(self, frames: Frames, reporting: Reporting, outputs: bytes) -> None:
        self._frames = frames
        self._lines = _LinesToParent(frames.backlog)
        self._follow(outputs)
        self._counters = Counters()
        export = reporting.export
        self._spans = [] if export is None else [SpanSink(export, reporting.resource, self._counters)]
        sampler = Sampler(reporting.settings.sampling, os.environ)
        self._reporter = Reporter(reporting, self._counters, sampler, *self._spans)
        self._counted: dict[tuple[str, str], int] = {}
        self._done = 0  # since the last report
        self._waiting = 0
        self._values = b""

    def run(self, messages: list[bytes]) -> None:
        """Work until the parent ends it, or is gone; some messages may have come already."""
        self._reporter.start()
        deadline: float | None = None
        due = time.monotonic() + _REPORT_SECONDS
        while True:
            for message in messages:
                if message[:1] == END:
                    deadline = marshal.loads(message[1:])  # noqa: S302 - our parent wrote it
                else:
                    self._take(message)
            if self._frames.ended or deadline is not None:
                break
            if time.monotonic() >= due:
                due = time.monotonic() + _REPORT_SECONDS
                self._reporter.idle()
                self._report()
            self._flush()
            writable = () if self._frames.is_clear else (self._frames.channel,)
            select.select((self._frames.channel,), writable, (), max(0.0, due - time.monotonic()))
            messages = self._frames.read()
        self._reporter.close(time.monotonic() + _ORPHAN_SECONDS if deadline is None else deadline)
        self._report()
        while not self._frames.is_clear and deadline is not None and (seconds := deadline - time.monotonic()) > 0:
            self._flush()
            select.select((), (self._frames.channel,), (), seconds)

    def _follow(self, outputs: bytes) -> None:
        """Have lines go where the parent's go."""
        follow(pickle.loads(outputs), self._lines)  # noqa: S301 - our parent wrote it

    def _take(self, message: bytes) -> None:
        kind = message[:1]
        if kind == OUTPUTS:
            self._follow(message[1:])
            return
        try:
            exchange, timelines = unpacked(memoryview(message)[1:])
            if kind == ALONE:
                self._reporter.alone(timelines[0])
            elif kind == REQUEST and exchange is not None:
                self._reporter.request(exchange, timelines)
        except Exception:  # costs this request, not the process
            self._counters.add(SINK_FAILURES, detail="assembly")
        self._done += 1

    def _report(self) -> None:
        """Tell the parent what is new, in one message: what that confirms is what it has counted."""
        now = self._counters.snapshot()
        counts = {key: number - self._counted.get(key, 0) for key, number in now.items()}
        waiting = sum(sink.waiting for sink in self._spans)
        values = to_json(self._reporter.values(), "") if self._done else self._values
        if any(counts.values()) or self._done or waiting != self._waiting:
            told = (counts, self._done, waiting, None if values == self._values else values)
            self._frames.backlog.append(REPORT + marshal.dumps(told))
        self._counted, self._done, self._waiting, self._values = now, 0, waiting, values

    def _flush(self) -> None:
        with contextlib.suppress(OSError):  # the parent is gone: reading finds out
            self._frames.flush()


class _LinesToParent(logging.Handler):
    """Hands records to the parent; what waits for one that does not listen is bounded."""

    def __init__(self, backlog: deque[bytes]) -> None:
        super().__init__()
        self._backlog = backlog

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record's level, text and fields."""
        fields = record.__dict__.get("vitals")
        told = (record.name, record.levelno, text_of(record.getMessage()), plain(fields), record.created)
        if len(self._backlog) < _MOST_LINES:
            self._backlog.append(LINE + marshal.dumps(told))


def main() -> None:
    """Run as the child: the only argument is the socket's descriptor."""
    if os.fork():
        os._exit(0)  # nobody's child any more
    for number in (signal.SIGINT, signal.SIGTERM):  # a service manager ends all at once: the socket's end counts
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        frames = Frames(channel)
        while not (first := frames.read()):
            if frames.ended:
                return  # the parent is gone already
            select.select((channel,), (), ())
        setup, outputs = marshal.loads(first[0][1:])  # noqa: S302 - our parent wrote it
        frames.backlog.append(PID + marshal.dumps(os.getpid()))
        child = Child(frames, pickle.loads(setup), outputs)  # noqa: S301 - our parent wrote it
        child.run(first[1:])


if __name__ == "__main__":
    main()

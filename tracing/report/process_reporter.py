"""The reports of `export: process`: a child makes the records and everything of them, off vLLM's interpreter lock.

    drain thread: request() --what was seen, as bytes--> socket --> child (child.py): Reporter
                  idle() <-- counts, metrics, lines it cannot write itself --/

What the child has not confirmed is kept. When it dies, and for as long as it cannot be started, this process reports by
itself, but for the spans: those count as dropped. So a child's death loses no line, no count and no audit record; lines
and audit records of the last second may come twice.
"""

import contextlib
import logging
import marshal
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from typing import Any, Final

from ..counters import EXPORT_FAILURES, REQUESTS_DROPPED, SPANS_DROPPED, Counters
from ..logs.line_outputs import Outputs, outputs_of
from ..logs.request_line import LOGGER
from ..metrics.values import Values, from_json, merged
from ..request.exchange_wire import packed, unpacked
from ..request.in_flight import Exchange, Timeline
from ..request.records import RequestRecord
from ..request.sampling import Sampler
from ..spans.tree import span_count
from .frames import Frames
from .messages import ALONE, END, LINE, OUTPUTS, PID, REQUEST, SETUP
from .reporter import Reporter, Reporting

_BACKLOG_MESSAGES: Final = 4096  # on top of what the kernel holds
_BACKLOG_BYTES: Final = 8 * 1024 * 1024
_SOCKET_BYTES: Final = 1024 * 1024  # asked for; the kernel gives net.core.wmem_max, often 208 KiB
_PATIENCE_SECONDS: Final = 0.05  # with a child that is busy, while this thread has nothing else to do
_LONGEST_PAUSE: Final = 60.0  # between starts of a child that dies
_SETTLED_SECONDS: Final = 60.0  # a child that lived so long starts its successor at once
_PROGRAM: Final = f"{__name__.rpartition('.')[0]}.child"
_REQUESTS: Final = (REQUEST, ALONE)
_NO_VALUES: Final = Values({}, {})

_log: Final = logging.getLogger("vllm_vitals.tracing")


class ProcessReporter:
    """Used like Reporter, from one thread; `values` from any. In a process forked from ours it is dead.

    The child starts with the first request, and again, with growing pauses, when it dies; a death is an export failure
    with detail `process`.

    Args:
        reporting: what reporting depends on.
        counters: of the plugin's own work, the child's included.
        sampler: of this process, for what it reports by itself.

    Raises:
        ConfigError: the audit log's key or place is not usable.
    """

    def __init__(self, reporting: Reporting, counters: Counters, sampler: Sampler) -> None:
        self._local = Reporter(reporting, counters, sampler, _LostSpans(counters))
        self._setup = pickle.dumps(reporting)
        self._counters = counters
        self._pid = os.getpid()
        self._starter: subprocess.Popen[bytes] | None = None
        self._child_pid: int | None = None
        self._child: int | None = None  # file descriptor that stands for the process, whatever becomes of its number
        self._frames: Frames | None = None
        self._outputs: Outputs | None = None
        self._backlog_bytes = 0
        self._unconfirmed: deque[bytes] = deque()  # begun to be sent, in the order of the child's confirmations
        self._spans_waiting = 0  # in the child, as it told last
        # Counted by children that are dead, and by the one that lives, as JSON: one pair, so that whoever asks while a
        # child dies sees its counts once.
        self._counted: tuple[Values, bytes] = (_NO_VALUES, b"")
        self._started_at = 0.0
        self._next_start = 0.0
        self._pause = 1.0
        self._is_closed = False

    @property
    def child_pid(self) -> int | None:
        """The child's process id, once it told."""
        return self._child_pid

    @property
    def waiting(self) -> int:
        """Requests that the child has not confirmed."""
        return len(self._unconfirmed) + (len(self._frames.backlog) if self._frames is not None else 0)

    def start(self) -> None:
        """Nothing yet: most of vLLM's processes never serve a request."""

    def request(self, exchange: Exchange, timelines: list[Timeline]) -> None:
        """Hand an HTTP request to the child with the sequences that are done."""
        if os.getpid() != self._pid:
            return
        if (frames := self._open()) is None:
            self._local.request(exchange, timelines)
        else:
            self._put(frames, REQUEST + packed(exchange, timelines))

    def alone(self, timeline: Timeline) -> None:
        """Hand a sequence to the child that has no HTTP request, or whose HTTP request was reported before."""
        if os.getpid() != self._pid:
            return
        if (frames := self._open()) is None:
            self._local.alone(timeline)
        else:
            self._put(frames, ALONE + packed(timeline.exchange, [timeline]))

    def flush(self) -> None:
        """Send what was handed over, as long as the child goes on taking it."""
        if os.getpid() != self._pid:
            return
        self._send()
        while (frames := self._frames) is not None and not frames.is_clear:
            if not select.select((), (frames.channel,), (), _PATIENCE_SECONDS)[1]:
                return
            self._send()

    def idle(self) -> None:
        """Read what the child tells; note that it died."""
        if os.getpid() != self._pid or self._is_closed:
            return
        self._local.idle()
        if self._frames is not None:
            self._tell_outputs(self._frames)
            self.flush()
        if self._frames is not None:
            self._listen(self._frames)
            if self._frames.ended:
                self._lost()

    def close(self, deadline: float) -> None:
        """Let the child bring out what is left and end before a deadline; one that does not is killed."""
        if os.getpid() != self._pid or self._is_closed:
            return
        self._is_closed = True
        if (frames := self._frames) is not None:
            # Monotonic time is one clock for both; the rest is for the last report and the interpreter's end.
            left = max(0.0, deadline - time.monotonic())
            frames.backlog.append(END + marshal.dumps(deadline - 0.2 * left))
            self.flush()
            while self._frames is not None and not frames.ended and (seconds := deadline - time.monotonic()) > 0:
                select.select((frames.channel,), (), (), min(seconds, _PATIENCE_SECONDS))
                self.flush()
                self._listen(frames)
            if self._frames is not None:
                self._reap(deadline)
                self._settle()
        self._local.close(deadline)

    def values(self) -> Values:
        """Return the request metrics of the children and of this process; any thread may ask."""
        return merged((_sum(*self._counted), self._local.values()))

    def _open(self) -> Frames | None:
        """Return the way to the child, after starting it where there is none; None where that has to wait."""
        if self._frames is not None or self._is_closed:
            return self._frames
        now = time.monotonic()
        if now < self._next_start:
            return None
        self._next_start = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._started_at = now
        self._local.close(now)  # the audit log has one writer
        try:
            self._frames = self._spawned()
        except (OSError, ValueError) as error:
            self._counters.add(EXPORT_FAILURES, detail="process")
            _log.warning("the process that reports requests does not start, its work is done here: %s", error)
        return self._frames

    def _spawned(self) -> Frames:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            self._outputs = outputs_of(LOGGER)
            frames = Frames(ours)
            # Pickled only for our own child. Keys and headers are among it: over the socket, never as arguments.
            frames.backlog.append(SETUP + marshal.dumps((self._setup, pickle.dumps(self._outputs))))
            frames.flush()
            self._starter = subprocess.Popen(
                # -P: the working directory must not shadow modules.
                [sys.executable, "-P", "-m", _PROGRAM, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C goes to vLLM's group, and the child flushes after vLLM
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return frames

    def _put(self, frames: Frames, message: bytes) -> None:
        backlog = frames.backlog
        backlog.append(message)
        self._backlog_bytes += len(message)
        if self._backlog_bytes > _SOCKET_BYTES:
            self._send()
            if self._frames is not frames:
                return  # it died; what waited has been seen to
        while len(backlog) > _BACKLOG_MESSAGES or self._backlog_bytes > _BACKLOG_BYTES:
            self._backlog_bytes -= len(backlog.popleft())
            self._counters.add(REQUESTS_DROPPED)

    def _send(self) -> None:
        """Send until the socket is full."""
        if self._frames is not None:
            try:
                self._frames.flush(self._leaves)
            except OSError:
                self._lost()

    def _leaves(self, message: bytes) -> None:
        if message[:1] in _REQUESTS:
            self._backlog_bytes -= len(message)
            self._unconfirmed.append(message)

    def _tell_outputs(self, frames: Frames) -> None:
        """Tell the child where lines go when that has changed; only on a clear way, so that it is never dropped."""
        if frames.is_clear and (outputs := outputs_of(LOGGER)) != self._outputs:
            self._outputs = outputs
            frames.backlog.append(OUTPUTS + pickle.dumps(outputs))

    def _listen(self, frames: Frames) -> None:
        """Take what the child told."""
        for message in frames.read():
            told = marshal.loads(memoryview(message)[1:])  # noqa: S302 - our child wrote it
            if message[:1] == PID:
                self._meet(told)
            elif message[:1] == LINE:
                _write(*told)
            else:
                counts, confirmed, self._spans_waiting, values = told
                for (kind, detail), number in counts.items():
                    self._counters.add(kind, number, detail)
                for _ in range(confirmed):
                    self._unconfirmed.popleft()
                if values is not None:
                    self._counted = (self._counted[0], values)

    def _lost(self) -> None:
        """Take note that the child died; the next request starts another when it is time."""
        if self._frames is not None:
            self._listen(self._frames)
        self._counters.add(EXPORT_FAILURES, detail="process")
        if time.monotonic() - self._started_at > _SETTLED_SECONDS:
            self._pause, self._next_start = 1.0, 0.0
        _log.warning("the process that reports requests ended; its work is done here until another one starts")
        self._reap(time.monotonic())
        self._settle()

    def _settle(self) -> None:
        """Do what the child that is gone has not confirmed; the backlog bounds how much that is."""
        frames, self._frames = self._frames, None
        left = [*self._unconfirmed, *(frames.backlog if frames is not None else ())]
        self._unconfirmed.clear()
        self._backlog_bytes = 0
        if self._spans_waiting:
            self._counters.add(SPANS_DROPPED, self._spans_waiting)
        self._spans_waiting = 0
        self._counted = (_sum(*self._counted), b"")
        for message in left:
            if message[:1] not in _REQUESTS:
                continue
            exchange, timelines = unpacked(memoryview(message)[1:])
            if message[:1] == ALONE:
                self._local.alone(timelines[0])
            elif exchange is not None:
                self._local.request(exchange, timelines)

    def _meet(self, pid: int) -> None:
        """Take note of the child's number, which it tells first."""
        self._child_pid = pid
        if self._starter is not None:
            self._starter.poll()  # it has forked and ended: leave no zombie
        with contextlib.suppress(OSError):  # gone again, or a kernel before 5.3
            self._child = os.pidfd_open(pid)

    def _reap(self, deadline: float) -> None:
        """Wait for the child until a deadline, then kill it, and let go of the socket."""
        starter, self._starter = self._starter, None
        child, self._child = self._child, None
        self._child_pid = None
        if child is not None:
            if not select.select((child,), (), (), max(0.0, deadline - time.monotonic()))[0]:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)
        if starter is not None:
            if child is None:  # it never came so far as to tell its number
                starter.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                starter.wait(1.0)  # at once, unless the kernel holds it
        if self._frames is not None:
            self._frames.channel.close()


def _sum(before: Values, told: bytes) -> Values:
    return merged((before, from_json(told, ""))) if told else before


class _LostSpans:
    """Counts the spans of requests that this process reports by itself."""

    name = "spans"

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def take(self, request: RequestRecord) -> None:
        """Count a request's spans as dropped."""
        if spans := span_count(request):
            self._counters.add(SPANS_DROPPED, spans)

    def idle(self) -> None:
        """Nothing is ever due."""

    def close(self, deadline: float) -> None:
        """Nothing is left."""


def _write(logger: str, level: int, text: str, fields: dict[str, Any] | None, created: float) -> None:
    """Log what the child could not."""
    extra = None if fields is None else {"vitals": fields}
    record = logging.getLogger(logger).makeRecord(logger, level, __file__, 0, text, (), None, "report", extra)
    record.created = created
    logging.getLogger(logger).handle(record)

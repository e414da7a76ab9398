"""The sink of `export: process`: spans are built, encoded and sent by a child process, off vLLM's interpreter lock.

    drain thread: take() --marshal--> SOCK_SEQPACKET --> child: SpanSink --> collector
                  idle() <-- what the child counted, every second --/

The child is this module run as a program. It learns everything over the socket, so that nothing of it stands in its
arguments, and ends when the socket does: whether its parent closed it or died. It leaves the family at once: with
several API servers vLLM stops by killing each with all its descendants, and what they had sent must still come out.
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
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .counters import EXPORT_FAILURES, SINK_FAILURES, SPANS_DROPPED, SPANS_EMITTED, SPANS_FAILED, Counters
from .otlp_settings import OtlpSettings
from .records import Request
from .request_wire import packed, unpacked
from .span_export import SpanSink
from .span_tree import span_count

_BACKLOG_MESSAGES: Final = 4096  # on top of what the kernel holds, some 200
_BACKLOG_BYTES: Final = 8 * 1024 * 1024
_SOCKET_BYTES: Final = 1024 * 1024  # asked for; the kernel gives net.core.wmem_max, often 208 KiB
_MESSAGE_BYTES: Final = 4 * 1024 * 1024  # more than any socket buffer lets through
_REPORT_SECONDS: Final = 0.5
_ORPHAN_SECONDS: Final = 5.0  # to flush in after the parent died
_LONGEST_PAUSE: Final = 60.0  # between starts of a child that dies
_SETTLED_SECONDS: Final = 60.0  # a child that lived so long starts its successor at once
_NICENESS: Final = 10

_REQUEST: Final = b"r"
_END: Final = b"e"
_PID: Final = "pid"

_log: Final = logging.getLogger("vllm_vitals.tracing")


class ProcessSpanSink:
    """Spans to a collector, by a child process; used like SpanSink, from one thread.

    The child starts with `start` or the first span, and again, with growing pauses, when it dies. Every span is counted
    once; of a child that was killed, what it did not report counts as dropped. In a process forked from ours the sink
    is dead.

    Args:
        settings: where to.
        resource: attributes of this process, the parent.
        counters: where spans and failures are counted; a child's death is an export failure with detail `process`.
    """

    name = "spans"

    def __init__(self, settings: OtlpSettings, resource: Mapping[str, str | int], counters: Counters) -> None:
        # Pickled only for our own child. Headers are among it: it goes over the socket, never into arguments.
        self._setup = pickle.dumps((settings, dict(resource)))
        self._counters = counters
        self._pid = os.getpid()
        self._starter: subprocess.Popen[bytes] | None = None
        self._child_pid: int | None = None
        self._child: int | None = None  # file descriptor that stands for the process, whatever becomes of its number
        self._channel: socket.socket | None = None
        self._backlog: deque[tuple[int, bytes]] = deque()  # spans, message
        self._backlog_bytes = 0
        self._outstanding = 0  # spans that the child got and did not report on
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
        """Spans that are neither sent nor given up, as far as the child told."""
        return self._outstanding + sum(spans for spans, _ in self._backlog)

    def start(self) -> None:
        """Start the child, unless it runs or has to wait; never raises."""
        if os.getpid() != self._pid or self._is_closed or self._channel is not None:
            return
        now = time.monotonic()
        if now < self._next_start:
            return
        self._next_start = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._started_at = now
        try:
            self._spawn()
        except (OSError, ValueError) as error:
            self._counters.add(EXPORT_FAILURES, detail="process")
            _log.warning("the process that exports spans does not start: %s", error)

    def take(self, request: Request) -> None:
        """Hand a sampled request to the child."""
        if os.getpid() != self._pid or not (spans := span_count(request)):
            return
        if self._is_closed:
            self._counters.add(SPANS_DROPPED, spans)
            return
        try:
            message = _REQUEST + packed(request)
        except ValueError:
            self._counters.add(SPANS_DROPPED, spans)
            return
        self._backlog.append((spans, message))
        self._backlog_bytes += len(message)
        while len(self._backlog) > _BACKLOG_MESSAGES or self._backlog_bytes > _BACKLOG_BYTES:
            self._counters.add(SPANS_DROPPED, self._shift())
        self._flush()

    def idle(self) -> None:
        """Send what waited, read what the child counted, start it again if it died."""
        if os.getpid() != self._pid or self._is_closed:
            return
        self._flush()
        if not self._read_reports() and self._channel is not None:
            self._lost()

    def close(self, deadline: float) -> None:
        """Let the child send what is left and end before a deadline; one that does not is killed."""
        if os.getpid() != self._pid or self._is_closed:
            return
        self._flush()
        while self._backlog and self._channel is not None and (seconds := deadline - time.monotonic()) > 0:
            select.select((), (self._channel,), (), seconds)
            self._flush()
        self._is_closed = True
        if self._channel is not None:
            left = max(0.0, deadline - time.monotonic())
            with contextlib.suppress(OSError):
                # Monotonic time is one clock for both; the rest is for reports and the interpreter's end.
                self._channel.send(_END + marshal.dumps(deadline - 0.2 * left))
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)
            while self._read_reports() and (seconds := deadline - time.monotonic()) > 0:
                select.select((self._channel,), (), (), seconds)
        self._reap(deadline)
        left_over = self._outstanding + sum(spans for spans, _ in self._backlog)
        self._backlog.clear()
        self._outstanding = 0
        if left_over:
            self._counters.add(SPANS_DROPPED, left_over)

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            ours.setblocking(False)
            ours.send(self._setup)
            self._starter = subprocess.Popen(
                # -P: the working directory must not shadow modules.
                [sys.executable, "-P", "-m", __spec__.name, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C goes to vLLM's group, and the child flushes after vLLM
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = ours

    def _flush(self) -> None:
        """Send waiting messages until the socket is full."""
        if self._channel is None:
            self.start()
        while self._backlog and self._channel is not None:
            spans, message = self._backlog[0]
            try:
                self._channel.send(message)
            except BlockingIOError:
                return
            except OSError as error:
                if len(message) > 64 * 1024 and not isinstance(error, ConnectionError):
                    self._counters.add(SPANS_DROPPED, self._shift())  # EMSGSIZE: no socket carries it
                    continue
                self._lost()
                return
            self._shift()
            self._outstanding += spans

    def _shift(self) -> int:
        spans, message = self._backlog.popleft()
        self._backlog_bytes -= len(message)
        return spans

    def _read_reports(self) -> bool:
        """Add what the child counted; returns whether more can come."""
        while self._channel is not None:
            try:
                data = self._channel.recv(65536)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            for (kind, detail), number in marshal.loads(data).items():  # noqa: S302 - our child wrote it
                if kind == _PID:
                    self._meet(number)
                    continue
                self._counters.add(kind, number, detail)
                if kind in {SPANS_EMITTED, SPANS_DROPPED, SPANS_FAILED}:
                    self._outstanding -= number
        return False

    def _lost(self) -> None:
        """Take note that the child died; the next flush or idle starts another when it is time."""
        self._read_reports()
        self._counters.add(EXPORT_FAILURES, detail="process")
        if self._outstanding > 0:
            self._counters.add(SPANS_DROPPED, self._outstanding)
        self._outstanding = 0
        if time.monotonic() - self._started_at > _SETTLED_SECONDS:
            self._pause, self._next_start = 1.0, 0.0
        _log.warning("the process that exports spans ended; another one starts")
        self._reap(time.monotonic())

    def _meet(self, pid: int) -> None:
        """Take note of the child's number, which it tells first."""
        self._child_pid = pid
        with contextlib.suppress(OSError):  # gone again, or a kernel before 5.3
            self._child = os.pidfd_open(pid)

    def _reap(self, deadline: float) -> None:
        """Wait for the child until a deadline, then kill it, and let go of the socket."""
        starter, self._starter = self._starter, None
        channel, self._channel = self._channel, None
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
        if channel is not None:
            channel.close()


def run(channel: socket.socket) -> None:
    """Be the child: take requests from a socket until it ends, then flush."""
    if not (setup := channel.recv(_MESSAGE_BYTES)):
        return  # the parent is gone already
    settings, resource = pickle.loads(setup)  # noqa: S301 - our parent wrote it
    channel.send(marshal.dumps({(_PID, ""): os.getpid()}))
    counters = Counters()
    sink = SpanSink(settings, resource, counters)
    told: dict[tuple[str, str], int] = {}
    channel.setblocking(False)
    buffer = bytearray(_MESSAGE_BYTES)
    due = time.monotonic() + _REPORT_SECONDS
    deadline: float | None = None
    is_open = True
    while is_open:
        select.select((channel,), (), (), max(0.0, due - time.monotonic()))
        for message in _messages(channel, buffer):
            if message is None:
                is_open = False
            elif message[0] == _END[0]:
                deadline = marshal.loads(message[1:])  # noqa: S302
            else:
                _take(sink, message[1:], counters)
        if time.monotonic() >= due:
            due = time.monotonic() + _REPORT_SECONDS
            _report(channel, counters, told)
    sink.close(time.monotonic() + _ORPHAN_SECONDS if deadline is None else deadline)
    _report(channel, counters, told)


def _messages(channel: socket.socket, buffer: bytearray) -> Iterator[memoryview | None]:
    """Yield what came, some at a time so that reports stay timely; None is the end."""
    view = memoryview(buffer)
    for _ in range(256):
        try:
            size = channel.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        yield view[:size] if size else None
        if not size:
            return


def _take(sink: SpanSink, message: memoryview, counters: Counters) -> None:
    """Give a request to the sink; one that it cannot take costs its spans, not the process."""
    request = unpacked(message)
    try:
        sink.take(request)
    except Exception as error:
        counters.add(SINK_FAILURES, detail=sink.name)
        counters.add(SPANS_DROPPED, span_count(request))
        if counters.total(SINK_FAILURES) == 1:
            _log.warning("spans of a request are lost: %s: %s", type(error).__name__, error)


def _report(channel: socket.socket, counters: Counters, told: dict[tuple[str, str], int]) -> None:
    """Tell the parent what was counted since it was told last; what the socket does not take goes next time."""
    now = counters.snapshot()
    news: Any = {key: number - told.get(key, 0) for key, number in now.items() if number != told.get(key, 0)}
    if news:
        with contextlib.suppress(OSError):
            channel.send(marshal.dumps(news))
            told.update(now)


def main() -> None:
    """Run as the child: the only argument is the socket's descriptor."""
    if os.fork():
        os._exit(0)  # nobody's child any more
    for number in (signal.SIGINT, signal.SIGTERM):  # a service manager ends all at once: the socket's end counts
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        run(channel)


if __name__ == "__main__":
    main()

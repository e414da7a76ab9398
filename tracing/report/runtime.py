"""The plugin at work in one API server process: the queue behind vLLM's event loop, and the thread that drains it."""

import atexit
import logging
import multiprocessing.util
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from time import time as _now
from typing import Any, Final, cast

from ...runtime.log_once import LogOnce
from ..counters import HOOK_FAILURES, REQUESTS_DROPPED, SINK_FAILURES, Counters
from ..metrics.share import MetricsPage
from ..request.in_flight import Exchange, Receive, Send, Timeline
from ..request.sampling import Head, Sampler
from ..request.trace_context import format_traceparent, new_request_id, parse_traceparent
from .reporter import Reports

_log: Final = logging.getLogger("vllm_vitals.tracing")

# Instead of waking the thread for each request, which costs the event loop a system call. Not more often, since the
# first request of a batch finds the processor's caches cold.
_POLL_SECONDS: Final = 0.25
_IDLE_SECONDS: Final = 1.0
_GRACE_SECONDS: Final = 5.0  # an abort reaches the engine a little after the HTTP request ended
_CLOSE_SECONDS: Final = 2.0
_MINUTE: Final = 60.0
_REQUEST_ID: Final = 256
_HEAD: Final = "vllm_vitals.head"  # in the scope: decided when the request came
_PRINTABLE: Final = re.compile(rb"[!-~]+")

running: "Runtime | None" = None
_pending: list[Callable[[Any], None]] = []


def current() -> "Runtime | None":
    """Return the running plugin of this process, None when there is none."""
    return running


def when_server_shows(start: Callable[[Any], None]) -> None:
    """Keep a start for the moment in which a process turns out to be an API server; it gets the OutputProcessor."""
    _pending[:] = [start]


def is_pending() -> bool:
    """Return whether a start was kept."""
    return bool(_pending)


def start_pending(processor: Any) -> None:
    """Do the start that was kept, once; this is an API server with its OutputProcessor, which may be None."""
    while _pending:
        try:
            _pending.pop()(processor)
        except Exception:  # vLLM's own start must go on
            _log.exception("tracing stays off: it could not be started")


class Runtime:
    """Takes what is finished from the event loop and has it reported.

    Args:
        reports: what reports them.
        page: request metrics, and the line of each minute.
        sampler: for the first decision.
        counters: of the plugin's own work.
        queue_size: finished requests that may wait; the oldest are dropped.
        body_bytes: limit of the request bodies that are looked at.
        capture_content: keep prompts and answers.
        rewrites_traceparent: vLLM's own tracing is on, so its spans must hang below our HTTP span.
        only_traces: what is not sampled when it comes goes unnoticed.
    """

    def __init__(
        self,
        *,
        reports: Reports,
        page: MetricsPage,
        sampler: Sampler,
        counters: Counters,
        queue_size: int,
        body_bytes: int,
        capture_content: bool,
        rewrites_traceparent: bool,
        only_traces: bool,
    ) -> None:
        self.body_bytes = body_bytes
        self.capture_content = capture_content
        self.waits_for_native = False
        self.many_engines = False
        self.tracing: Timeline | None = None
        self.processor: Any = None  # vLLM's OutputProcessor, once a request came
        self.metrics_page = page.page
        self.by_request_id: dict[str, Exchange] | None = None  # filled only where the hooks do not fit
        self.only_traces = only_traces
        self._reports = reports
        self._page = page
        self._sampler = sampler
        self._decide = _decider(sampler)  # a method would be made anew for each request
        self._id_at = 0
        self._counters = counters
        self._rewrites_traceparent = rewrites_traceparent
        self.queue: deque[Exchange | Timeline] = deque(maxlen=queue_size)
        self.queue_size = queue_size
        self._waiting: list[Exchange] = []
        self._said = LogOnce()
        self._stop = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="vllm-vitals", daemon=True)

    def start(self) -> None:
        """Begin to work; the process ends us through `close`."""
        global running  # noqa: PLW0603  one plugin per process, found by middleware and hooks
        self._reports.start()
        self._thread.start()
        running = self
        atexit.register(self.close)
        # Processes that multiprocessing forks end without atexit: vLLM's API servers, when there are several.
        multiprocessing.util.Finalize(None, self.close, exitpriority=10)
        os.register_at_fork(after_in_child=_forget)

    def may_be_sampled(self, scope: Any) -> bool:
        """Return False for a request that will not be; runs on the event loop.

        A caller's header that does not say *no* is read when the request is over: what turns out not to be sampled then
        is not reported.
        """
        sampler = self._sampler
        if sampler.heeds_callers:
            for name, value in scope["headers"]:
                if name == b"traceparent":
                    return not sampler.says_no(value)
        head = sampler.unasked()
        if head is None:
            return False
        scope[_HEAD] = head
        return True

    def begin(self, scope: Any, receive: Receive, send: Send) -> tuple[Exchange, Any]:
        """Return the exchange of a request that comes in, and the scope to pass on; runs on the event loop."""
        headers = scope["headers"]
        at = self._id_at
        if at < len(headers) and headers[at][0] == b"x-request-id":  # where the last client had it
            given = headers[at][1]
        else:
            given = b""
            for pair in headers:
                if pair[0] == b"x-request-id":
                    given, self._id_at = pair[1], headers.index(pair)
                    break
        is_usable = len(given) <= _REQUEST_ID and (given.isalnum() or _PRINTABLE.fullmatch(given))
        exchange = Exchange()
        exchange.scope = scope
        exchange.raw_id = given if is_usable else new_request_id()
        exchange.decide = self._decide
        exchange.started = _now()
        exchange.receive = receive
        exchange.send = send
        exchange.body_left = self.body_bytes
        exchange.first_byte = 0.0
        exchange.complete = exchange.disconnected = exchange.released = False
        exchange.body = exchange.sequences = None
        if is_usable and not self._rewrites_traceparent and self.by_request_id is None:
            return exchange, scope
        return exchange, {**scope, "headers": self._changed(headers, given, exchange)}

    def _changed(self, headers: Any, given: bytes, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        """Return the headers that vLLM gets of a request that brought a usable request id, another one, or none."""
        if exchange.raw_id == given:
            changed = [*headers]
        else:
            changed = [pair for pair in headers if pair[0] != b"x-request-id"] if given else [*headers]
            changed.append((b"x-request-id", exchange.raw_id))
        if self._rewrites_traceparent:
            head = exchange.head
            ours = {b"traceparent"} if head.parent_span_id else {b"traceparent", b"tracestate"}  # of another trace
            changed = [pair for pair in changed if pair[0] not in ours]
            changed.append((b"traceparent", format_traceparent(head.trace_id, exchange.span_id, sampled=head.sampled)))
        if self.by_request_id is not None:
            self.by_request_id[exchange.request_id] = exchange
        return changed

    def submit(self, done: Exchange | Timeline) -> None:
        """Hand over what is finished: one bounded append; when the queue is full the oldest goes, counted."""
        if len(self.queue) == self.queue_size:
            self.drop()
        self.queue.append(done)

    def drop(self) -> None:
        """Count a request that is about to be pushed out of the full queue."""
        self._counters.add(REQUESTS_DROPPED)

    def submit_unhooked(self, timeline: Timeline) -> None:
        """Hand over a sequence that no hook saw: the HTTP request it belongs to is found by its id."""
        exchange = self._find(timeline.facts[0])
        if exchange is None:
            self.submit(timeline)
        else:
            timeline.exchange = exchange
            exchange.sequences = [*(exchange.sequences or ()), timeline]

    def _find(self, response_id: str) -> Exchange | None:
        """Return the exchange of a response id: chatcmpl-ID, cmpl-ID-0, embd-ID-0, ..."""
        if not self.by_request_id:
            return None
        _, _, rest = response_id.partition("-")
        return self.by_request_id.get(rest) or self.by_request_id.get(rest.rpartition("-")[0])

    def in_flight(self) -> list[str]:
        """Return the ids of the requests that the engine works on; any thread may ask."""
        states = getattr(self.processor, "request_states", {})
        timelines = [getattr(state, "vllm_vitals", None) for state in [*states.values()]]
        exchanges = [timeline.exchange for timeline in timelines if timeline is not None]
        ids = [exchange.request_id for exchange in exchanges if exchange is not None]
        return list(dict.fromkeys(ids)) or [*states]

    def hook_failed(self, hook: str, error: Exception) -> None:
        """Count a failure of ours inside vLLM; log the first of each hook."""
        self._counters.add(HOOK_FAILURES, detail=hook)
        if self._said.is_news(hook):
            _log.warning("%s: a hook failed and is passed by from now on where it does: %r", hook, error)

    def close(self) -> None:
        """Bring out what there is, within 2 s; safe to call again."""
        global running  # noqa: PLW0603
        if self._closed:
            return
        self._closed = True
        running = None
        self._stop.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        idle_at = minute_at = time.monotonic()
        while not self._stop.wait(_POLL_SECONDS):
            self._guarded(self._drain)
            now = time.monotonic()
            if now - idle_at >= _IDLE_SECONDS:
                idle_at = now
                self._guarded(self._reports.idle)
                self._guarded(self._page.idle)
            if now - minute_at >= _MINUTE:
                minute_at = now
                self._guarded(self._say_minute)
        deadline = time.monotonic() + _CLOSE_SECONDS * 0.9
        self._guarded(self._drain)
        for exchange in self._waiting:
            self._report(exchange)
        self._waiting.clear()
        self._guarded(lambda: self._reports.close(deadline))
        self._guarded(self._page.close)

    def _say_minute(self) -> None:
        if line := self._page.minute_line():
            _log.info(line)

    def _drain(self) -> None:
        if self._waiting:
            self._look_at_waiting()
        queue = self.queue
        if not queue:
            return
        while queue:
            try:
                done = queue.popleft()
            except IndexError:  # dropped by the event loop meanwhile
                break
            if self.by_request_id is not None and isinstance(done, Exchange):
                self.by_request_id.pop(done.request_id, None)
            if isinstance(done, Timeline):
                if not done.reported:
                    done.reported = True
                    self._guarded(lambda done=done: self._reports.alone(done))  # type: ignore[misc]
            elif all(timeline.done for timeline in done.sequences or ()):
                self._report(done)
            else:
                done.waits_until = time.monotonic() + _GRACE_SECONDS
                self._waiting.append(done)
            time.sleep(0)  # let the event loop have the interpreter between two requests, not after the whole batch
        self._reports.flush()

    def _look_at_waiting(self) -> None:
        now = time.monotonic()
        still: list[Exchange] = []
        for position, exchange in enumerate(self._waiting):
            complete = all(timeline.done for timeline in exchange.sequences or ())
            if complete or now >= exchange.waits_until or len(self._waiting) - position > self.queue_size:
                self._report(exchange)
            else:
                still.append(exchange)
        self._waiting = still

    def _report(self, exchange: Exchange) -> None:
        exchange.released = True  # before looking at `done`: see hooks/vllm_methods._done
        timelines = [timeline for timeline in exchange.sequences or () if timeline.done and not timeline.reported]
        for timeline in timelines:
            timeline.reported = True
        self._guarded(lambda: self._reports.request(exchange, timelines))
        for timeline in timelines:
            timeline.exchange = None  # no cycle for the collector

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do some work on the drain thread; whatever goes wrong there, the queue keeps its reader."""
        try:
            work()
        except Exception as error:
            self._counters.add(SINK_FAILURES, detail="drain")
            if self._said.is_news("drain"):
                _log.warning("a report failed, counted from now on: %r", error)


def _decider(sampler: Sampler) -> Callable[[Any], Head]:
    """Return what makes the first sampling decision for a request's headers."""

    def decide(scope: Any) -> Head:
        if (head := scope.get(_HEAD)) is not None:
            return cast("Head", head)
        for name, value in scope["headers"]:
            if name == b"traceparent":
                return sampler.begin(parse_traceparent(value))
        return sampler.begin(None)

    return decide


def _forget() -> None:
    """A forked process has no drain thread: it stays dark."""
    global running  # noqa: PLW0603
    running = None

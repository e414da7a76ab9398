"""The sink that turns requests into spans and sends them to a collector from a thread of its own (`export: thread`)."""

import logging
import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Final

from ... import __version__
from ..counters import EXPORT_FAILURES, SPANS_DROPPED, SPANS_EMITTED, SPANS_FAILED, Counters
from ..request.records import RequestRecord
from .buffer import Batch, SpanBuffer
from .otlp import export_request, resource_bytes, scope_bytes, span_bytes
from .otlp_delivery import Delivery, Sender
from .otlp_settings import OtlpSettings
from .tree import spans_of

SCOPE: Final = "vllm_vitals.tracing"

_FIRST_PAUSE: Final = 0.5  # doubled with every failure
_LONGEST_PAUSE: Final = 15.0
_GIVE_UP_SECONDS: Final = 60.0  # how long one batch is tried
_LOG_SECONDS: Final = 60.0  # at most one change of the collector's state is logged in this time
_CUT_SECONDS: Final = 0.2  # kept of a close's deadline for giving up in good order

_log: Final = logging.getLogger("vllm_vitals.tracing")


class SpanSink:
    """Spans to a collector. `take` builds and encodes; a daemon thread sends batches of 512 spans or `settings.delay`.

    The thread starts with the first span. Every span is counted exactly once: emitted, failed or dropped. In a process
    forked from ours the sink is dead: it takes nothing and closes nothing.

    Args:
        settings: where to.
        resource: attributes of this process.
        counters: where spans and failed calls are counted.
    """

    name = "spans"

    def __init__(self, settings: OtlpSettings, resource: Mapping[str, str | int], counters: Counters) -> None:
        self._settings = settings
        self._counters = counters
        self._resource = resource_bytes(resource)
        self._scope = scope_bytes(SCOPE, __version__)
        self._pid = os.getpid()
        self._change = threading.Condition()
        self._buffer = SpanBuffer(settings.queue)
        self._in_flight = 0
        self._deadline: float | None = None  # of close, once it has begun
        self._abandoned = False
        self._thread: threading.Thread | None = None
        self._sender: Sender | None = None
        self._is_troubled = False
        self._is_said_troubled = False
        self._said_at = -_LOG_SECONDS

    def take(self, request: RequestRecord) -> None:
        """Build, encode and queue the spans of a sampled request."""
        if os.getpid() != self._pid:
            return
        spans = spans_of(request, legacy=self._settings.legacy_names)
        if not spans:
            return
        encoded = [span_bytes(span) for span in spans]
        with self._change:
            if self._deadline is not None:
                self._counters.add(SPANS_DROPPED, len(encoded))
                return
            was_empty = not self._buffer.spans
            dropped = self._buffer.add(encoded)
            if was_empty or self._buffer.full_batch:
                self._change.notify_all()
        if dropped:
            self._counters.add(SPANS_DROPPED, dropped)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vitals-spans", daemon=True)
            self._thread.start()

    def idle(self) -> None:
        """Do nothing: the thread has its own clock."""

    @property
    def waiting(self) -> int:
        """Spans that are neither sent nor given up."""
        with self._change:
            return self._buffer.spans + self._in_flight

    def close(self, deadline: float) -> None:
        """Send what is left; what a deadline, or a collector that fails now, leaves over is dropped."""
        if os.getpid() != self._pid:
            return
        with self._change:
            if self._deadline is not None:
                return
            self._deadline = deadline
            self._change.notify_all()
        if (thread := self._thread) is not None:
            thread.join(max(0.0, deadline - time.monotonic() - _CUT_SECONDS))
            if thread.is_alive() and (sender := self._sender) is not None:
                sender.cut()
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._change:
            self._abandoned = True
            left = self._in_flight
            self._in_flight = 0
        self._drop_all(left)

    def _drop_all(self, left: int = 0) -> None:
        with self._change:
            while self._buffer.spans:
                left += self._buffer.take().spans
        if left:
            self._counters.add(SPANS_DROPPED, left)

    def _run(self) -> None:
        try:
            self._sender = _sender(self._settings)
            while (batch := self._next_batch()).spans:
                self._deliver(self._sender, batch)
            self._sender.close()
        except Exception as error:  # a fault of ours must not go unseen; the engine does not feel it
            _log.warning("no spans any more: %s: %s", type(error).__name__, error)
            with self._change:
                self._deadline = self._deadline or 0.0
                left, self._in_flight = self._in_flight, 0
            self._drop_all(left)

    def _next_batch(self) -> Batch:
        """Wait until there is enough to send, or it waited long enough; an empty batch is the end."""
        with self._change:
            while not self._buffer.spans and self._deadline is None:
                self._change.wait()
            due = time.monotonic() + self._settings.delay
            while not self._buffer.full_batch and self._deadline is None:
                if (seconds := due - time.monotonic()) <= 0:
                    break
                self._change.wait(seconds)
            batch = self._buffer.take()
            self._in_flight = batch.spans
            return batch

    def _deliver(self, sender: Sender, batch: Batch) -> None:
        """Send a batch until it is accepted, refused or given up."""
        data = export_request(self._resource, self._scope, batch.data)
        give_up = time.monotonic() + _GIVE_UP_SECONDS
        pause = _FIRST_PAUSE
        while True:
            timeout = self._settings.timeout
            if (closing := self._deadline) is not None:
                timeout = min(timeout, closing - _CUT_SECONDS - time.monotonic())
                if timeout <= 0:
                    self._settle(batch.spans, {SPANS_DROPPED: batch.spans})
                    self._drop_all()
                    return
            delivery = sender.send(data, timeout)
            self._tell(delivery)
            if delivery.end != "accepted":
                self._counters.add(EXPORT_FAILURES)
            if delivery.end == "accepted":
                rejected = min(delivery.rejected, batch.spans)
                self._settle(batch.spans, {SPANS_EMITTED: batch.spans - rejected, SPANS_FAILED: rejected})
                return
            if delivery.end == "refused":
                self._settle(batch.spans, {SPANS_FAILED: batch.spans})
                return
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads engines, hides nothing
            wait = max(wait, delivery.retry_after or 0.0)
            pause = min(2 * pause, _LONGEST_PAUSE)
            if closing is not None or time.monotonic() + wait > give_up:
                self._settle(batch.spans, {SPANS_DROPPED: batch.spans})
                if closing is not None:
                    self._drop_all()  # one more try for each batch would hold vLLM's end for nothing
                return
            with self._change:
                self._change.wait_for(lambda: self._deadline is not None, wait)

    def _settle(self, spans: int, counts: Mapping[str, int]) -> None:
        """Count a batch's spans, unless close gave them up meanwhile."""
        with self._change:
            if self._abandoned or not spans:
                return
            self._in_flight = 0
        for kind, number in counts.items():
            if number:
                self._counters.add(kind, number)

    def _tell(self, delivery: Delivery) -> None:
        """Log when the collector stops to take spans and when it takes them again; never each failure."""
        self._is_troubled = delivery.end != "accepted"
        now = time.monotonic()
        if self._is_troubled == self._is_said_troubled or now - self._said_at < _LOG_SECONDS * (self._is_troubled):
            return
        self._is_said_troubled, self._said_at = self._is_troubled, now
        if self._is_troubled:
            _log.warning("the collector %s does not take spans: %s", self._settings.shown, delivery.reason)
        else:
            _log.warning("the collector %s takes spans again", self._settings.shown)


def _sender(settings: OtlpSettings) -> Sender:
    if settings.protocol == "grpc":
        from .otlp_grpc import GrpcSender  # noqa: PLC0415 - 20 MB that HTTP does without

        return GrpcSender(settings)
    from .otlp_http import HttpSender  # noqa: PLC0415

    return HttpSender(settings)

"""Makes a record of each finished request and gives it to everything that reports; on a single thread.

Runtime's drain thread --> Reporter: Assembly --> metrics, line, audit, spans      export: thread
Runtime's drain thread --> ProcessReporter --bytes--> child: the same Reporter     export: process
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from ...runtime.log_once import LogOnce
from ...settings.tracing import TracingSettings
from ..audit.hashing import Hasher
from ..audit.log import AuditSink
from ..counters import FORCED_SAMPLING_REFUSED, SINK_FAILURES, Counters
from ..logs.request_line import RequestLogSink
from ..metrics.gpu_facts import GpuFactsWatch
from ..metrics.request_metrics import RequestMetricsSink
from ..metrics.values import Values
from ..request.assembly import Assembly
from ..request.in_flight import Exchange, Timeline
from ..request.records import RequestRecord
from ..request.sampling import Sampler
from ..sinks import Sink
from ..spans.otlp_settings import OtlpSettings

_log: Final = logging.getLogger("vllm_vitals.tracing")


class Reports(Protocol):
    """What the drain thread hands finished requests to."""

    def start(self) -> None:
        """Begin to work."""

    def request(self, exchange: Exchange, timelines: list[Timeline]) -> None:
        """Report an HTTP request with the sequences that are done."""

    def alone(self, timeline: Timeline) -> None:
        """Report a sequence without an HTTP request, or whose HTTP request was reported before."""

    def flush(self) -> None:
        """Bring on its way what was reported; called after each look at the queue."""

    def idle(self) -> None:
        """Do what is due; called about once a second."""

    def close(self, deadline: float) -> None:
        """Bring out what is left before a `time.monotonic()` deadline."""

    def values(self) -> Values:
        """Return the request metrics; any thread may ask."""


@dataclass(frozen=True, slots=True)
class Reporting:
    """Everything that reporting depends on, as plain values: a child process gets it, too.

    Attributes:
        settings: of the plugin.
        hasher: of users and headers; its key may be random, so it is made once.
        export: where spans go, None for nowhere.
        resource: attributes of vLLM's process.
        models: served names, the first as vLLM's own metrics have it.
        engine_index: of the only engine, None when there are several.
    """

    settings: TracingSettings
    hasher: Hasher
    export: OtlpSettings | None
    resource: Mapping[str, str | int]
    models: tuple[str, ...]
    engine_index: int | None


class Reporter:
    """Does it all in this process.

    Args:
        reporting: what it depends on.
        counters: of the plugin's own work.
        sampler: for the finish-time rule; its refusals are counted here.
        more: sinks that get each record after metrics, line and audit: spans.

    Raises:
        ConfigError: the audit log's key or place is not usable.
    """

    def __init__(self, reporting: Reporting, counters: Counters, sampler: Sampler, *more: Sink) -> None:
        settings = reporting.settings
        self._counters = counters
        self._sampler = sampler
        self._facts = GpuFactsWatch(settings.gpu_facts, counters)
        self._metrics = RequestMetricsSink(None if settings.only_traces else reporting.models, settings.goodput)
        self._assembly = Assembly(
            self._sampler,
            model=reporting.models[0] if reporting.models else "",
            hash_text=reporting.hasher.hash,
            hash_headers=settings.privacy.hash_headers,
            capture_content=settings.capture_content,
            exporting=reporting.export is not None,
            gpus=self._facts.current,
            engine_index=reporting.engine_index,
        )
        self._sinks: list[Sink] = [self._metrics]
        if settings.request_log.enabled and not settings.only_traces:
            self._sinks.append(RequestLogSink(settings.request_log))
        if settings.audit.file is not None:
            self._sinks.append(AuditSink(settings.audit, counters))
        self._sinks += more
        self._said = LogOnce()

    def start(self) -> None:
        """Begin to ask for the engine's GPUs, where that is wanted."""
        self._facts.start()

    def request(self, exchange: Exchange, timelines: list[Timeline]) -> None:
        """Report an HTTP request with the sequences that are done."""
        self._give(lambda: self._assembly.request(exchange, timelines))

    def alone(self, timeline: Timeline) -> None:
        """Report a sequence without an HTTP request, or whose HTTP request was reported before."""
        self._give(lambda: self._assembly.alone(timeline))

    def flush(self) -> None:
        """Nothing is held back."""

    def idle(self) -> None:
        """Let the sinks do what is due."""
        refused = self._sampler.refused
        if refused:
            self._sampler.refused -= refused
            self._counters.add(FORCED_SAMPLING_REFUSED, refused)
        for sink in self._sinks:
            self._guarded(sink, sink.idle)

    def close(self, deadline: float) -> None:
        """Bring out what is left before a `time.monotonic()` deadline."""
        self._facts.close()
        for sink in self._sinks:
            self._guarded(sink, lambda sink=sink: sink.close(deadline))  # type: ignore[misc]

    def values(self) -> Values:
        """Return the request metrics; any thread may ask."""
        return self._metrics.values()

    def _give(self, assemble: Callable[[], RequestRecord]) -> None:
        try:
            request = assemble()
        except Exception as error:
            self._sink_failed("assembly", error)
            return
        for sink in self._sinks:
            self._guarded(sink, lambda sink=sink: sink.take(request))  # type: ignore[misc]

    def _guarded(self, sink: Sink, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._sink_failed(sink.name, error)

    def _sink_failed(self, name: str, error: Exception) -> None:
        self._counters.add(SINK_FAILURES, detail=name)
        if self._said.is_news(name):
            _log.warning("%s failed, counted from now on: %r", name, error)

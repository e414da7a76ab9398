"""Puts the plugin together in an API server process: settings, sinks, hooks, drain thread."""

import importlib.metadata
import logging
import os
import re
from collections.abc import Sequence
from typing import Any, Final

from .. import __version__
from ..settings.config import load_tracing
from ..settings.scalars import ConfigError
from ..settings.tracing import TracingSettings
from .audit.hashing import Hasher
from .counters import HOOK_FALLBACKS, Counters
from .fatal import file as fatal_file
from .fatal import watch as fatal
from .hooks import vllm_methods as hooks
from .metrics.self_metrics import SelfMetrics
from .metrics.share import MetricsPage
from .report import runtime
from .report.process_reporter import ProcessReporter
from .report.reporter import Reporter, Reporting, Reports
from .report.runtime import Runtime
from .request.durations import from_finished
from .request.in_flight import Timeline
from .request.sampling import Sampler
from .spans.export import SpanSink
from .spans.otlp_settings import otlp_settings, resource
from .switches import switched_off

_log: Final = logging.getLogger("vllm_vitals.tracing")


def vllm_version() -> tuple[int, ...]:
    """Return vLLM's version; a high one when it does not say a number, as a development build does."""
    import vllm  # noqa: PLC0415  we run inside it

    match = re.match(r"(\d+)\.(\d+)\.(\d+)", str(getattr(vllm, "__version__", "")))
    return tuple(int(part) for part in match.groups()) if match else (99,)


def watch_for_fatal_errors() -> None:
    """Count what ends engines in this process, whichever of vLLM's it is."""
    settings = load_tracing()
    if settings.enabled:
        fatal.install(fatal_file.state_dir(settings.state_dir))


def at_first_request() -> None:
    """Start when the API server shows itself by its first request, in the middleware or without: vLLM before 0.11.1."""

    def start(processor: Any) -> None:
        in_api_server(None, [0], native=bool(getattr(processor, "tracer", None)))

    runtime.when_server_shows(start)
    hooks.when_first_called("OutputProcessor.add_request", runtime.start_pending)


def in_api_server(config: Any, engine_indexes: Sequence[int], *, native: bool | None = None) -> Runtime | None:
    """Start in this process; returns the running plugin, None when it is switched off or its settings are wrong.

    Args:
        config: vLLM's configuration; None where vLLM does not hand it over.
        engine_indexes: data-parallel ranks behind this server.
        native: vLLM's own tracing is on, where the configuration cannot say.
    """
    if switched_off(os.environ):
        return None
    if (running := runtime.current()) is not None:
        return running
    try:
        settings = load_tracing()
        if not settings.enabled:
            return None
        return _started(settings, config, engine_indexes, native)
    except ConfigError as error:
        _log.error("tracing stays off: %s", error)
        return None


def _started(settings: TracingSettings, config: Any, engine_indexes: Sequence[int], native: bool | None) -> Runtime:
    counters = Counters()
    endpoint = getattr(getattr(config, "observability_config", None), "otlp_traces_endpoint", None)
    alongside = bool(endpoint) if native is None else native
    models = served_models(config)
    many_engines = len(engine_indexes) > 1 or _elastic(config)
    state = fatal_file.state_dir(settings.state_dir)
    sampler = Sampler(settings.sampling, os.environ)
    hasher = Hasher.from_settings(settings.privacy)
    export = otlp_settings(os.environ, endpoint)
    info = {
        "mode": "alongside" if alongside else "own",
        "export": settings.export if export else "none",
        "vllm_version": _distribution_version(),
        "version": __version__,
    }
    attributes = resource(os.environ, {"vllm.version": info["vllm_version"]})
    engine_index = None if many_engines else engine_indexes[0]
    reporting = Reporting(settings, hasher, export, attributes, tuple(models), engine_index)
    reports: Reports
    if settings.export == "process":
        reports = ProcessReporter(reporting, counters, sampler)
    else:
        spans = [] if export is None else [SpanSink(export, attributes, counters)]
        reports = Reporter(reporting, counters, sampler, *spans)
    page = MetricsPage(reports.values, SelfMetrics(counters, info), lambda: fatal.fatal_counts(state))
    live = Runtime(
        reports=reports,
        page=page,
        sampler=sampler,
        counters=counters,
        queue_size=settings.queue_size,
        body_bytes=settings.body_bytes,
        capture_content=settings.capture_content,
        rewrites_traceparent=alongside,
        only_traces=settings.only_traces and not alongside,
    )
    unfit = {name: reason for name, reason in hooks.examine().items() if reason}
    for name, reason in unfit.items():
        counters.add(HOOK_FALLBACKS, detail=name)
        _log.warning("this vLLM has no fitting %s (%s): less is known of requests", name, reason)
    if "OutputProcessor.add_request" in unfit:
        live.by_request_id = {}
        live.only_traces = False
    if alongside:
        live.waits_for_native = "OutputProcessor.do_tracing" not in unfit
        _hang_on_native(live, models[0] if models else "")
    fatal.install(state, "api_server")
    fatal.name_requests(live.in_flight)
    live.many_engines = many_engines
    try:
        hooks.install(live)
        live.start()
    except BaseException:
        hooks.remove()  # without a drain thread they would only collect
        raise
    _log.info("tracing is on: mode %s, spans go %s", info["mode"], "to the collector" if export else "nowhere")
    return live


def unhooked(live: Runtime, iteration: Any, engine_index: int) -> None:
    """Report what finished in a step from vLLM's own statistics, where the hooks do not fit."""
    for finished in getattr(iteration, "finished_requests", ()):
        timeline = Timeline()
        timeline.durations = from_finished(finished, iteration.iteration_timestamp)
        response_id = getattr(finished, "request_id", None) or ""
        cached = getattr(finished, "num_cached_tokens", 0)
        asked = (finished.max_tokens_param, None, None, None)
        timeline.facts = (response_id, response_id, 0, None, finished.num_prompt_tokens, cached, *asked)
        timeline.engine_index = engine_index
        timeline.finish_reason = finished.finish_reason
        timeline.finished = iteration.iteration_timestamp
        timeline.done = True
        live.submit_unhooked(timeline)


def _elastic(config: Any) -> bool:
    """Return whether engines may come and go while the server runs."""
    return bool(getattr(getattr(config, "parallel_config", None), "enable_elastic_ep", False))


def served_models(config: Any) -> list[str]:
    """Return the names under which a model is served, the first as vLLM's own metrics have it; LoRA names follow."""
    model = getattr(config, "model_config", None)
    names = getattr(model, "served_model_name", None) or getattr(model, "model", None) or []
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _hang_on_native(live: Runtime, model: str) -> None:
    from opentelemetry import trace  # noqa: PLC0415  vLLM has set it up, since its flag is given

    from .spans.native import NativeSpans  # noqa: PLC0415

    provider = trace.get_tracer_provider()
    add: Any = getattr(provider, "add_span_processor", None)
    if add is None:
        _log.warning("vLLM's tracer provider takes no span processor: its spans get no children")
    else:
        add(NativeSpans(live, model))


def _distribution_version() -> str:
    try:
        import vllm  # noqa: PLC0415

        return str(vllm.__version__)
    except (ImportError, AttributeError):
        return importlib.metadata.version("vllm")

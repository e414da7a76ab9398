"""What `vllm-vitals doctor` finds in a vLLM's environment: is the plugin there, does it fit, which flags to add.

Run by the doctor with that environment's Python: `python -m vllm_vitals.tracing.doctor` prints findings as JSON.
"""

import importlib.metadata
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from ..settings.config import load_tracing
from ..settings.finding import Finding
from ..settings.installation import install_command
from ..settings.scalars import ConfigError
from .hooks.vllm_methods import HOOKS
from .hooks.vllm_methods import examine as examine_hooks
from .spans.otlp_settings import otlp_settings
from .switches import PLUGIN, left_out, switched_off

MIDDLEWARE: Final = "vllm_vitals.tracing.middleware.Vitals"
_GROUPS: Final = ("vllm.stat_logger_plugins", "vllm.general_plugins")
_CONNECT_SECONDS: Final = 2.0


def examine(environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return the findings for this Python's environment."""
    if importlib.util.find_spec("vllm") is None:
        return [
            Finding("problem", "vLLM", f"not installed for {sys.executable}", "name the Python that runs vllm serve")
        ]
    import vllm  # noqa: PLC0415  seconds

    findings = [Finding("ok", "vLLM", f"{getattr(vllm, '__version__', 'version not told')} ({sys.executable})")]
    findings += [_entry_points(), _switches(environ), *_settings(environ), *_hooks(), _export(environ), _logs(environ)]
    return [*findings, *_flags(environ)]


def _entry_points() -> Finding:
    found = [group for group in _GROUPS if any(e.name == PLUGIN for e in importlib.metadata.entry_points(group=group))]
    if len(found) == len(_GROUPS):
        return Finding(
            "ok", "Plugin", f"vllm-vitals {importlib.metadata.version('vllm-vitals')}, vLLM loads it by itself"
        )
    advice = install_command("tracing", options="--force-reinstall --no-deps")
    return Finding("problem", "Plugin", "its entry points are not registered, so vLLM does not load it", advice)


def _switches(environ: Mapping[str, str]) -> Finding:
    if left_out(environ):
        advice = f"add {PLUGIN} to VLLM_PLUGINS, or unset it"
        return Finding("note", "Tracing", f"off: VLLM_PLUGINS is {environ['VLLM_PLUGINS']!r}", advice)
    if switched_off(environ):
        return Finding("note", "Tracing", "off: VLLM_VITALS_TRACING says so")
    return Finding("ok", "Tracing", "on")


def _settings(environ: Mapping[str, str]) -> list[Finding]:
    try:
        settings = load_tracing(environ)
    except ConfigError as error:
        return [Finding("problem", "Settings", str(error), "the plugin stays off until this is corrected")]
    path = environ.get("VLLM_VITALS_CONFIG")
    findings = [Finding("ok", "Settings", path or "defaults (VLLM_VITALS_CONFIG names a vitals.yaml)")]
    if not settings.enabled:
        findings.append(Finding("note", "Tracing", "off: tracing.enabled says so"))
    if settings.only_traces:
        findings.append(Finding("note", "Lines and metrics", "none of requests: only_traces is on"))
    if settings.capture_content:
        findings.append(Finding("note", "Content", "prompts and answers go into spans: capture_content is on"))
    return findings


def _hooks() -> list[Finding]:
    unfit = {name: reason for name, reason in examine_hooks().items() if reason}
    gives = {hook.name: hook.gives for hook in HOOKS}
    findings = [
        Finding("note", f"Hook {name}", f"does not fit: {reason}", f"missing: {gives[name]}")
        for name, reason in unfit.items()
    ]
    if not unfit:
        findings.append(Finding("ok", "Hooks", f"all {len(HOOKS)} fit this vLLM: exact phases, preemptions, aborts"))
    return findings


def _export(environ: Mapping[str, str]) -> Finding:
    try:
        settings = otlp_settings(environ)
    except ConfigError as error:
        return Finding("problem", "Spans", str(error))
    if settings is None:
        advice = "set OTEL_EXPORTER_OTLP_ENDPOINT, such as http://127.0.0.1:4317; logs and metrics work without"
        return Finding("note", "Spans", "go nowhere: no endpoint is set", advice)
    where = urlsplit(settings.shown if "://" in settings.shown else f"//{settings.shown}")
    if not where.port:  # a unix socket, or a name for gRPC's own resolver
        return Finding("ok", "Spans", f"{settings.protocol} to {settings.shown}, not tried")
    try:
        socket.create_connection((where.hostname or "", where.port), _CONNECT_SECONDS).close()
    except OSError as error:
        return Finding("problem", "Spans", f"{settings.shown} does not answer: {error}", "start the collector there")
    return Finding("ok", "Spans", f"{settings.protocol} to {settings.shown}, which listens")


def _logs(environ: Mapping[str, str]) -> Finding:
    if environ.get("VLLM_LOGGING_CONFIG_PATH"):
        return Finding("ok", "Logs", f"VLLM_LOGGING_CONFIG_PATH is {environ['VLLM_LOGGING_CONFIG_PATH']}")
    advice = "vllm-vitals logging-config > logging.json; export VLLM_LOGGING_CONFIG_PATH=$PWD/logging.json"
    return Finding("note", "Logs", "one JSON line per request; vLLM's other lines are plain text", advice)


def _flags(environ: Mapping[str, str]) -> list[Finding]:
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return [
        Finding(
            "ok",
            "vllm serve flags",
            f"--middleware {MIDDLEWARE}",
            "mode own: the plugin makes all spans; without this flag there is no HTTP span, no 4xx, no caller's trace",
        ),
        Finding(
            "note",
            "mode alongside",
            f"--middleware {MIDDLEWARE} --otlp-traces-endpoint {endpoint or 'http://COLLECTOR:4317'}",
            "only where vLLM's own llm_request span must stay: it costs 0.2 ms of CPU per request",
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(examine()))

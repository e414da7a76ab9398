"""`vllm-vitals doctor`: looks at this machine as the sidecar would, says what is missing and what to do."""

import asyncio
import errno
import json
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from .. import __version__
from ..exporter.engines.local_servers import find_local_servers
from ..exporter.engines.page_client import SPEAKS_NO_TLS, FetchError, PageClient
from ..exporter.gpus.types import GpuError
from ..exporter.http.web_config import WebConfig
from ..exporter.machine.host import has_node_exporter
from ..settings.config import EngineSettings, Settings
from ..settings.finding import Finding
from ..settings.installation import install_command
from ..settings.invocation import as_called
from ..settings.scalars import ConfigError
from ..vocabulary.reasons import DRIVER, FETCH, driver_code
from .companions import ALERTMANAGER, PROMETHEUS, on_path

_NVML_SECONDS: Final = 20.0  # the first call without persistence mode takes seconds
_FETCH_SECONDS: Final = 5.0
_IMPORT_SECONDS: Final = 120.0  # vLLM's import on a cold disk
_TRACING_INFO: Final = re.compile(rb"^vllm_vitals_tracing_info\{([^}]*)\}", re.MULTILINE)

_LISTEN_ADVICE: Final = {
    errno.EADDRINUSE: "an exporter may run already; else choose another address with --listen",
    errno.EACCES: "ports below 1024 need root: choose another one with --listen",
}


def as_lines(findings: Sequence[Finding]) -> str:
    """Return findings for people: a mark, what was looked at, what was found, and below it what to do."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.mark}  {finding.what:<{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"   {'':<{width}}  -> {as_called(finding.advice)}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    """Return findings for scripts and bug reports: `versions` and `findings`; `advice` is empty where there is none."""
    versions = {"vllm-vitals": __version__, "python": platform.python_version(), "platform": platform.platform()}
    rows = [finding._asdict() | {"advice": as_called(finding.advice)} for finding in findings]
    return json.dumps({"versions": versions, "findings": rows}, indent=2)


async def examine_engine_environment(python: str) -> list[Finding]:
    """Return what is to be said of the plugin in a vLLM's environment, given by the path of its Python."""
    if (path := shutil.which(python)) is None:
        advice = "name it: --engine-env /path/to/python"
        return [Finding("problem", "vLLM's Python", f"{python}: no such program", advice)]
    command = [path, "-P", "-m", "vllm_vitals.tracing.doctor"]  # -P: not what lies in this folder by chance
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), _IMPORT_SECONDS)
    except TimeoutError:
        process.kill()
        return [Finding("problem", "vLLM's Python", f"{path} gave no answer within {_IMPORT_SECONDS:.0f} s")]
    try:
        rows = json.loads(output.decode().strip().rpartition("\n")[2])
        return [Finding(*row) for row in rows]
    except (ValueError, TypeError):
        pass
    last = errors.decode(errors="replace").strip().rpartition("\n")[2]
    if "No module named" in last and "vllm_vitals" in last:
        advice = install_command("tracing", python=path)
        return [Finding("problem", "Plugin", f"vllm-vitals is not installed for {path}", advice)]
    return [Finding("problem", "vLLM's Python", last or f"{path} ended with {process.returncode} and said nothing")]


async def examine(settings: Settings) -> list[Finding]:
    """Return the findings, in the order in which a person would look."""
    findings = [_python(), await _nvml(settings)]
    findings += await _engines(settings)
    findings += [_processes(settings), _listen(settings), _web(settings), await _host(settings)]
    return [
        *findings,
        _program("Prometheus", PROMETHEUS, "prometheus"),
        _program("Alertmanager", ALERTMANAGER, "prometheus-alertmanager"),
    ]


def _python() -> Finding:
    return Finding("ok", "Python", f"{sys.version.split()[0]} ({sys.executable})")


async def _nvml(settings: Settings) -> Finding:
    if not settings.gpus.enabled:
        return Finding("note", "GPUs", "switched off in the settings")
    from ..exporter.gpus.nvml.source import NvmlSource  # noqa: PLC0415

    source = NvmlSource()
    try:
        devices = await asyncio.wait_for(asyncio.to_thread(source.open), _NVML_SECONDS)
        versions = source.versions()
    except GpuError as error:
        return Finding("problem", "GPUs", str(error), DRIVER[driver_code(error.reason)].advice)
    except TimeoutError:
        return Finding("problem", "GPUs", f"NVML gave no answer within {_NVML_SECONDS:.0f} s", DRIVER["hang"].advice)
    names = sorted({device.name for device in devices})
    driver = versions.get("driver_version", "?")
    return Finding("ok", "GPUs", f"{len(devices)} x {', '.join(names)}, driver {driver}")


async def _engines(settings: Settings) -> list[Finding]:
    engines = list(settings.engines)
    if not engines and not settings.discovery.files and not settings.discovery.dns:
        engines = await asyncio.to_thread(partial(find_local_servers, settings.placement.procfs, frozenset()))
        if not engines:
            advice = "start vLLM (vllm serve MODEL), or name it: --engine http://HOST:8000"
            return [Finding("note", "Engines", "none named, none found on this machine", advice)]
    return [await _engine(engine, settings) for engine in engines]


async def _engine(engine: EngineSettings, settings: Settings) -> Finding:
    what = f"Engine {engine.server}"
    client = PageClient(engine, settings.max_page_bytes)
    try:
        page = await client.metrics(_FETCH_SECONDS)
    except FetchError as error:
        advice = _fetch_advice(error, engine, client.metrics_path)
        return Finding("problem", what, f"{error.reason}: {error.detail}", advice)
    finally:
        client.close()
    if b"\nvllm_vitals_build_info{" in page and b"# TYPE vllm:" not in page:
        return Finding("problem", what, "is an exporter of ours, not an engine", "name vLLM's own address instead")
    if b"# TYPE vllm:" not in page and b"# TYPE sglang:" not in page:
        return Finding(
            "problem",
            what,
            "answers, but its page has no engine metrics",
            "vLLM: start it without --disable-log-stats; SGLang: with --enable-metrics",
        )
    return Finding("ok", what, f"{await _version(engine)}, {len(page):,} bytes of metrics, {_tracing(page)}")


# What OpenSSL says of a failed handshake, in the order in which it is looked for -> what to do.
_TLS_ADVICE: Final = (
    (SPEAKS_NO_TLS, "the server speaks no TLS there: write http://{address}"),
    (("Hostname mismatch", "IP address mismatch"),
     "the certificate names another host: set tls.server_name for this engine in vitals.yaml, or use that name"),
    (("has expired", "not yet valid"), "renew the server's certificate, or set the clock"),
    (("CERTIFICATE_VERIFY_FAILED",), "set tls.ca_file for this engine in vitals.yaml to the CA of its certificate"),
    (("ALERT_CERTIFICATE", "CERTIFICATE_REQUIRED", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA"),
     "the server asks for a certificate of ours: set tls.cert_file and tls.key_file for this engine in vitals.yaml"),
    (("EOF occurred",), "it hung up on the TLS greeting: does that port speak TLS? If not, write http://{address}"),
)  # fmt: skip


def _fetch_advice(error: FetchError, engine: EngineSettings, metrics_path: str) -> str:
    """Return what to do about a failed fetch, in the light of what this engine's settings say already."""
    parts = urlsplit(engine.url)
    secure = parts.scheme == "https"
    advice = FETCH[error.reason].advice
    if error.reason == "tls":
        advice = next((words for marks, words in _TLS_ADVICE if any(mark in error.detail for mark in marks)), advice)
    elif error.reason == "closed" and secure:
        advice = "something hung up: a proxy without a server behind it, or a port that speaks no TLS"
    elif error.reason == "protocol" and secure:
        advice = "that is no HTTP: correct the port"
    elif error.reason == "unauthorized" and (engine.basic_auth or engine.bearer_token_file or engine.bearer_token_env):
        advice = "the server refuses the credentials of this engine: correct them"
    elif error.reason == "http_status" and error.detail.startswith("HTTP 5"):
        advice = "the server, or a proxy in front of it, fails: look at its log"
    elif error.reason == "http_status" and engine.metrics_path:
        advice = "correct this engine's metrics_path; try: curl -i {url}"
    address = parts.netloc
    return advice.format(url=f"{parts.scheme}://{address}{metrics_path}", address=address)


def _tracing(page: bytes) -> str:
    """Return in words whether the plugin runs inside the engine, and how."""
    match = _TRACING_INFO.search(page)
    if match is None:
        return "no tracing plugin on its page"
    labels = dict(re.findall(r'(\w+)="([^"]*)"', match[1].decode("utf-8", "replace")))
    return f"tracing in mode {labels.get('mode', '?')}, export {labels.get('export', '?')}"


async def _version(engine: EngineSettings) -> str:
    client = PageClient(engine, 1 << 16)
    try:
        answer = await client.get("/version", _FETCH_SECONDS)
        return f"vLLM {json.loads(answer.body)['version']}"
    except (FetchError, ValueError, KeyError, TypeError, RecursionError):
        return "version not told"
    finally:
        client.close()


def _processes(settings: Settings) -> Finding:
    """Tell whether placement can see other users' processes."""
    if os.geteuid() == 0:
        return Finding("ok", "Placement", "root: engine processes and their sockets are visible")
    try:
        Path(settings.placement.procfs / "1/fd").stat()
        next((settings.placement.procfs / "1/fd").iterdir(), None)
    except OSError:
        return Finding(
            "note",
            "Placement",
            "only this user's processes are visible",
            "run as vLLM's user or with CAP_SYS_PTRACE, or name each engine's gpus in vitals.yaml",
        )
    return Finding("ok", "Placement", "all processes and their sockets are visible")


def _listen(settings: Settings) -> Finding:
    address = settings.listen
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            advice = _LISTEN_ADVICE.get(error.errno or 0, "name an address of this machine with --listen")
            return Finding("problem", "Listen address", f"{address}: {error.strerror}", advice)
    open_to_all = address.host not in {"127.0.0.1", "::1", "localhost"} and settings.web_config_file is None
    if open_to_all:
        return Finding("note", "Listen address", f"{address} is free, without TLS or password", "add --web.config.file")
    return Finding("ok", "Listen address", f"{address} is free")


def _web(settings: Settings) -> Finding:
    if settings.web_config_file is None:
        return Finding("ok", "Web config file", "none: plain HTTP, no password")
    try:
        web = WebConfig(settings.web_config_file)
    except ConfigError as error:
        return Finding("problem", "Web config file", str(error))
    return Finding("ok", "Web config file", f"{settings.web_config_file}: {'TLS' if web.tls() else 'plain HTTP'}")


async def _host(settings: Settings) -> Finding:
    if settings.host.mode != "auto":
        return Finding("ok", "Host metrics", settings.host.mode)
    if await asyncio.to_thread(has_node_exporter, settings.host.node_exporter_url):
        return Finding("ok", "Host metrics", "off: node_exporter already runs here")
    return Finding("ok", "Host metrics", "on: no node_exporter here")


def _program(name: str, programs: tuple[str, ...], package: str) -> Finding:
    path = on_path(programs)
    if path is None:
        return Finding("note", name, "not on PATH", f"`up` starts it when it is there (Debian: apt install {package})")
    return Finding("ok", name, path)

"""One traced request, followed through the bundle: engine, exemplar, trace, log line; each step says where to look."""

import base64
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from ..runtime.exchange import exchange
from ..settings.finding import Finding

_POLL_SECONDS: Final = 2.0
_CALL_SECONDS: Final = 10.0
_MOST_BYTES: Final = 32 << 20
_HISTOGRAMS: Final = '{__name__=~"vllm_vitals_request_.+_seconds_bucket"}'
_PHASES: Final = frozenset({"vllm.queue", "vllm.prefill", "vllm.decode"})
# Jaeger's page calls /api/traces, its documented API is /api/v3: whichever this version answers.
_TRACE_PATHS: Final = ("/api/traces/{}", "/api/v3/traces/{}")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the parts are reached from this machine.

    Attributes:
        engine: base address of a vLLM with the plugin.
        grafana: its address; the stores are asked through its data sources, so these are tried, too.
        password_file: of Grafana's user admin.
    """

    engine: str
    prometheus: str
    grafana: str
    password_file: Path
    ca_file: Path | None = None


class UnreachedError(Exception):
    """A call did not succeed; the text says why."""


def follow(places: Places, deadline: float, say: Callable[[Finding], None]) -> bool:
    """Send a request, find its traces everywhere, and return whether every step succeeded.

    Args:
        places: where everything is.
        deadline: seconds for each step; signals arrive after a scrape, a batch, a refresh.
        say: takes each step's finding as it is known.
    """
    trace_id = secrets.token_hex(16)
    sound = True
    for finding in _steps(places, trace_id, deadline):
        say(finding)
        sound = sound and finding.ok
    return sound


def _steps(places: Places, trace_id: str, deadline: float) -> Iterator[Finding]:
    sent = _request(places, trace_id)
    yield sent
    if not sent.ok:  # nothing further along can know it
        return
    logs = "vllm-vitals bundle logs"
    yield _eventually(
        "exemplar", lambda: _exemplar(places, trace_id), deadline,
        f"is the target of job vllm-vitals-requests up on {places.prometheus}/targets, and does the plugin run in vLLM "
        "(vllm-vitals doctor --engine-env PYTHON)?",
    )  # fmt: skip
    yield _eventually(
        "trace", lambda: _trace(places, trace_id), deadline,
        f"does vLLM's OTEL_EXPORTER_OTLP_ENDPOINT lead to the collector? {logs} collector jaeger",
    )  # fmt: skip
    yield _eventually(
        "log line", lambda: _log_line(places, trace_id), deadline,
        f"does vLLM log JSON (vllm-vitals logging-config), in a container that Filebeat reads? {logs} filebeat",
    )  # fmt: skip


def _eventually(what: str, look: Callable[[], str], deadline: float, advice: str) -> Finding:
    """Look until something is found; the last reason why not is told."""
    began = time.monotonic()
    found, reason = "", "nothing there"
    while not found:
        try:
            found = look()
            reason = "nothing there"
        except UnreachedError as error:
            reason = str(error)
        if not found:
            if time.monotonic() - began >= deadline:
                return Finding("problem", what, f"{reason}, for {deadline:.0f} s", advice)
            time.sleep(min(_POLL_SECONDS, deadline))
    return Finding("ok", what, f"{found} (after {time.monotonic() - began:.0f} s)")


def _request(places: Places, trace_id: str) -> Finding:
    advice = "is a vLLM there? --engine URL, or the profile vllm: vllm-vitals bundle status"
    try:
        models = _call(places, f"{places.engine}/v1/models", {})["data"]
        model = models[0]["id"]
        headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01", "Content-Type": "application/json"}
        asked = json.dumps({"model": model, "prompt": "Say hello.", "max_tokens": 8, "temperature": 0}).encode()
        answer = _call(places, f"{places.engine}/v1/completions", headers, asked, 120.0)
        tokens = answer["usage"]["completion_tokens"]
    except UnreachedError as error:
        return Finding("problem", "request", str(error), advice)
    except (KeyError, IndexError, TypeError):
        return Finding("problem", "request", f"{places.engine} does not answer as vLLM does", advice)
    return Finding("ok", "request", f"{model}: {tokens} tokens, trace id {trace_id}")


def _exemplar(places: Places, trace_id: str) -> str:
    now = time.time()
    asked = {"query": _HISTOGRAMS, "start": f"{now - 900:.0f}", "end": f"{now + 60:.0f}"}
    series = _grafana(places, "prometheus", f"/api/v1/query_exemplars?{urlencode(asked)}")["data"]
    names = {
        one["seriesLabels"]["__name__"].removesuffix("_bucket")
        for one in series
        for exemplar in one["exemplars"]
        if exemplar["labels"].get("trace_id") == trace_id
    }
    return f"in {len(names)} histograms, such as {min(names)}" if names else ""


def _trace(places: Places, trace_id: str) -> str:
    reason: UnreachedError | None = None
    for path in _TRACE_PATHS:
        try:
            spans = {*_span_names(_grafana(places, "jaeger", path.format(trace_id)))}
        except UnreachedError as error:
            reason = error
            continue
        missing = _PHASES - spans
        if spans and missing:
            raise UnreachedError(f"{len(spans)} kinds of spans, but not yet {', '.join(sorted(missing))}")
        return f"spans {', '.join(sorted(spans))}" if spans else ""
    assert reason is not None, "there is a path"
    raise reason


def _span_names(node: Any) -> Iterator[str]:
    """Yield the names of spans in either form of a trace: Jaeger's own has `operationName`, OTLP has `spans[].name`."""
    if isinstance(node, Mapping):
        if isinstance(name := node.get("operationName"), str) or (
            "spanId" in node and isinstance(name := node.get("name"), str)
        ):
            yield name
        for value in node.values():
            yield from _span_names(value)
    elif isinstance(node, list):
        for value in node:
            yield from _span_names(value)


def _log_line(places: Places, trace_id: str) -> str:
    query = quote(f'trace.id:"{trace_id}"')
    hits = _grafana(places, "elasticsearch", f"/logs-vllm-*/_search?size=5&q={query}")["hits"]["hits"]
    if not hits:
        return ""
    message = hits[0].get("_source", {}).get("message", "")
    return f"{len(hits)} in {hits[0].get('_index', 'Elasticsearch')}: {str(message)[:60]}"


def _grafana(places: Places, uid: str, path: str) -> Any:
    try:
        password = places.password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UnreachedError(f"{places.password_file}: {error.strerror}") from None
    token = base64.b64encode(f"admin:{password}".encode()).decode()
    url = f"{places.grafana}/api/datasources/proxy/uid/{uid}{path}"
    return _call(places, url, {"Authorization": f"Basic {token}"})


def _call(
    places: Places, url: str, headers: Mapping[str, str], body: bytes | None = None, seconds: float = _CALL_SECONDS
) -> Any:
    where = url.split("?", maxsplit=1)[0]
    try:
        answer = exchange(
            url,
            method="GET" if body is None else "POST",
            headers=headers,
            body=body or b"",
            deadline=seconds,
            limit=_MOST_BYTES,
            ca_file=str(places.ca_file) if places.ca_file is not None else None,
            use_proxy=True,
        )
    except (OSError, ValueError) as error:
        raise UnreachedError(f"{where}: {error}") from None
    if not 200 <= answer.status < 300:
        raise UnreachedError(f"{where} answers {answer.status} {answer.reason}")
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise UnreachedError(f"{where} answers no JSON") from None

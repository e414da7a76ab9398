"""The HTTP routes of the sidecar."""

import asyncio
import json
import math
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qs

from ..vocabulary.exposition_formats import OPENMETRICS_TYPE, TEXT_TYPE, accepts_openmetrics
from .http.server import HttpRequest, HttpResponse
from .http.web_config import WebConfig
from .inline import PACKING, inline_or_thread
from .live.health import worst
from .live.rows import plain
from .live.runbook_pages import RunbookPages
from .sidecar import Sidecar

try:  # the same interface at a fifth of the cost
    from isal import isal_zlib as deflate
except ImportError:  # no wheel for this processor
    import zlib as deflate  # type: ignore[no-redef]

_MARGIN_SECONDS: Final = 0.5  # what we need ourselves of the scraper's patience
_MAX_TIMEOUT: Final = 60.0
_HISTORY: Final = frozenset(("history",))

_FILES: Final[Mapping[str, tuple[str, str]]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/vitals.css": ("vitals.css", "text/css; charset=utf-8"),
    "/vitals.js": ("vitals.js", "text/javascript; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
    "/docs.css": ("docs.css", "text/css; charset=utf-8"),
}
_RUNBOOKS: Final = "/docs/runbooks/"
_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS: Final = (
    ("content-security-policy", _PAGE_POLICY),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),
)


class Routes:
    """Answers requests; `handle` is what the HTTP server calls."""

    def __init__(self, sidecar: Sidecar, web: WebConfig, runbooks: RunbookPages) -> None:
        self._sidecar = sidecar
        self._web = web
        self._files = {path: (_read(name), kind) for path, (name, kind) in _FILES.items()}
        self._runbooks = runbooks
        self._exact: Mapping[str, Callable[[HttpRequest], Awaitable[HttpResponse]]] = {
            **{path: partial(self._file, path) for path in self._files},
            "/metrics": self._metrics,
            "/metrics/requests": self._request_metrics,
            "/health/gpu": partial(self._json, self._health_gpu),
            "/health/engine": partial(self._json, self._health_engine),
            "/api/vitals": partial(self._json, self._vitals),
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Return the answer to a request."""
        response = await self._respond(request)
        extra = self._web.headers()
        return response._replace(headers=(*response.headers, *extra)) if extra else response

    async def _respond(self, request: HttpRequest) -> HttpResponse:
        if not await self._web.allows(request.headers.get("authorization")):
            return HttpResponse(HTTPStatus.UNAUTHORIZED, b"Unauthorized\n", headers=(("www-authenticate", "Basic"),))
        if request.method not in {"GET", "HEAD"}:
            return HttpResponse(HTTPStatus.METHOD_NOT_ALLOWED, b"GET only\n", headers=(("allow", "GET, HEAD"),))
        if (answer := self._exact.get(request.path)) is not None:
            return await answer(request)
        if request.path.startswith(_RUNBOOKS):
            return await self._runbook(request)
        if request.path == _RUNBOOKS.rstrip("/"):  # relative, for a proxy that serves us below a path of its own
            return HttpResponse(HTTPStatus.MOVED_PERMANENTLY, headers=(("location", "runbooks/"),))
        return self._not_found()

    def _not_found(self) -> HttpResponse:
        paths = [path for path in self._exact if "." not in path]  # not the page's own files
        return HttpResponse(HTTPStatus.NOT_FOUND, f"not found; there are {' '.join([*paths, _RUNBOOKS])}\n".encode())

    async def _file(self, path: str, _: HttpRequest) -> HttpResponse:
        body, kind = self._files[path]
        return HttpResponse(HTTPStatus.OK, body, kind, _PAGE_HEADERS)

    async def _runbook(self, request: HttpRequest) -> HttpResponse:
        body = await asyncio.to_thread(self._runbooks.page, request.path.removeprefix(_RUNBOOKS))
        if body is None:
            words = f"no runbook of that name; {_RUNBOOKS} lists them\n"
            return HttpResponse(HTTPStatus.NOT_FOUND, words.encode())
        return await _maybe_gzip(request, HttpResponse(HTTPStatus.OK, body, "text/html; charset=utf-8", _PAGE_HEADERS))

    async def _healthz(self, _: HttpRequest) -> HttpResponse:
        return HttpResponse(HTTPStatus.OK, b"ok\n")

    async def _readyz(self, _: HttpRequest) -> HttpResponse:
        ready = self._sidecar.ready.is_set()
        return (
            HttpResponse(HTTPStatus.OK, b"ready\n") if ready else HttpResponse(503, b"the first look is not done yet\n")
        )

    async def _json(self, ask: Callable[[dict[str, list[str]]], tuple[int, Any]], request: HttpRequest) -> HttpResponse:
        status, answer = ask(parse_qs(request.query))
        body = json.dumps(answer, separators=(",", ":"), allow_nan=False, default=plain).encode()
        return await _maybe_gzip(
            request, HttpResponse(status, body, "application/json", (("cache-control", "no-store"),))
        )

    async def _metrics(self, request: HttpRequest) -> HttpResponse:
        timeout = scrape_timeout(request.headers, self._sidecar.settings.scrape_timeout)
        body = await self._sidecar.metrics(timeout)
        return await _maybe_gzip(request, HttpResponse(HTTPStatus.OK, body, TEXT_TYPE))

    async def _request_metrics(self, request: HttpRequest) -> HttpResponse:
        timeout = scrape_timeout(request.headers, self._sidecar.settings.scrape_timeout)
        openmetrics = accepts_openmetrics(request.headers.get("accept", ""))
        body = await self._sidecar.request_metrics(timeout, openmetrics=openmetrics)
        response = HttpResponse(HTTPStatus.OK, body, OPENMETRICS_TYPE if openmetrics else TEXT_TYPE)
        return await _maybe_gzip(request, response)

    def _vitals(self, query: dict[str, list[str]]) -> tuple[int, Any]:
        answer = self._sidecar.vitals()
        if query.get("history") == ["off"]:  # a hundred times smaller, for programs that ask every few seconds
            rows = {name: [plain(row, _HISTORY) for row in getattr(answer, name)] for name in ("engines", "gpus")}
            return HTTPStatus.OK, {**plain(answer), **rows}
        return HTTPStatus.OK, answer

    def _health_gpu(self, query: dict[str, list[str]]) -> tuple[int, Any]:
        wanted = set(query.get("gpu", ())) | set(query.get("uuid", ()))
        rows = [
            (gpu, verdict)
            for gpu, verdict in self._sidecar.gpu_verdicts()
            if not wanted or str(gpu.index) in wanted or gpu.uuid in wanted
        ]
        reason = self._sidecar.gpu_reason()
        failed = reason not in {"", "off"} or (bool(wanted) and not rows)
        healthy = not failed and all(verdict.ok for _, verdict in rows)
        answer = {
            "status": "critical" if failed else worst(verdict for _, verdict in rows),
            "reason": reason or ("no such GPU" if failed else ""),
            "gpus": [
                {
                    "gpu": str(gpu.index),
                    "uuid": gpu.uuid,
                    "name": gpu.name,
                    "status": verdict.status,
                    "reasons": verdict.reasons,
                }
                for gpu, verdict in rows
            ],
        }
        return (HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE), answer

    def _health_engine(self, query: dict[str, list[str]]) -> tuple[int, Any]:
        wanted = set(query.get("server", ()))
        rows = [
            (engine, verdict)
            for engine, verdict in self._sidecar.engine_verdicts()
            if not wanted or engine.server in wanted
        ]
        healthy = bool(rows) and all(verdict.ok for _, verdict in rows)
        answer = {
            "status": worst(verdict for _, verdict in rows) if rows else "critical",
            "reason": "" if rows else "no such server" if wanted else "no engine is known",
            "engines": [
                {
                    "server": engine.server,
                    "status": verdict.status,
                    "reasons": verdict.reasons,
                    "age_seconds": round(time.monotonic() - engine.latest.at, 1) if engine.latest.at else None,
                }
                for engine, verdict in rows
            ],
        }
        return (HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE), answer


def scrape_timeout(headers: Mapping[str, str], default: float) -> float:
    """Return the deadline for engines in seconds: the scraper's own, less what we need, else the default."""
    try:
        theirs = float(headers.get("x-prometheus-scrape-timeout-seconds", ""))
    except ValueError:
        return default
    if not math.isfinite(theirs) or theirs <= 0:
        return default
    return min(_MAX_TIMEOUT, max(theirs - _MARGIN_SECONDS, theirs / 2))


async def _maybe_gzip(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    if not _accepts_gzip(request.headers.get("accept-encoding", "")):
        return response._replace(headers=(*response.headers, ("vary", "accept-encoding")))
    body = await inline_or_thread(len(response.body), PACKING, partial(_gzip, response.body))
    headers = (*response.headers, ("content-encoding", "gzip"), ("vary", "accept-encoding"))
    return response._replace(body=body, headers=headers)


def _accepts_gzip(accept: str) -> bool:
    for part in accept.lower().split(","):
        coding, _, parameters = part.strip().partition(";")
        if coding.strip() in {"gzip", "*"}:
            return parameters.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def _gzip(body: bytes) -> bytes:
    compressor = deflate.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    compressed: bytes = compressor.compress(body) + compressor.flush()
    return compressed


def _read(name: str) -> bytes:
    return (resources.files(__package__) / "web" / name).read_bytes()

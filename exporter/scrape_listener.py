"""A listener of its own for the Prometheus that `up` starts.

The public one may want passwords, which its file knows as hashes only, or client certificates. This one is on loopback,
has a free port, wants a token that lives as long as the process, and gives nothing but metrics.
"""

import contextlib
import hmac
import secrets
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final, NamedTuple

from ..settings.scalars import Secret
from .http.server import HttpRequest, HttpResponse, HttpServer
from .http.web_config import WebConfig
from .live.runbook_pages import RunbookPages
from .routes import Routes
from .sidecar import Sidecar

_PATHS: Final = ("/metrics", "/metrics/requests")


class ScrapeListener(NamedTuple):
    """Where it listens, as HOST:PORT, and the bearer token that it wants."""

    address: str
    token: Secret


@contextlib.asynccontextmanager
async def scrape_listener(sidecar: Sidecar) -> AsyncIterator[ScrapeListener]:
    """Yield a listener for one scraper; raises OSError where loopback has no port."""
    token = Secret(secrets.token_urlsafe(32))
    wanted = f"Bearer {token}".encode()
    routes = Routes(sidecar, WebConfig(None), RunbookPages())

    async def handle(request: HttpRequest) -> HttpResponse:
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), wanted):
            return HttpResponse(HTTPStatus.UNAUTHORIZED, b"Unauthorized\n", headers=(("www-authenticate", "Bearer"),))
        if request.path not in _PATHS:
            return HttpResponse(HTTPStatus.NOT_FOUND, b"not found; there are /metrics /metrics/requests\n")
        return await routes.handle(request)

    server = HttpServer(handle, "127.0.0.1", 0)
    await server.start()
    try:
        yield ScrapeListener(f"127.0.0.1:{server.port}", token)
    finally:
        await server.close()

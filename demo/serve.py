"""HTTP in front of a simulated fleet: each server on its own port, as vLLM answers, in real time."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from typing import Final

from ..exporter.http.server import HttpRequest, HttpResponse, HttpServer
from ..vocabulary.exposition_formats import OPENMETRICS_TYPE, TEXT_TYPE, accepts_openmetrics
from .exposition import CONTENT_TYPE
from .fleet import TICK, Fleet
from .server import Server

log = logging.getLogger("vllm_vitals")

_VERSION: Final = "0.32.0"  # whose page this is
_NOT_FOUND: Final = HttpResponse(404, b'{"detail":"Not Found"}', "application/json")
_LONGEST_CATCH_UP: Final = 5.0  # seconds: after a suspended laptop, the fleet does not play the night


class DemoServers:
    """Serve a fleet's pages and let its clock run.

    Args:
        fleet: what is played.
        host: to listen on.
        base_port: of the first server, the others follow; 0: any free ones.
        speed: seconds of the fleet's clock per second. Requests, tokens and joules come as many times as often, watts
            with them; latencies stay those of the scene, times on pages everybody's.
        when_over: called once the scene has been played as often as it should.

    Attributes:
        urls: base URL by server name, after start; a crashed server keeps its port.
    """

    def __init__(
        self,
        fleet: Fleet,
        host: str = "127.0.0.1",
        base_port: int = 18100,
        speed: float = 1.0,
        when_over: Callable[[], None] | None = None,
    ) -> None:
        self.urls: dict[str, str] = {}
        self._fleet = fleet
        self._host = host
        self._base_port = base_port
        self._speed = speed
        self._when_over = when_over
        self._listening: dict[str, HttpServer] = {}
        self._ports: dict[str, int] = {}
        self._clock: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen for every server that is up, and start the clock; raises OSError when a port is taken."""
        if self._fleet.now == 0:
            self._fleet.begin_at(time.time(), self._speed)
        try:
            for number, server in enumerate(self._fleet.servers):
                self._ports[server.name] = self._base_port + number if self._base_port else 0
                await self._listen(server)
                self.urls[server.name] = f"http://{self._host}:{self._ports[server.name]}"
        except OSError:
            await self.close()
            raise
        self._clock = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop the clock and release the ports."""
        if self._clock is not None:
            self._clock.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._clock
        for name in tuple(self._listening):
            await self._listening.pop(name).close()

    async def _listen(self, server: Server) -> None:
        async def handler(request: HttpRequest) -> HttpResponse:
            return self._answer(server, request)

        http = HttpServer(handler, self._host, self._ports[server.name])
        await http.start()
        self._listening[server.name] = http
        self._ports[server.name] = http.port

    async def _run(self) -> None:
        before = time.monotonic()
        played = self._fleet.now
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            played += min(now - before, _LONGEST_CATCH_UP) * self._speed
            before = now
            self._fleet.advance(played)
            if self._fleet.over and self._when_over is not None:
                self._when_over()
                self._when_over = None
            try:
                await self._follow_crashes()
            except OSError as error:  # somebody took the port meanwhile; the next tick tries again
                log.debug("simulated server cannot listen: %s", error)

    async def _follow_crashes(self) -> None:
        """Close the socket of a server that crashed, open it when it is back."""
        for server in self._fleet.servers:
            http = self._listening.get(server.name)
            if http is not None and not server.up:
                del self._listening[server.name]
                await http.close(grace=0.0)
            elif http is None and server.up:
                await self._listen(server)

    def _answer(self, server: Server, request: HttpRequest) -> HttpResponse:
        if not server.up:  # between the crash and the closing of the socket
            return HttpResponse(503)
        match request.path:
            case "/metrics" | "/metrics/":
                return HttpResponse(200, self._fleet.page(server), CONTENT_TYPE)
            case "/metrics/requests":
                openmetrics = accepts_openmetrics(request.headers.get("accept", ""))
                return HttpResponse(
                    200, server.requests.text(openmetrics=openmetrics), OPENMETRICS_TYPE if openmetrics else TEXT_TYPE
                )
            case "/health" | "/ping":
                return HttpResponse(200)
            case "/version":
                return _json({"version": _VERSION})
            case "/v1/models":
                return _json(_models(server, server.clock.unix(server.started)))
            case _:
                return _NOT_FOUND


def _json(content: object) -> HttpResponse:
    return HttpResponse(200, json.dumps(content).encode(), "application/json")


def _models(server: Server, created: float) -> dict[str, object]:
    model = {
        "id": server.config.model_name,
        "object": "model",
        "created": int(created),
        "owned_by": "vllm",
        "root": server.config.model_name,
        "parent": None,
        "max_model_len": server.config.max_model_len,
    }
    return {"object": "list", "data": [model]}

"""A small HTTP/1.1 server over h11 in which every phase of a connection has a deadline and a bound.

Own code around h11, because what we need from it is what the usual servers leave out: a deadline for slow headers and
for clients that stop reading, and a TLS context taken anew for each connection (certificates rotate without a restart).
"""

import asyncio
import contextlib
import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

import h11

from ...vocabulary.reasons import RefusalCode

log = logging.getLogger("vllm_vitals")


class HttpRequest(NamedTuple):
    """One request; header names are lower-case, the path is without its query."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


class HttpResponse(NamedTuple):
    """One answer; Content-Length, Date and Connection are added by the server."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class Limits(NamedTuple):
    """Bounds of the server; times in seconds, sizes in bytes."""

    connections: int = 128
    header_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024  # nothing we serve reads a body; small ones are read and dropped
    request_seconds: float = 10.0  # from the first byte of a request to its last
    idle_seconds: float = 120.0  # kept-alive connection without a request; Prometheus may scrape once a minute
    handler_seconds: float = 120.0
    write_seconds: float = 30.0  # a client that does not read
    handshake_seconds: float = 5.0


Handler = Callable[[HttpRequest], Awaitable[HttpResponse]]
_READ_BYTES = 64 * 1024


class _RefusedError(Exception):
    """The connection ends here; `status` 0 means without an answer."""

    def __init__(self, reason: RefusalCode, status: int = 0) -> None:
        super().__init__(reason)
        self.reason: RefusalCode = reason
        self.status = status


class HttpServer:
    """Serve `handler` on one address.

    Attributes:
        port: the bound port, after start.
        rejected: connections and requests refused, by code of vocabulary/reasons.py.
    """

    def __init__(
        self,
        handler: Handler,
        host: str,
        port: int,
        *,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        limits: Limits = Limits(),  # noqa: B008  immutable
    ) -> None:
        self._handler = handler
        self._host = host
        self.port = port
        self._tls = tls
        self._limits = limits
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self.rejected: Counter[RefusalCode] = Counter()

    async def start(self) -> None:
        """Bind and listen; raises OSError when the address is taken."""
        self._server = await asyncio.start_server(self._accept, self._host, self.port, limit=_READ_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self, grace: float = 10.0) -> None:
        """Stop accepting, let requests in flight finish within `grace` seconds, end the rest."""
        if self._server is not None:
            self._server.close()
        for task in self._connections - self._busy:
            task.cancel()
        if self._busy:
            await asyncio.wait(self._busy, timeout=grace)
        for task in tuple(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=1.0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= self._limits.connections:
            self.rejected["connections"] += 1
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await self._connection(task, reader, writer)
        except _RefusedError as refusal:
            self.rejected[refusal.reason] += 1
        except (ConnectionError, ssl.SSLError, TimeoutError, asyncio.CancelledError):
            pass  # the peer went away, or we are closing: nobody is left to answer
        except Exception:
            log.exception("connection failed")
        finally:
            self._connections.discard(task)
            self._busy.discard(task)
            # abort, not close: close waits for a peer that may never read, and the answer was drained already
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _connection(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        context = self._tls()
        if context is not None:
            try:
                await writer.start_tls(context, ssl_handshake_timeout=self._limits.handshake_seconds)
            except (OSError, ssl.SSLError) as error:
                raise _RefusedError("tls_handshake") from error
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.header_bytes)
        while True:
            try:
                request = await self._read_request(http, reader)
            except _RefusedError as refusal:
                if refusal.status:
                    await self._send(
                        http, writer, HttpResponse(refusal.status, f"{refusal.reason}\n".encode()), head=False
                    )
                raise
            if request is None:
                return
            self._busy.add(task)
            response = await self._answer(request)
            await self._send(http, writer, response, head=request.method == "HEAD")
            self._busy.discard(task)
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE or not self._serving():
                return
            http.start_next_cycle()

    def _serving(self) -> bool:
        return self._server is not None and self._server.is_serving()

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        try:
            async with asyncio.timeout(self._limits.handler_seconds):
                return await self._handler(request)
        except TimeoutError:
            return HttpResponse(HTTPStatus.SERVICE_UNAVAILABLE, b"the answer took too long\n")
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return HttpResponse(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error, see the exporter's log\n")

    async def _read_request(self, http: h11.Connection, reader: asyncio.StreamReader) -> HttpRequest | None:
        """Return the next request, or None when the peer ended the connection or stayed idle."""
        head: h11.Request | None = None
        body_bytes = 0
        started = False
        deadline = self._limits.idle_seconds
        try:
            async with asyncio.timeout(deadline) as timer:
                while True:
                    event = http.next_event()
                    if event is h11.NEED_DATA:
                        data = await reader.read(_READ_BYTES)
                        if data and not started:
                            started = True
                            timer.reschedule(asyncio.get_running_loop().time() + self._limits.request_seconds)
                        http.receive_data(data)
                    elif isinstance(event, h11.Request):
                        head = event
                    elif isinstance(event, h11.Data):
                        body_bytes += len(event.data)
                        if body_bytes > self._limits.body_bytes:
                            raise _RefusedError("body_too_large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                    elif isinstance(event, h11.EndOfMessage):
                        break
                    else:  # ConnectionClosed, or PAUSED after a protocol switch that we do not offer
                        return None
        except TimeoutError:
            if started:
                raise _RefusedError("slow_request", HTTPStatus.REQUEST_TIMEOUT) from None
            return None
        except h11.RemoteProtocolError as error:
            raise _RefusedError("bad_request", error.error_status_hint or HTTPStatus.BAD_REQUEST) from error
        assert head is not None
        path, _, query = head.target.decode("ascii", "replace").partition("?")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        return HttpRequest(head.method.decode("ascii"), path, query, headers)

    async def _send(
        self, http: h11.Connection, writer: asyncio.StreamWriter, response: HttpResponse, *, head: bool
    ) -> None:
        if http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        headers = {  # a later one replaces an earlier one of its name
            "content-type": response.content_type,
            "content-length": str(len(response.body)),
            "x-content-type-options": "nosniff",
            **{name.lower(): value for name, value in response.headers},
        }
        parts = [http.send(h11.Response(status_code=response.status, headers=list(headers.items())))]
        if not head:
            parts.append(http.send(h11.Data(data=response.body)))
        with contextlib.suppress(h11.LocalProtocolError):  # HEAD: h11 knows that no body follows
            parts.append(http.send(h11.EndOfMessage()))
        writer.write(b"".join(filter(None, parts)))  # one packet where it fits
        try:
            async with asyncio.timeout(self._limits.write_seconds):
                writer.transport.set_write_buffer_limits(high=0)
                await writer.drain()
        except TimeoutError:
            writer.transport.abort()
            raise _RefusedError("slow_reader") from None

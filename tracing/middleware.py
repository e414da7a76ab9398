"""ASGI middleware of vLLM's API server: the HTTP side of a request.

`--middleware vllm_vitals.tracing.middleware.Vitals`

It passes every message on as it is, but for the headers X-Request-Id (in and out) and traceparent (in, where vLLM's own
tracing is on). It buffers nothing: pieces of the request's body are kept by reference until the request is reported.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from . import runtime
from .exchange import PATHS, Exchange, path_of
from .log_context import SERVED

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Any, Receive, Send], Awaitable[None]]

REQUEST_METRICS: Final = "/metrics/requests"
_HUNG_UP: Final = "ClientDisconnect"  # Starlette's word for an OSError of the server


class Vitals:
    """The middleware; without a running plugin it is transparent."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        live = runtime.current()
        if live is None and scope["type"] == "http" and runtime.is_pending():  # vLLM before 0.11.1
            runtime.start_pending(_output_processor(scope))
            live = runtime.current()
        if live is None or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = path_of(scope)
        if scope["method"] == "OPTIONS" or not path.startswith(PATHS):
            if path == REQUEST_METRICS:
                await _serve_metrics(live, scope, send)
            else:
                await self._app(scope, receive, send)
            return
        try:
            exchange, scope = live.begin(scope)
        except Exception as error:
            live.hook_failed("middleware", error)
            await self._app(scope, receive, send)
            return
        token = SERVED.set(exchange)
        try:
            await self._app(scope, *_watched(exchange, receive, send, live.body_bytes))
        except BaseException as error:
            exchange.error_type = type(error).__name__
            if not exchange.complete and (isinstance(error, OSError) or exchange.error_type == _HUNG_UP):
                exchange.disconnected = True  # servers refuse to send what nobody takes
            raise
        finally:
            SERVED.reset(token)
            exchange.ended = time.time()
            live.submit(exchange)


def _output_processor(scope: Any) -> Any:
    engine = getattr(getattr(scope.get("app"), "state", None), "engine_client", None)
    return getattr(engine, "output_processor", None)


def _watched(exchange: Exchange, receive: Receive, send: Send, limit: int) -> tuple[Receive, Send]:
    """Return receive and send that note what passes."""

    async def received() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            piece = message.get("body")
            if piece and exchange.body_bytes >= 0:
                exchange.body_bytes += len(piece)
                if exchange.body_bytes > limit:
                    exchange.body = None
                    exchange.body_bytes = -1
                elif exchange.body is None:
                    exchange.body = [piece]
                else:
                    exchange.body.append(piece)
        elif message["type"] == "http.disconnect" and not exchange.complete:
            exchange.disconnected = True
        return message

    # No coroutine of its own: each event of a stream comes through here.
    def sent(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.body":
            if not exchange.first_byte and message.get("body"):
                exchange.first_byte = time.time()
            if not message.get("more_body"):
                # Set before it is sent: the server answers the next receive() with a disconnect as soon as it is.
                exchange.complete = not exchange.disconnected
        elif message["type"] == "http.response.start":
            _started(exchange, message)
        return send(message)

    return received, sent


def _started(exchange: Exchange, message: Message) -> None:
    exchange.status = message.get("status", 0)
    headers = message.get("headers") or ()
    told = False
    for name, value in headers:
        if len(name) == 12:  # both names that matter have twelve letters
            lower = name.lower()
            if lower == b"x-request-id":
                told = True
            elif lower == b"content-type":
                exchange.streamed = value.startswith(b"text/event-stream")
    if not told:
        message["headers"] = [*headers, (b"x-request-id", exchange.raw_id)]


async def _serve_metrics(live: "runtime.Runtime", scope: Any, send: Send) -> None:
    if scope["method"] not in {"GET", "HEAD"}:
        status, kind, body = 405, "text/plain; charset=utf-8", b"GET only\n"
    else:
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        try:
            kind, body = await asyncio.to_thread(live.metrics_page, accept.decode("latin-1"))
            status = 200
        except Exception as error:
            live.hook_failed("metrics", error)
            status, kind, body = 500, "text/plain; charset=utf-8", b"the page could not be made, see the log\n"
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

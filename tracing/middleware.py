"""ASGI middleware of vLLM's API server: the HTTP side of a request.

`--middleware vllm_vitals.tracing.middleware.Vitals`

It passes every message on as it is, but for the headers X-Request-Id (in and out) and traceparent (in, where vLLM's own
tracing is on). It buffers nothing: pieces of the request's body are kept by reference until the request is reported.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import time as _now
from typing import Any, Final, TypeAlias

from .logs.context import SERVED
from .report import runtime
from .request.in_flight import UNWANTED, USUAL_PATHS, Exchange, Receive, Send, is_traced, path_of

Application: TypeAlias = Callable[[Any, Receive, Send], Awaitable[None]]

REQUEST_METRICS: Final = "/metrics/requests"
_HUNG_UP: Final = "ClientDisconnect"  # Starlette's word for an OSError of the server


class Vitals:
    """The middleware; without a running plugin it is transparent.

    What the class makes of an application is a function, since calling that costs a third of calling an instance.
    """

    def __new__(cls, app: Application) -> Application:  # type: ignore[misc]
        """Return the application behind the middleware."""

        # No coroutine of its own: where nothing is wanted of a request, that would be a good part of what it costs.
        def vitals(scope: Any, receive: Receive, send: Send) -> Awaitable[None]:
            live = runtime.running
            if live is None and scope["type"] == "http" and runtime.is_pending():  # vLLM before 0.11.1
                runtime.start_pending(_output_processor(scope))
                live = runtime.running
            if live is None or scope["type"] != "http":
                return app(scope, receive, send)
            if scope["path"] not in USUAL_PATHS and not is_traced(scope):
                if path_of(scope) == REQUEST_METRICS:
                    return _serve_metrics(live, scope, send)
                return app(scope, receive, send)
            try:
                if live.only_traces and not live.may_be_sampled(scope):
                    SERVED.set(UNWANTED)
                elif scope["method"] != "OPTIONS":
                    exchange, scope = live.begin(scope, receive, send)
                    return _served(app, live, exchange, scope)
            except Exception as error:
                live.hook_failed("middleware", error)
            return app(scope, receive, send)

        return vitals


async def _served(app: Application, live: "runtime.Runtime", exchange: Exchange, scope: Any) -> None:
    # Never taken back: servers give each request a context of its own. Where one does not, the next request sets it.
    SERVED.set(exchange)
    try:
        await app(scope, exchange.received, exchange.sent)
    except BaseException as error:
        exchange.error_type = type(error).__name__
        if not exchange.complete and (isinstance(error, OSError) or exchange.error_type == _HUNG_UP):
            exchange.disconnected = True  # servers refuse to send what nobody takes
        raise
    finally:
        exchange.ended = _now()
        queue = live.queue  # as Runtime.submit, without the call
        if len(queue) == live.queue_size:
            live.drop()
        queue.append(exchange)


def _output_processor(scope: Any) -> Any:
    engine = getattr(getattr(scope.get("app"), "state", None), "engine_client", None)
    return getattr(engine, "output_processor", None)


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

"""Runs the sidecar behind its HTTP server until it is told to stop."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable

from ..config import Settings
from ..scalars import ConfigError
from .http_server import HttpServer
from .promised import Promises
from .routes import Routes
from .sidecar import Sidecar
from .web_config import WebConfig

log = logging.getLogger("vllm_vitals")


@contextlib.asynccontextmanager
async def running(settings: Settings, sidecar: Sidecar) -> AsyncIterator[str]:
    """Yield the URL of a started sidecar; stops it afterwards, letting scrapes in flight finish.

    Raises:
        ConfigError: the address cannot be bound or the web config file is wrong.
    """
    web = WebConfig(settings.web_config_file)
    server = HttpServer(Routes(sidecar, web).handle, settings.listen.host, settings.listen.port, tls=web.tls)
    sidecar.rejected = lambda: server.rejected
    sidecar.web_reload_failures = lambda: web.reload_failures
    try:
        await server.start()
    except OSError as error:
        raise ConfigError(f"listen: expected a free address, found {settings.listen}: {error.strerror}") from error
    try:
        await sidecar.start()
        gc.collect()
        gc.freeze()  # what is here now stays for good: the collector need not walk it again at every turn
        host = settings.listen.host
        shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else f"[{host}]" if ":" in host else host
        yield f"{'https' if web.tls() else 'http'}://{shown}:{server.port}"
    finally:
        await server.close()
        await sidecar.stop()


async def serve(settings: Settings, announce: Callable[[str], None], promises: Promises | None = None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. The live page judges by `promises`, None for nothing."""
    stop = stop_signal()
    async with running(settings, Sidecar(settings, promises=promises)) as url:
        announce(url)
        await stop.wait()
        log.info("stopping")
    return 0


def stop_signal() -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, event.set)
    return event

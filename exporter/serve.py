"""Runs the sidecar behind its HTTP server until it is told to stop."""

import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable, Mapping

from ..settings.config import Settings
from ..settings.scalars import ConfigError
from .http.server import HttpServer
from .http.web_config import WebConfig
from .live.runbook_pages import RunbookPages
from .promises.promised import Promises
from .routes import Routes
from .sidecar import Sidecar
from .stopping import forever, until_stopped

log = logging.getLogger("vllm_vitals")


@contextlib.asynccontextmanager
async def running(
    settings: Settings, sidecar: Sidecar, runbooks: Mapping[str, str] | None = None
) -> AsyncIterator[str]:
    """Yield the URL of a started sidecar; stops it afterwards, letting scrapes in flight finish.

    Args:
        settings: where to listen, and the rest.
        sidecar: what is served.
        runbooks: pages by file name, where the settings name no folder; None takes those of the default promises.

    Raises:
        ConfigError: the address cannot be bound or the web config file is wrong.
    """
    web = WebConfig(settings.web_config_file)
    routes = Routes(sidecar, web, RunbookPages(settings.runbooks, runbooks))
    server = HttpServer(routes.handle, settings.listen.host, settings.listen.port, tls=web.tls)
    sidecar.rejected = lambda: server.rejected
    sidecar.web_reload_failures = lambda: web.reload_failures
    try:
        await server.start()
    except OSError as error:
        raise ConfigError(
            f"listen: expected a free address, found {settings.listen}: {error.strerror}. "
            "Name another one: --listen HOST:PORT"
        ) from error
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
    """Serve until SIGINT, SIGTERM or SIGHUP; returns the exit code.

    Args:
        settings: the user's settings.
        announce: gets the URL.
        promises: what the live page judges by, None for nothing.
    """

    async def work() -> None:
        async with running(settings, Sidecar(settings, promises=promises)) as url:
            announce(url)
            await forever()

    await until_stopped(work(), farewell=lambda: log.info("stopping"))
    return 0

"""Host names resolved in a thread of their own, apart because the system's resolver may hang for half a minute.

asyncio would do it in the few threads that all other work of ours shares, and wait for them at the end.
"""

import asyncio
import contextlib
import socket
import threading


class NameLookup:
    """The addresses of one host; at most one lookup is under way, and callers share it."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._pending: asyncio.Future[list[str] | OSError] | None = None

    async def addresses(self) -> list[str]:
        """Return numeric addresses in the resolver's order; raises OSError. The caller brings the deadline."""
        try:
            return self._resolve(socket.AI_NUMERICHOST)
        except OSError:
            pass  # a name
        if self._pending is None:
            loop = asyncio.get_running_loop()
            self._pending = loop.create_future()
            threading.Thread(target=self._look_up, args=(loop,), name="name-lookup", daemon=True).start()
        found = await asyncio.shield(self._pending)
        if isinstance(found, OSError):
            raise found
        return found

    def _look_up(self, loop: asyncio.AbstractEventLoop) -> None:
        found: list[str] | OSError
        try:
            found = self._resolve(0)
        except OSError as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
            loop.call_soon_threadsafe(self._deliver, found)

    def _deliver(self, found: list[str] | OSError) -> None:
        pending, self._pending = self._pending, None
        if pending is not None and not pending.done():
            pending.set_result(found)

    def _resolve(self, flags: int) -> list[str]:
        try:
            infos = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=flags)
        except UnicodeError as error:  # an empty or overlong label; not an OSError
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from None
        return list(dict.fromkeys(str(info[4][0]) for info in infos))

"""Host names for the event loop, whose own way would use the few threads that all other work of ours shares."""

import asyncio
import contextlib
from concurrent.futures import Future
from functools import partial

from ...runtime.name_lookup import look_up


class NameLookup:
    """The addresses of one host; at most one lookup is under way, and callers share it."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._pending: asyncio.Future[list[str] | OSError] | None = None

    async def addresses(self) -> list[str]:
        """Return numeric addresses in the resolver's order; raises OSError. The caller brings the deadline."""
        if self._pending is None:
            lookup = look_up(self._host, self._port)
            if lookup.done():  # numeric already
                return lookup.result()
            loop = asyncio.get_running_loop()
            self._pending = loop.create_future()
            lookup.add_done_callback(partial(self._tell, loop))
        found = await asyncio.shield(self._pending)
        if isinstance(found, OSError):
            raise found
        return found

    def _tell(self, loop: asyncio.AbstractEventLoop, lookup: Future[list[str]]) -> None:
        problem = lookup.exception()
        found = lookup.result() if problem is None else problem if isinstance(problem, OSError) else OSError(problem)
        with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
            loop.call_soon_threadsafe(self._deliver, found)

    def _deliver(self, found: list[str] | OSError) -> None:
        pending, self._pending = self._pending, None
        if pending is not None and not pending.done():
            pending.set_result(found)

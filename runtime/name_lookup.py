"""Host names resolved in threads of their own, apart because the system's resolver may hang for half a minute."""

import contextlib
import socket
import threading
from concurrent.futures import Future
from typing import Final

_under_way: dict[tuple[str, int], Future[list[str]]] = {}  # removed by the thread that looks
_lock: Final = threading.Lock()


def look_up(host: str, port: int) -> Future[list[str]]:
    """Return the numeric addresses of a host in the resolver's order, or an OSError; the caller brings the deadline.

    At most one lookup of a name is under way, whoever asks for it, so that a dead resolver collects no threads.
    """
    with contextlib.suppress(OSError):
        return _found(_resolve(host, port, socket.AI_NUMERICHOST))
    key = (host, port)
    with _lock:
        lookup = _under_way.get(key)
        if lookup is None:
            lookup = _under_way[key] = Future()
            threading.Thread(target=_look, args=(key, lookup), name="name-lookup", daemon=True).start()
    return lookup


def _look(key: tuple[str, int], lookup: Future[list[str]]) -> None:
    addresses: list[str] = []
    problem: OSError | None = None
    try:
        addresses = _resolve(*key, 0)
    except OSError as error:
        problem = error
    except Exception as error:  # whoever waits must hear of it
        problem = OSError(repr(error))
    with _lock:
        del _under_way[key]
    if problem is None:
        lookup.set_result(addresses)
    else:
        lookup.set_exception(problem)


def _found(addresses: list[str]) -> Future[list[str]]:
    lookup: Future[list[str]] = Future()
    lookup.set_result(addresses)
    return lookup


def _resolve(host: str, port: int, flags: int) -> list[str]:
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # an empty or overlong label; not an OSError
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from None
    return list(dict.fromkeys(str(info[4][0]) for info in infos))

"""One small HTTP exchange over a blocking socket with a deadline for the whole of it; for threads, not for the scrape.

Own code around h11 because proxies must never be asked (metadata services), redirects never be followed, and because
urllib's timeout starts anew with each byte and its import costs 8 MiB.
"""

import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; header names are lower-case."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def exchange(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    deadline: float = 1.0,
    limit: int = 64 * 1024,
    enough: Callable[[bytes], bool] = lambda _: False,
) -> Answer:
    """Return the answer.

    Args:
        url: http or https; its host is best numeric, since the resolver has timeouts of its own.
        method: without a body.
        headers: besides Host.
        deadline: seconds from connecting to the last byte.
        limit: bytes of the body that are read; the rest is left.
        enough: told the body so far; True ends the reading.

    Raises:
        OSError: no connection, a broken answer (ConnectionError) or the deadline (TimeoutError).
        ValueError: not a URL.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r}: expected http://host[:port]/path")
    ends = time.monotonic() + deadline
    with socket.create_connection((parts.hostname, port), timeout=deadline) as plain:
        channel: socket.socket = plain
        if parts.scheme == "https":
            channel = ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            sent = [("Host", parts.netloc.rpartition("@")[2]), ("Connection", "close"), *(headers or {}).items()]
            return _speak(channel, h11.Request(method=method, target=target, headers=sent), ends, limit, enough)
        except h11.ProtocolError as error:
            raise ConnectionError(f"{url}: {error}") from error
        finally:
            channel.close()


def _speak(
    channel: socket.socket, request: h11.Request, ends: float, limit: int, enough: Callable[[bytes], bool]
) -> Answer:
    machine = h11.Connection(h11.CLIENT)
    channel.settimeout(_left(ends))
    channel.sendall((machine.send(request) or b"") + (machine.send(h11.EndOfMessage()) or b""))
    head: h11.Response | None = None
    body = bytearray()
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            channel.settimeout(_left(ends))
            machine.receive_data(channel.recv(16 * 1024))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif not isinstance(event, h11.InformationalResponse):
            break  # the end of the message
        if len(body) >= limit or (body and enough(bytes(body))):
            break
    if head is None:
        raise ConnectionError("closed before an answer")
    named = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    return Answer(head.status_code, bytes(body[:limit]), named)


def _left(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline")
    return left

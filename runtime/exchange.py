"""One small HTTP exchange over a blocking socket with a deadline for the whole of it; for threads, not for the scrape.

Own code around h11 because the timeout of urllib and http.client starts anew with each byte, so that a service which
drips holds its caller for ever; because redirects must never be followed, nor a proxy asked unless the caller says so
(metadata services, loopback, credentials); and because urllib.request alone costs 8 MiB.
"""

import base64
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

import h11

from .name_lookup import look_up

_READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; header names are lower-case, `reason` is the server's word for the status."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


def exchange(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    deadline: float = 1.0,
    limit: int = 64 * 1024,
    enough: Callable[[bytes], bool] | None = None,
    ca_file: str | None = None,
    use_proxy: bool = False,
) -> Answer:
    """Return the answer.

    Args:
        url: http or https.
        method: what is asked for.
        headers: besides Host, Connection and the body's length.
        body: what is sent.
        deadline: seconds from looking up the name to the last byte.
        limit: bytes of the body that are read; the rest is left.
        enough: told the body so far; True ends the reading.
        ca_file: PEM file of the authorities that https trusts; None for the system's.
        use_proxy: whether http_proxy, https_proxy and no_proxy of the environment hold; never for loopback.

    Raises:
        OSError: no connection, an unreadable ca_file, a broken answer (ConnectionError) or the deadline (TimeoutError).
        ValueError: not a URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r}: expected http://host[:port]/path")
    ends = time.monotonic() + deadline
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sent = [("Host", parts.netloc.rpartition("@")[2]), ("Connection", "close"), *(headers or {}).items()]
    if body:
        sent.append(("Content-Length", str(len(body))))
    proxy = _proxy_for(parts) if use_proxy else None
    if proxy is not None and parts.scheme == "http":
        target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
        sent += _proxy_credentials(proxy)
    try:
        request = h11.Request(method=method, target=target, headers=sent)
        with contextlib.ExitStack() as opened:
            channel = opened.enter_context(_connect(proxy or parts, ends))
            if parts.scheme == "https":
                if proxy is not None:
                    _tunnel(channel, proxy, parts, ends)
                channel.settimeout(_left(ends))
                context = ssl.create_default_context(cafile=ca_file)
                channel = opened.enter_context(context.wrap_socket(channel, server_hostname=parts.hostname))
            return _speak(channel, request, body, ends, limit, enough)
    except TimeoutError:
        raise TimeoutError(f"timed out: no whole answer within {deadline:.3g} s") from None
    except h11.ProtocolError as error:
        raise ConnectionError(f"{url}: {error}") from error


def _connect(parts: SplitResult, ends: float) -> socket.socket:
    """Return a connection to the first address that takes one; each has its share of the time that is left."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = look_up(parts.hostname or "", port).result(_left(ends))
    problem: OSError = socket.gaierror(socket.EAI_NONAME, "the name has no address")
    for number, address in enumerate(addresses):
        try:
            return socket.create_connection((address, port), timeout=_left(ends) / (len(addresses) - number))
        except OSError as error:
            problem = error
    raise problem


def _speak(
    channel: socket.socket,
    request: h11.Request,
    sent: bytes,
    ends: float,
    limit: int,
    enough: Callable[[bytes], bool] | None = None,
) -> Answer:
    machine = h11.Connection(h11.CLIENT)
    head: h11.Response | None = None
    body = bytearray()
    channel.settimeout(_left(ends))
    outgoing = [machine.send(request), machine.send(h11.Data(sent)) if sent else b"", machine.send(h11.EndOfMessage())]
    channel.sendall(b"".join(part or b"" for part in outgoing))
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            channel.settimeout(_left(ends))
            machine.receive_data(channel.recv(_READ_BYTES))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif not isinstance(event, h11.InformationalResponse):
            break  # the end of the message, or a proxy's 200 to CONNECT
        if len(body) >= limit or (body and enough is not None and enough(bytes(body))):
            break
    if head is None:
        raise ConnectionError("closed before an answer")
    named = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    return Answer(head.status_code, bytes(body[:limit]), named, head.reason.decode("latin-1"))


def _left(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


# --- Proxies ---------------------------------------------------------------------------------------------------------


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    """Return the proxy of the environment for a URL, None for none."""
    host = parts.hostname or ""
    if host in {"localhost", "::1"} or host.startswith("127."):
        return None
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415  costs 8 MiB, and most never need it

    named = getproxies().get(parts.scheme, "")
    if not named or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise OSError(f"{parts.scheme}_proxy: expected http://host:port, found {named!r}")
    return proxy


def _proxy_credentials(proxy: SplitResult) -> list[tuple[str, str]]:
    if proxy.username is None:
        return []
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return [("Proxy-Authorization", f"Basic {base64.b64encode(pair).decode()}")]


def _tunnel(channel: socket.socket, proxy: SplitResult, parts: SplitResult, ends: float) -> None:
    """Have the proxy connect us to the server of an https URL; raises OSError when it does not."""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    authority = f"{host}:{parts.port or 443}"
    sent = [("Host", authority), *_proxy_credentials(proxy)]
    answer = _speak(channel, h11.Request(method="CONNECT", target=authority, headers=sent), b"", ends, 1)
    if not 200 <= answer.status < 300:
        raise OSError(f"the proxy {proxy.hostname}: CONNECT {authority} answers {answer.status} {answer.reason}")

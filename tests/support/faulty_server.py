"""A raw-socket HTTP server whose behaviour is scripted per path: what a sick engine does on the wire, byte for byte."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Request(NamedTuple):
    """A request as it came; `connection` counts from 1 and tells which requests shared one."""

    path: str
    headers: dict[str, str]
    connection: int


class Peer:
    """The other end of one connection, as a behaviour sees it."""

    def __init__(self, channel: socket.socket, path: str, stopping: threading.Event):
        self.channel = channel
        self.path = path
        self._stopping = stopping

    def send(self, data: bytes) -> None:
        self.channel.sendall(data)

    def hold(self, seconds: float = 60.0) -> None:
        """Say nothing more until the server stops."""
        self._stopping.wait(seconds)

    def pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def reset(self) -> None:
        """Close with RST instead of FIN, as a killed process with unread data does."""
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


# What a path does; returns whether the connection lives on.
Behaviour = Callable[[Peer], bool]


class FaultyServer:
    """Serves `behaviours` by path; `/name/metrics` belongs to the behaviour `name`, else `*` answers.

    Attributes:
        requests: what came, oldest first.
        health: answers /name/health; None leaves it to the behaviour of the name.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, **behaviours: Behaviour):
        self.behaviours = behaviours
        self.requests: list[Request] = []
        self.health: Behaviour | None = status(404)
        self.connections = 0
        self._tls = tls
        self._stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and drop every connection, as a killed process does."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        self.drop()

    def drop(self) -> None:
        """Close the connections that are open now."""
        with self._lock:
            channels, self._open = self._open, set()
        for channel in channels:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
            channel.close()

    def seen(self, name: str) -> list[Request]:
        return [request for request in self.requests if request.path.startswith(f"/{name}/")]

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(channel,), daemon=True).start()

    def _serve(self, channel: socket.socket) -> None:
        channel.settimeout(60)
        if self._tls is not None:
            try:
                channel = self._tls.wrap_socket(channel, server_side=True)
            except OSError:
                return  # wrap_socket closed it
        with self._lock:
            self._open.add(channel)
            self.connections += 1
            number = self.connections
        with contextlib.suppress(OSError, ValueError):
            for path, headers in _requests(channel):
                self.requests.append(Request(path, headers, number))
                name = path.split("/")[1]
                behaviour = self.behaviours.get(name) or self.behaviours.get("*") or status(404)
                if path.endswith("/health") and self.health is not None:
                    behaviour = self.health
                if not behaviour(Peer(channel, path, self._stopping)):
                    break
        with self._lock:
            self._open.discard(channel)
        channel.close()


def _requests(channel: socket.socket) -> Iterator[tuple[str, dict[str, str]]]:
    buffer = b""
    while True:
        while b"\r\n\r\n" not in buffer:
            data = channel.recv(65536)
            if not data:
                return
            buffer += data
            if not buffer[:1].isalpha():  # a TLS handshake, say: what uvicorn answers
                channel.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
                return
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        yield first.split(" ")[1], {name.lower(): value for name, value in pairs}


def head(status: int, *headers: str) -> bytes:
    """Return status line and headers."""
    return "\r\n".join((f"HTTP/1.1 {status} Scripted", *headers, "", "")).encode()


def page(
    body: bytes, kind: str = METRICS_TYPE, status: int = 200, headers: tuple[str, ...] = (), *, keep: bool = True
) -> Behaviour:
    """Answer as a healthy server does."""

    def answer(peer: Peer) -> bool:
        length = f"content-length: {len(body)}"
        peer.send(head(status, f"content-type: {kind}", length, *headers) + body)
        return keep

    return answer


def status(code: int, *headers: str) -> Behaviour:
    return page(b"no\n", "text/plain", code, headers)


def raw(data: bytes) -> Behaviour:
    """Send these bytes, then close."""

    def answer(peer: Peer) -> bool:
        peer.send(data)
        return False

    return answer


def hang(peer: Peer) -> bool:
    """Accept, read the request, never answer."""
    peer.hold()
    return False


def reset(peer: Peer) -> bool:
    """Die before the answer."""
    peer.reset()
    return False


def drip(body: bytes, seconds: float = 0.05) -> Behaviour:
    """Send one byte after the other: each of them comes in time, the page never does."""

    def answer(peer: Peer) -> bool:
        peer.send(head(200, f"content-type: {METRICS_TYPE}", f"content-length: {len(body)}"))
        for byte in body:
            peer.send(bytes((byte,)))
            peer.pause(seconds)
        return True

    return answer


def endless(chunk: bytes, times: int) -> Behaviour:
    """Send a chunked page of times x chunk, whose size no header tells beforehand."""

    def answer(peer: Peer) -> bool:
        peer.send(head(200, f"content-type: {METRICS_TYPE}", "transfer-encoding: chunked"))
        for _ in range(times):
            peer.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        peer.send(b"0\r\n\r\n")
        return True

    return answer


def after(gate: threading.Event, then: Behaviour, seconds: float = 30.0) -> Behaviour:
    """Answer once the gate is open."""

    def answer(peer: Peer) -> bool:
        gate.wait(seconds)
        return then(peer)

    return answer


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Behave so the first time, so the second, and as the last one from then on."""
    rest = list(behaviours)

    def answer(peer: Peer) -> bool:
        return (rest.pop(0) if len(rest) > 1 else rest[0])(peer)

    return answer

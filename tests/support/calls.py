"""Calls of an OpenAI-style server as clients make them: plain, streamed, given up."""

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Reply(NamedTuple):
    """What came back; status 0 when the caller hung up first."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def completion(**fields: Any) -> dict[str, Any]:
    """Return the body of a completion with a fixed number of tokens."""
    return {
        "model": "tiny",
        "prompt": "The engine says",
        "max_tokens": 8,
        "ignore_eos": True,
        "temperature": 0,
    } | fields


def chat(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """Return the body of a chat completion with a fixed number of tokens."""
    messages = [{"role": "user", "content": text}]
    return {"model": "tiny", "messages": messages, "max_tokens": 8, "ignore_eos": True, "temperature": 0} | fields


def post(url: str, path: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None) -> Reply:
    """Send a request and return the answer; the body is an object, or bytes as they are."""
    with contextlib.closing(begun(url, path, body, headers)) as connection:
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def begun(
    url: str, path: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None
) -> http.client.HTTPConnection:
    """Send a request and return the connection, from which nothing was read yet."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=120)
    connection.request("POST", path, data, {"content-type": "application/json", **(headers or {})})
    return connection


def hang_up(connection: http.client.HTTPConnection) -> None:
    """Leave without waiting for the answer."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()

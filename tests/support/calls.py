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


def post(
    url: str,
    path: str,
    body: Mapping[str, Any] | bytes,
    headers: Mapping[str, str] | None = None,
    *,
    give_up_after: float | None = None,
    read_events: int | None = None,
) -> Reply:
    """Send a request and return the answer.

    Args:
        url: of the server.
        path: of the API.
        body: an object, or bytes as they are.
        headers: more of them.
        give_up_after: seconds after which the caller hangs up.
        read_events: hang up after so many server-sent events.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=give_up_after or 120)
    with contextlib.closing(connection):
        connection.request("POST", path, data, {"content-type": "application/json", **(headers or {})})
        try:
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            if read_events is None:
                return Reply(answer.status, found, answer.read())
            lines = [line for line in (answer.readline() for _ in range(2 * read_events)) if line.strip()]
        except TimeoutError:
            _hang_up(connection)
            return Reply(0, {}, b"")
        _hang_up(connection)
        return Reply(0, found, b"".join(lines))


def _hang_up(connection: http.client.HTTPConnection) -> None:
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)

"""Fetches one server's pages over kept-alive connections, within a deadline, a size and a short list of failures."""

import asyncio
import base64
import os
import ssl
import zlib
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

import h11

from ...settings.config import EngineSettings, Tls
from ...settings.scalars import ConfigError
from ...vocabulary.exposition_formats import OPENMETRICS_TYPE
from ...vocabulary.reasons import FetchCode
from .name_lookup import NameLookup

_READ_BYTES: Final = 256 * 1024
_HEADER_BYTES: Final = 32 * 1024
_KEPT: Final = 2  # idle connections: scrapes and samples may overlap
_TEXT: Final = ("text/plain", "")
_ACCEPT_TEXT: Final = "text/plain;version=0.0.4"
_ACCEPT_OPENMETRICS: Final = "application/openmetrics-text;version=1.0.0"
_INFLATE_BYTES: Final = 4 * 1024 * 1024  # at a time; zlib copies its rest of the input each time
_SAFE_IN_TARGET: Final = "/?&=%:;,+@~!$'()*[]"

# What a kept connection may show when the server or a proxy let go of it meanwhile: no word about the server.
_STALE: Final = frozenset(("closed", "network", "protocol"))
# OpenSSL's reasons where a server answers a TLS greeting in plain HTTP.
SPEAKS_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")


class FetchError(Exception):
    """The page did not come; `reason` is explained in vocabulary/reasons.py, `detail` is for people."""

    def __init__(self, reason: FetchCode, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: FetchCode = reason
        self.detail = detail


class PageAnswer(NamedTuple):
    """An HTTP answer with its body decoded."""

    status: int
    content_type: str
    body: bytes


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection


class PageClient:
    """HTTP client of one server.

    Args:
        engine: where it is and how to authenticate; secrets are read from their files at every request, so that they
            may rotate.
        max_bytes: bound of a body, before and after decompression.

    Raises:
        ConfigError: a CA or certificate file cannot be used.
    """

    def __init__(self, engine: EngineSettings, max_bytes: int) -> None:
        url = urlsplit(engine.url)
        self._engine = engine
        self._max_bytes = max_bytes
        self._host = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._authority = url.netloc
        base = url.path.rstrip("/").removesuffix("/metrics")
        self._health_path = _target(f"{base}/health")
        self.metrics_path = _target(engine.metrics_path or f"{base}/metrics")
        self._requests_path = f"{self.metrics_path.partition('?')[0].rstrip('/')}/requests"
        self._tls = _tls_context(engine) if url.scheme == "https" else None
        self._lookup = NameLookup(self._host, self._port)
        self._idle: list[_Connection] = []

    async def metrics(self, timeout: float) -> bytes:
        """Return the metrics page; raises FetchError within `timeout` seconds."""
        answer = await self.get(self.metrics_path, timeout)
        _require_success(answer)
        if answer.content_type not in _TEXT:
            # another kind of page, or OpenMetrics, whose exemplars are no text 0.0.4
            raise FetchError("not_metrics", answer.content_type)
        return answer.body

    async def request_metrics(self, timeout: float, *, openmetrics: bool) -> bytes | None:
        """Return the page of request metrics, None where the server has no such path; raises FetchError in time."""
        accept = _ACCEPT_OPENMETRICS if openmetrics else _ACCEPT_TEXT
        answer = await self.get(self._requests_path, timeout, accept)
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        _require_success(answer)
        expected = OPENMETRICS_TYPE.partition(";")[0] if openmetrics else _TEXT[0]
        return answer.body if answer.content_type == expected else None

    async def health(self, timeout: float) -> int:
        """Return the status code of the server's own /health; raises FetchError."""
        return (await self.get(self._health_path, timeout)).status

    async def get(self, path: str, timeout: float, accept: str = _ACCEPT_TEXT) -> PageAnswer:
        """Return the answer to a GET; raises FetchError within `timeout` seconds, however slowly bytes drip."""
        try:
            async with asyncio.timeout(timeout):
                return await self._get(path, accept)
        except TimeoutError:
            raise FetchError("timeout", f"no whole page within {timeout:.1f} s") from None

    def close(self) -> None:
        """Drop kept connections."""
        while self._idle:
            connection = self._idle.pop()
            connection.writer.transport.abort()

    async def _get(self, path: str, accept: str) -> PageAnswer:
        while self._idle:
            try:
                answer = await self._exchange(self._idle.pop(), path, accept)
            except FetchError as error:
                if error.reason not in _STALE:
                    raise
            else:
                if answer.status != HTTPStatus.REQUEST_TIMEOUT:  # a proxy's goodbye to an idle connection
                    return answer
        return await self._exchange(await self._connect(), path, accept)

    async def _connect(self) -> _Connection:
        try:
            addresses = await self._lookup.addresses()
        except OSError as error:
            raise FetchError("dns", str(error)) from None
        name = self._engine.tls.server_name if self._engine.tls else None
        problem = FetchError("dns", "the name has no address")
        for address in addresses:
            try:
                reader, writer = await asyncio.open_connection(
                    address,
                    self._port,
                    ssl=self._tls,
                    server_hostname=(name or self._host) if self._tls else None,
                    limit=_READ_BYTES,
                )
            except ConnectionRefusedError as error:
                problem = FetchError("refused", str(error))
            except ssl.SSLError as error:
                raise FetchError("tls", _tls_problem(error)) from None
            except OSError as error:
                problem = FetchError("network", str(error))
            else:
                return _Connection(reader, writer, h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADER_BYTES))
        raise problem

    async def _exchange(self, connection: _Connection, path: str, accept: str) -> PageAnswer:
        reusable = False
        try:
            answer = await self._request(connection, path, accept)
            http = connection.http
            if http.our_state is h11.DONE and http.their_state is h11.DONE and len(self._idle) < _KEPT:
                http.start_next_cycle()
                self._idle.append(connection)
                reusable = True
            return answer
        finally:
            if not reusable:
                connection.writer.transport.abort()

    async def _request(self, connection: _Connection, path: str, accept: str) -> PageAnswer:
        reader, writer, http = connection
        sent = [("Host", self._authority), ("Accept", accept), *_HEADERS, *self._auth()]
        request = h11.Request(method="GET", target=path, headers=sent)
        writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        head: h11.Response | None = None
        body = bytearray()
        ended = False
        while True:
            try:
                event = http.next_event()
            except h11.RemoteProtocolError as error:
                raise FetchError("truncated" if ended else "protocol", str(error)) from None
            if event is h11.NEED_DATA:
                data = await _read(reader, started=head is not None or bool(http.trailing_data[0]))
                ended = not data
                if ended and head is None:
                    raise _early_end(http.trailing_data[0])
                http.receive_data(data)
            elif isinstance(event, h11.Response):
                head = event
                self._bound(int(dict(head.headers).get(b"content-length", b"0")))
            elif isinstance(event, h11.Data):
                body += event.data
                self._bound(len(body))
            elif isinstance(event, h11.EndOfMessage):
                break
        assert head is not None
        headers = dict(head.headers)
        content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().decode("latin-1").lower()
        decoded = _decoded(bytes(body), headers.get(b"content-encoding", b"identity").lower(), self._max_bytes)
        return PageAnswer(head.status_code, content_type, decoded)

    def _bound(self, size: int) -> None:
        if size > self._max_bytes:
            raise FetchError("too_large", f"more than {self._max_bytes} bytes")

    def _auth(self) -> list[tuple[str, str]]:
        engine = self._engine
        token = _secret(engine.bearer_token_file, engine.bearer_token_env)
        if token is not None:
            if not (token and token.isascii() and token.isprintable()):
                source = engine.bearer_token_file or f"the variable {engine.bearer_token_env}"
                raise FetchError("credentials", f"{source}: expected one line of printable ASCII")
            return [("Authorization", f"Bearer {token}")]
        basic = engine.basic_auth
        if basic is None:
            return []
        password = _secret(basic.password_file, basic.password_env) or ""
        pair = base64.b64encode(f"{basic.username}:{password}".encode()).decode()
        return [("Authorization", f"Basic {pair}")]


# identity: on loopback compressing costs more than it saves, and vLLM does not compress at all
_HEADERS: Final = (
    ("Accept-Encoding", "identity"),
    ("User-Agent", "vllm-vitals"),
)


def _require_success(answer: PageAnswer) -> None:
    if answer.status in {401, 403}:
        raise FetchError("unauthorized", f"HTTP {answer.status}")
    if 300 <= answer.status < 400:
        raise FetchError("redirect", f"HTTP {answer.status}")  # never followed: credentials must not travel
    if answer.status != 200:
        raise FetchError("http_status", f"HTTP {answer.status}")


def _secret(file: object, variable: str | None) -> str | None:
    """Return a secret without its final newline, None when none is configured."""
    try:
        if file is not None:
            with open(str(file), encoding="utf-8") as stream:  # noqa: PTH123  one small read a scrape, Path costs more
                return stream.read().strip()
        return os.environ[variable] if variable else None
    except (OSError, UnicodeDecodeError):
        raise FetchError("credentials", f"{file} cannot be read") from None
    except KeyError:
        raise FetchError("credentials", f"the variable {variable} is not set") from None


def _target(path: str) -> str:
    """Return a path as it may stand in a request: blanks and letters beyond ASCII escaped, what is escaped kept."""
    return quote(path if path.startswith("/") else f"/{path}", safe=_SAFE_IN_TARGET)


async def _read(reader: asyncio.StreamReader, *, started: bool) -> bytes:
    """Return the next bytes, none at the end; `started` tells whether a part of the answer is here."""
    try:
        return await reader.read(_READ_BYTES)
    except ssl.SSLError as error:  # TLS 1.3 refuses our certificate only here
        raise FetchError("truncated" if started else "tls", _tls_problem(error)) from None
    except OSError as error:
        lost: FetchCode = "closed" if isinstance(error, ConnectionError) else "network"
        raise FetchError("truncated" if started else lost, str(error)) from None


def _early_end(received: bytes) -> FetchError:
    if not received:
        return FetchError("closed", "the server closed the connection without an answer")
    if received.startswith(b"HTTP/"):
        return FetchError("truncated", "the answer ends within its headers")
    return FetchError("protocol", "the answer is not HTTP")


def _decoded(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """Return the body without its content encoding; a bomb ends at `max_bytes`."""
    if encoding in {b"identity", b""}:
        return body
    if encoding not in {b"gzip", b"x-gzip", b"deflate"}:
        raise FetchError("encoding", encoding.decode("latin-1"))
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    plain = bytearray()
    try:
        while not inflater.eof:
            part = inflater.decompress(body, _INFLATE_BYTES)
            body = inflater.unconsumed_tail
            plain += part
            if len(plain) > max_bytes:
                raise FetchError("too_large", f"more than {max_bytes} bytes after decompression")
            if not part and not body and not inflater.eof:
                raise FetchError("truncated", "the compressed page ends early")
    except zlib.error as error:
        raise FetchError("encoding", str(error)) from None
    if inflater.unused_data:
        raise FetchError("encoding", "bytes follow the compressed page")
    return bytes(plain)


def _tls_context(engine: EngineSettings) -> ssl.SSLContext:
    tls = engine.tls or Tls()
    if tls.key_file is not None and tls.cert_file is None:
        raise ConfigError(f"engine {engine.server}: tls: expected cert_file beside key_file, found none")
    file: Path | None = tls.ca_file
    try:
        context = ssl.create_default_context(cafile=str(file) if file else None)
        file = tls.cert_file
        if file is not None:
            # without a password function OpenSSL would ask for one on the terminal
            context.load_cert_chain(file, tls.key_file, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"engine {engine.server}: tls: expected usable PEM files, found {file}: {error}") from error
    if tls.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _tls_problem(error: ssl.SSLError) -> str:
    """Return OpenSSL's words, and in front of them what they mean where a server speaks plain HTTP."""
    return f"the server speaks no TLS there, write http://: {error}" if error.reason in SPEAKS_NO_TLS else str(error)

"""Fetches one server's pages over kept-alive connections, within a deadline, a size and a short list of failures."""

import asyncio
import base64
import os
import ssl
import zlib
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

import h11

from ..config import ConfigError, EngineSettings

Reason = Literal[
    "refused",  # nobody listens
    "timeout",
    "dns",
    "tls",
    "network",
    "closed",  # the peer hung up before an answer
    "truncated",  # it hung up within one
    "protocol",  # not HTTP
    "unauthorized",
    "redirect",  # never followed: credentials must not travel
    "http_status",
    "too_large",
    "encoding",
    "not_metrics",  # another kind of page, or OpenMetrics, whose exemplars are no text 0.0.4
    "credentials",  # the token or password file cannot be read
]

_READ_BYTES: Final = 256 * 1024
_HEADER_BYTES: Final = 32 * 1024
_KEPT: Final = 2  # idle connections: scrapes and samples may overlap
_TEXT: Final = ("text/plain", "")


class FetchError(Exception):
    """The page did not come; `reason` is one of a fixed list, `detail` is for people."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: Reason = reason
        self.detail = detail


class Answer(NamedTuple):
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
        self._base = "" if url.path.endswith("/metrics") else url.path
        self.metrics_path = engine.metrics_path or (
            url.path if url.path.endswith("/metrics") else f"{url.path}/metrics"
        )
        self._tls = _tls_context(engine) if url.scheme == "https" else None
        self._idle: list[_Connection] = []

    async def metrics(self, timeout: float) -> bytes:
        """Return the metrics page; raises FetchError within `timeout` seconds."""
        answer = await self.get(self.metrics_path, timeout)
        if answer.status in {401, 403}:
            raise FetchError("unauthorized", f"HTTP {answer.status}")
        if 300 <= answer.status < 400:
            raise FetchError("redirect", f"HTTP {answer.status}")
        if answer.status != 200:
            raise FetchError("http_status", f"HTTP {answer.status}")
        if answer.content_type not in _TEXT:
            raise FetchError("not_metrics", answer.content_type)
        return answer.body

    async def health(self, timeout: float) -> int:
        """Return the status code of the server's own /health; raises FetchError."""
        return (await self.get(f"{self._base}/health", timeout)).status

    async def get(self, path: str, timeout: float) -> Answer:
        """Return the answer to a GET; raises FetchError within `timeout` seconds, however slowly bytes drip."""
        try:
            async with asyncio.timeout(timeout):
                return await self._get(path)
        except TimeoutError:
            raise FetchError("timeout", f"no whole page within {timeout:.1f} s") from None

    def close(self) -> None:
        """Drop kept connections."""
        while self._idle:
            self._idle.pop().writer.transport.abort()

    async def _get(self, path: str) -> Answer:
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._exchange(connection, path)
            except FetchError as error:
                if error.reason not in {"closed", "network"}:
                    raise
                # A kept connection may have died meanwhile: that says nothing about the server, so try the next one.
        return await self._exchange(await self._connect(), path)

    async def _connect(self) -> _Connection:
        name = self._engine.tls.server_name if self._engine.tls else None
        try:
            reader, writer = await asyncio.open_connection(
                self._host,
                self._port,
                ssl=self._tls,
                server_hostname=(name or self._host) if self._tls else None,
                limit=_READ_BYTES,
            )
        except ConnectionRefusedError as error:
            raise FetchError("refused", str(error)) from None
        except ssl.SSLError as error:
            raise FetchError("tls", str(error)) from None
        except OSError as error:  # name resolution has its own subclass of OSError
            reason: Reason = "dns" if type(error).__name__ == "gaierror" else "network"
            raise FetchError(reason, str(error)) from None
        return _Connection(reader, writer, h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADER_BYTES))

    async def _exchange(self, connection: _Connection, path: str) -> Answer:
        reusable = False
        try:
            answer = await self._request(connection, path)
            http = connection.http
            if http.our_state is h11.DONE and http.their_state is h11.DONE and len(self._idle) < _KEPT:
                http.start_next_cycle()
                self._idle.append(connection)
                reusable = True
            return answer
        except h11.RemoteProtocolError as error:
            started = connection.http.their_state is not h11.SEND_RESPONSE
            raise FetchError("truncated" if started else "protocol", str(error)) from None
        except ssl.SSLError as error:
            raise FetchError("tls", str(error)) from None
        except OSError as error:
            started = connection.http.their_state is h11.SEND_BODY
            raise FetchError("truncated" if started else "network", str(error)) from None
        finally:
            if not reusable:
                connection.writer.transport.abort()

    async def _request(self, connection: _Connection, path: str) -> Answer:
        reader, writer, http = connection
        request = h11.Request(method="GET", target=path, headers=[("Host", self._authority), *_HEADERS, *self._auth()])
        writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(_READ_BYTES)
                if not data and head is None and not http.trailing_data[0]:
                    raise FetchError("closed", "the server closed the connection without an answer")
                http.receive_data(data)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._max_bytes:
                    raise FetchError("too_large", f"more than {self._max_bytes} bytes")
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise FetchError("closed", "the server closed the connection")
        assert head is not None
        headers = dict(head.headers)
        content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().decode("latin-1").lower()
        decoded = _decoded(bytes(body), headers.get(b"content-encoding", b"identity"), self._max_bytes)
        return Answer(head.status_code, content_type, decoded)

    def _auth(self) -> list[tuple[str, str]]:
        engine = self._engine
        token = _secret(engine.bearer_token_file, engine.bearer_token_env)
        if token is not None:
            return [("Authorization", f"Bearer {token}")]
        basic = engine.basic_auth
        if basic is None:
            return []
        password = _secret(basic.password_file, basic.password_env) or ""
        pair = base64.b64encode(f"{basic.username}:{password}".encode()).decode()
        return [("Authorization", f"Basic {pair}")]


# identity: on loopback compressing costs more than it saves, and vLLM does not compress at all
_HEADERS: Final = (
    ("Accept", "text/plain;version=0.0.4"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "vllm-vitals"),
)


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


def _decoded(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """Return the body without its content encoding; a bomb ends at `max_bytes`."""
    if encoding in {b"identity", b""}:
        return body
    if encoding not in {b"gzip", b"x-gzip", b"deflate"}:
        raise FetchError("encoding", encoding.decode("latin-1"))
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        plain = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise FetchError("encoding", str(error)) from None
    if len(plain) > max_bytes:
        raise FetchError("too_large", f"more than {max_bytes} bytes after decompression")
    if not inflater.eof:
        raise FetchError("truncated", "the compressed page ends early")
    return plain


def _tls_context(engine: EngineSettings) -> ssl.SSLContext:
    tls = engine.tls
    context = ssl.create_default_context()
    try:
        if tls is None:
            return context
        if tls.ca_file is not None:
            context = ssl.create_default_context(cafile=str(tls.ca_file))
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"engine {engine.server}: expected usable tls files, found: {error}") from error
    if tls.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context

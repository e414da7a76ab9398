"""OTLP over HTTP: one kept-alive connection, one POST after the other, each within a deadline as a whole.

The stdlib's client and not urllib3: its timeouts hold for single reads, so that a collector which answers a byte at a
time would hold a call for ever. Here `cut` shuts the socket. No proxies, and no redirects: headers must not travel.
"""

import contextlib
import email.utils
import http.client
import socket
import ssl
import threading
import time
import zlib
from typing import Final

from ... import __version__
from .otlp import rejected_spans
from .otlp_delivery import Delivery
from .otlp_settings import OtlpSettings

_RETRYABLE: Final = frozenset((429, 502, 503, 504))
_ANSWER_BYTES: Final = 64 * 1024
_STALE: Final = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)


class HttpSender:
    """A collector's /v1/traces; the TLS context is made once, at construction: OSError for unreadable files."""

    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        self._tls = _tls(settings) if settings.secure else None
        self._connection: http.client.HTTPConnection | None = None
        self._is_cut = False
        self._headers = {
            "content-type": "application/x-protobuf",
            "user-agent": f"vllm-vitals/{__version__}",
            **({"content-encoding": "gzip"} if settings.gzip else {}),
            **dict(settings.headers),
        }

    def send(self, data: bytes, timeout: float) -> Delivery:
        """POST a request."""
        if self._settings.gzip:
            packer = zlib.compressobj(1, zlib.DEFLATED, 31)
            data = packer.compress(data) + packer.flush()
        self._is_cut = False
        deadline = time.monotonic() + timeout
        watchdog = threading.Timer(timeout, self.cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            fresh = self._connection is None
            try:
                return self._post(data, deadline)
            except _STALE:
                if fresh or self._is_cut:
                    raise
            self.close()  # the collector let go of the kept connection meanwhile
            return self._post(data, deadline)
        except ssl.SSLCertVerificationError as error:
            self.close()
            return Delivery("retry", reason=f"TLS: {error.verify_message}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            if self._is_cut or time.monotonic() >= deadline:
                return Delivery("retry", reason=f"no answer within {timeout:.3g} s")
            return Delivery("retry", reason=_words(error))
        finally:
            watchdog.cancel()

    def cut(self) -> None:
        """Shut the socket of the call that is under way."""
        self._is_cut = True
        connection = self._connection
        channel = None if connection is None else connection.sock
        if channel is not None:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _post(self, data: bytes, deadline: float) -> Delivery:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._connect()
        connection.timeout = max(0.001, deadline - time.monotonic())
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        connection.request("POST", self._settings.path, data, self._headers)
        answer = connection.getresponse()
        body = answer.read(_ANSWER_BYTES)
        if answer.will_close or not answer.isclosed():
            self.close()
        return _delivery(answer.status, answer.headers.get("retry-after"), answer.headers.get("content-type", ""), body)

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._settings.host, self._settings.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, context=self._tls)
        return http.client.HTTPConnection(host, port)


def _delivery(status: int, retry_after: str | None, content_type: str, body: bytes) -> Delivery:
    """Return what an HTTP answer means."""
    if status in _RETRYABLE:
        return Delivery("retry", retry_after=_seconds(retry_after), reason=f"HTTP {status}")
    if not 200 <= status < 300:
        return Delivery("refused", reason=f"HTTP {status}")
    if content_type.partition(";")[0].strip().lower() == "application/json":
        return Delivery("accepted")  # some answer protobuf with JSON
    try:
        return Delivery("accepted", rejected_spans(body))
    except ValueError:
        return Delivery("refused", reason=f"HTTP {status} with an answer that is not OTLP")


def _seconds(retry_after: str | None) -> float | None:
    """Return a Retry-After header as seconds: a number or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _words(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "the name is not known"
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, http.client.RemoteDisconnected):
        return "the answer is not HTTP"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def _tls(settings: OtlpSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.certificate)
    if settings.client_certificate is not None:
        context.load_cert_chain(settings.client_certificate, settings.client_key)
    return context

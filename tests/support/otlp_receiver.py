"""A real OTLP collector for tests: HTTP and gRPC, decoded with the official protobufs, healthy or sick as told."""

import contextlib
import gzip
import http.server
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from .certificates import Authority, Pair
from .waiting import wait_for

Received = list[tuple[dict[str, object], Span]]


class Call(NamedTuple):
    """One export as it came."""

    protocol: str
    path: str
    headers: dict[str, str]
    size: int  # bytes of the body as sent; 0 for gRPC, which decompresses by itself
    spans: int
    at: float  # monotonic


class Answer(NamedTuple):
    """What the receiver does with a call; a HTTP status stands for the gRPC code of the same meaning."""

    status: int = 200
    retry_after: float | None = None
    rejected: int = 0
    body: bytes | None = None  # instead of a real answer
    content_type: str = "application/x-protobuf"
    deed: str = ""  # hang, reset, raw


ACCEPT = Answer()
HANG = Answer(deed="hang")
RESET = Answer(deed="reset")
NOT_HTTP = Answer(deed="raw", body=b"\x00\x01 this is no HTTP\r\n\r\n" * 10)
GARBAGE = Answer(body=b"<html>what?</html>", content_type="text/html")

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


def status(code: int, retry_after: float | None = None) -> Answer:
    return Answer(code, retry_after)


def partial(rejected: int) -> Answer:
    return Answer(rejected=rejected)


class OtlpReceiver:
    """Listens on loopback until it is closed.

    Args:
        authority: makes it speak TLS with a certificate of this authority.
        client_certificates: only clients with a certificate of the authority may come.
        http_port, grpc_port: fixed ports, for a receiver that comes back; 0 for any.
        host: a loopback address.

    Attributes:
        calls: every export that was decoded, oldest first.
        broken: what could not be decoded.
        answers: what to do with the next calls, in turn; the last one stays.
    """

    def __init__(
        self,
        authority: Authority | None = None,
        *,
        client_certificates: bool = False,
        http_port: int = 0,
        grpc_port: int = 0,
        host: str = "127.0.0.1",
    ):
        self.calls: list[Call] = []
        self.broken: list[str] = []
        self.answers: list[Answer] = [ACCEPT]
        self._accepted: Received = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._open: set[socket.socket] = set()
        pair = authority.issue(f"collector-{id(self)}", "localhost", "127.0.0.1") if authority else None
        scheme = "https" if pair else "http"
        self._http = _HttpServer((host, http_port), _Handler)
        self._http.receiver = self
        self._http.tls = _context(pair, authority, client_certificates)
        self.http_port = self._http.server_address[1]
        self.http_url = f"{scheme}://{host}:{self.http_port}/v1/traces"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self._pool = ThreadPoolExecutor(8)
        self._grpc = grpc.server(self._pool, options=(("grpc.so_reuseport", 0),))
        handler = grpc.unary_unary_rpc_method_handler(self._export)  # bytes in, bytes out: answers may be garbage
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        address = f"{host}:{grpc_port}"
        if pair is None:
            self.grpc_port = self._grpc.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials(
                [(pair.key.read_bytes(), pair.cert.read_bytes())],
                authority.ca.read_bytes() if client_certificates else None,
                client_certificates,
            )
            self.grpc_port = self._grpc.add_secure_port(address, credentials)
        self.grpc_url = f"{scheme}://{host}:{self.grpc_port}"
        self._grpc.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and drop every connection, as a killed collector does."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self.drop()
        self._grpc.stop(0).wait(5)
        self._pool.shutdown(wait=True)

    def drop(self) -> None:
        """Close the HTTP connections that are open now."""
        with self._lock:
            channels, self._open = self._open, set()
        for channel in channels:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)

    def url(self, protocol: str) -> str:
        return self.grpc_url if protocol == "grpc" else self.http_url

    def spans(self) -> Received:
        """Return the accepted spans with their resource's attributes, oldest first."""
        with self._lock:
            return list(self._accepted)

    def clear(self) -> None:
        """Forget what came."""
        with self._lock:
            self._accepted.clear()
            self.calls.clear()

    def wait_for(self, condition: Callable[[Received], object], seconds: float = 20.0) -> Received:
        """Return the accepted spans as soon as a condition holds for them."""

        def holds() -> bool:
            return bool(condition(self.spans()))

        wait_for(holds, "the expected spans", seconds, pause=0.02)
        return self.spans()

    def wait_for_calls(self, number: int, seconds: float = 20.0) -> list[Call]:
        wait_for(lambda: len(self.calls) >= number, f"{number} calls", seconds, pause=0.02)
        return self.calls

    def _take(self, protocol: str, path: str, headers: dict[str, str], body: bytes, size: int) -> Answer:
        """Decode a call, keep its spans if it is to be accepted, and return what to answer."""
        try:
            request = ExportTraceServiceRequest.FromString(body)
        except Exception as error:
            self.broken.append(f"{protocol}: {error!r}")
            return Answer(400)
        found = [
            (attributes(resource_spans.resource.attributes), span)
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]
        with self._lock:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.calls.append(Call(protocol, path, headers, size, len(found), time.monotonic()))
            if answer.status == 200 and not answer.deed and answer.body is None:
                self._accepted += found[answer.rejected :]
        return answer

    def _export(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        answer = self._take("grpc", "", headers, body, 0)
        if answer.deed == "hang":
            while context.is_active() and not self._stopping.wait(0.02):
                pass
        if answer.deed:
            context.abort(grpc.StatusCode.UNAVAILABLE, answer.deed)
        if answer.status != 200:
            if answer.retry_after is not None:
                context.set_trailing_metadata((("grpc-status-details-bin", _retry_info(answer.retry_after)),))
            context.abort(_CODES[answer.status], "as told")
        return answer.body if answer.body is not None else _response(answer)


class _HttpServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    receiver: OtlpReceiver
    tls: ssl.SSLContext | None

    def handle_error(self, request, client_address) -> None:
        pass  # a connection that a sick answer or a refused certificate ended

    def finish_request(self, request, client_address) -> None:
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True)
        with self.receiver._lock:
            self.receiver._open.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            with self.receiver._lock:
                self.receiver._open.discard(request)
            request.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers["content-length"]))
        size = len(body)
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = receiver._take("http", self.path, headers, body, size)
        if answer.deed == "hang":
            receiver._stopping.wait(60)
        if answer.deed == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if answer.deed == "raw":
            self.wfile.write(answer.body)
        if answer.deed:
            self.close_connection = True
            return
        data = answer.body if answer.body is not None else _response(answer)
        self.send_response(answer.status)
        self.send_header("content-type", answer.content_type)
        self.send_header("content-length", str(len(data)))
        if answer.retry_after is not None:
            self.send_header("retry-after", f"{answer.retry_after:.0f}")
        self.end_headers()
        self.wfile.write(data)


def attributes(pairs) -> dict[str, object]:
    """Return OTLP attributes as Python values."""
    return {pair.key: value_of(pair.value) for pair in pairs}


def value_of(value) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, kind)


def _response(answer: Answer) -> bytes:
    response = ExportTraceServiceResponse()
    if answer.rejected:
        response.partial_success.CopyFrom(
            ExportTracePartialSuccess(rejected_spans=answer.rejected, error_message="too many")
        )
    return response.SerializeToString()


def _retry_info(seconds: float) -> bytes:
    """Return a google.rpc.Status with a RetryInfo; its classes are in a package that nothing here needs else."""

    def field(number: int, data: bytes) -> bytes:
        assert len(data) < 128
        return bytes((number << 3 | 2, len(data))) + data

    from google.protobuf.any_pb2 import Any
    from google.protobuf.duration_pb2 import Duration

    duration = Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
    info = Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=field(1, duration.SerializeToString()))
    return field(2, b"later") + field(3, info.SerializeToString())


def _context(pair: Pair | None, authority: Authority | None, client_certificates: bool) -> ssl.SSLContext | None:
    if pair is None or authority is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    if client_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.ca)
    return context


def settled(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    wait_for(condition, what, seconds, pause=0.02)


def elapsed(work: Callable[[], object]) -> float:
    """Return the seconds that some work took."""
    began = time.monotonic()
    work()
    return time.monotonic() - began

"""OTLP over gRPC: one channel, unary calls with bytes that are encoded already."""

from typing import Any, Final

import grpc

from ... import __version__
from .otlp import rejected_spans, retry_delay
from .otlp_delivery import Delivery
from .otlp_settings import OtlpSettings

_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_DETAILS: Final = "grpc-status-details-bin"

# Source: OTLP specification, table of retryable codes. RESOURCE_EXHAUSTED only when the collector says when.
_RETRYABLE: Final = frozenset(
    (
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5000),  # our own backoff is on top
    ("grpc.primary_user_agent", f"vllm-vitals/{__version__}"),
    ("grpc.use_local_subchannel_pool", 1),  # nothing shared with vLLM's own exporter
)


class GrpcSender:
    """A collector's TraceService; certificates are read at construction: OSError for unreadable files."""

    def __init__(self, settings: OtlpSettings) -> None:
        self._channel = _channel(settings)
        self._export: Any = self._channel.unary_unary(_METHOD)
        self._metadata = tuple((name, str(value)) for name, value in settings.headers)
        self._compression = grpc.Compression.Gzip if settings.gzip else grpc.Compression.NoCompression
        self._call: Any = None

    def send(self, data: bytes, timeout: float) -> Delivery:
        """Call Export."""
        try:
            self._call = self._export.future(
                data, timeout=timeout, metadata=self._metadata, compression=self._compression
            )
            answer = self._call.result()
        except grpc.RpcError as error:
            return _failed(error, timeout)
        except (grpc.FutureCancelledError, ValueError) as error:  # ValueError: the channel is closed
            return Delivery("retry", reason=type(error).__name__)
        finally:
            self._call = None
        try:
            return Delivery("accepted", rejected_spans(answer))
        except ValueError:
            return Delivery("refused", reason="OK with an answer that is not OTLP")

    def cut(self) -> None:
        """Cancel the call that is under way."""
        if (call := self._call) is not None:
            call.cancel()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _failed(error: Any, timeout: float) -> Delivery:
    """Return what a call's error means; gRPC's errors are calls, too."""
    code = error.code()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED or code in _RETRYABLE:
        details = dict(error.trailing_metadata() or ()).get(_DETAILS)
        delay = retry_delay(details) if isinstance(details, bytes) else None
        if code in _RETRYABLE or delay is not None:
            late = code is grpc.StatusCode.DEADLINE_EXCEEDED
            reason = f"no answer within {timeout:.3g} s" if late else f"gRPC {code.name}"
            return Delivery("retry", retry_after=delay, reason=reason)
    return Delivery("refused", reason=f"gRPC {code.name}")


def _channel(settings: OtlpSettings) -> grpc.Channel:
    if not settings.secure:
        return grpc.insecure_channel(settings.target, _OPTIONS)

    def read(path: Any) -> bytes | None:
        return None if path is None else path.read_bytes()

    credentials = grpc.ssl_channel_credentials(
        read(settings.certificate), read(settings.client_key), read(settings.client_certificate)
    )
    return grpc.secure_channel(settings.target, credentials, _OPTIONS)

"""Where spans go and who we say that we are: OpenTelemetry's standard variables, read once.

The variables and their meaning are those of the specification (protocol/exporter, sdk-environment-variables). Where it
leaves a choice or vLLM does otherwise:

- Without OTEL_EXPORTER_OTLP_[TRACES_]PROTOCOL the protocol is gRPC, as in vLLM; an endpoint with port 4318 or a path
  that ends in /v1/traces is HTTP nevertheless, since nothing else listens there.
- OTEL_EXPORTER_OTLP_[TRACES_]TIMEOUT counts milliseconds. OpenTelemetry's Python SDK, so vLLM's own tracing in the same
  process, takes the same variable for seconds: a number below 100, too short in milliseconds, is seconds.
- OTEL_BSP_SCHEDULE_DELAY (milliseconds, 1000 here) and OTEL_BSP_MAX_QUEUE_SIZE (spans, 16384 here) hold for us, too.
- Compression is gzip unless the variable says `none`.
- An endpoint without a scheme (`collector:4317`, gRPC only) is spoken to with TLS unless ..._INSECURE is true; one that
  was given to vLLM's --otlp-traces-endpoint without TLS, which is what vLLM does.
- OTEL_SEMCONV_STABILITY_OPT_IN, a comma-separated list, adds the old GenAI names (gen_ai.system,
  gen_ai.usage.prompt_tokens, gen_ai.usage.completion_tokens, gen_ai.request.n) beside the current ones with
  `gen_ai/dup`; any other value, such as `gen_ai_latest_experimental`, leaves the current names alone.
"""

import base64
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from ... import __version__
from ...settings.scalars import ConfigError, Secret

Protocol = Literal["grpc", "http/protobuf"]

_GENERIC: Final = "OTEL_EXPORTER_OTLP_"
_TRACES: Final = "OTEL_EXPORTER_OTLP_TRACES_"
_FLAG: Final = "--otlp-traces-endpoint"
_TIMEOUT: Final = 10_000  # milliseconds, the specification's default
_LONGEST_TIMEOUT: Final = 300_000
_SURELY_SECONDS: Final = 100
_DELAY: Final = 1000  # milliseconds; the SDKs wait 5000
_QUEUE: Final = 16_384  # the SDKs hold 2048, a burst of 340 requests
_LARGEST_QUEUE: Final = 1_000_000
_GRPC_TARGETS: Final = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")
_PORTS: Final = {("grpc", False): 4317, ("grpc", True): 443, ("http/protobuf", False): 80, ("http/protobuf", True): 443}
_HEADER_NAME: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """A collector and how to speak to it.

    Attributes:
        protocol: of OTLP.
        host, port: where an HTTP collector listens; empty and 0 for gRPC.
        path: of the HTTP request, with its query.
        target: gRPC's name of the collector; empty for HTTP.
        secure: TLS.
        headers: sent with every call; names in lower case. Never logged.
        timeout: seconds that one call may take.
        gzip: compress requests.
        certificate: file of the CAs to trust; None for the system's.
        client_certificate, client_key: files to show to the collector.
        legacy_names: old GenAI attribute names beside the current ones.
        delay: seconds that a span may wait for others to fill a batch.
        queue: spans that may wait for the collector; the oldest are dropped.
    """

    protocol: Protocol
    host: str = ""
    port: int = 0
    path: str = ""
    target: str = ""
    secure: bool = False
    headers: tuple[tuple[str, Secret], ...] = ()
    timeout: float = _TIMEOUT / 1000
    gzip: bool = True
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    legacy_names: bool = False
    delay: float = _DELAY / 1000
    queue: int = _QUEUE

    @property
    def shown(self) -> str:
        """The collector's name for logs: no credentials, no query."""
        if self.protocol == "grpc":
            return self.target
        return f"http{'s' if self.secure else ''}://{_bracketed(self.host)}:{self.port}{self.path.partition('?')[0]}"


def otlp_settings(environ: Mapping[str, str], endpoint: str | None = None) -> OtlpSettings | None:
    """Return where to send spans, None where nobody named a collector or tracing is switched off.

    Args:
        environ: the process's variables.
        endpoint: what vLLM's --otlp-traces-endpoint says; it goes before the variables.

    Raises:
        ConfigError: names the variable, what was found and what was expected.
    """
    if _is_true(environ, "OTEL_SDK_DISABLED"):
        return None
    exporters = _list(environ.get("OTEL_TRACES_EXPORTER", ""))
    if exporters and "otlp" not in exporters:
        return None
    place, text = _FLAG, (endpoint or "").strip()
    if not text:
        place, text = _signal(environ, "ENDPOINT")
    if not text:
        return None
    protocol = _protocol(environ, text)
    headers = _headers(*_signal(environ, "HEADERS"))
    if protocol == "grpc" and text.startswith(_GRPC_TARGETS):
        where = OtlpSettings("grpc", target=text, secure=_scheme_free_is_secure(environ, place))
    else:
        where, credentials = _collector(environ, place, text, protocol)
        if credentials and "authorization" not in dict(headers):
            headers += (("authorization", credentials),)
    timeout = _whole(*_signal(environ, "TIMEOUT"), "milliseconds", _TIMEOUT, _LONGEST_TIMEOUT)
    return OtlpSettings(
        where.protocol,
        where.host,
        where.port,
        where.path,
        where.target,
        where.secure,
        headers,
        timeout if timeout < _SURELY_SECONDS else timeout / 1000,
        _choice(*_signal(environ, "COMPRESSION"), "gzip", ("gzip", "none")) == "gzip",
        *_files(environ),
        legacy_names="gen_ai/dup" in _list(environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "")),
        delay=_bsp(environ, "SCHEDULE_DELAY", "milliseconds", _DELAY, _LONGEST_TIMEOUT) / 1000,
        queue=_bsp(environ, "MAX_QUEUE_SIZE", "spans", _QUEUE, _LARGEST_QUEUE),
    )


def resource(environ: Mapping[str, str], extra: Mapping[str, str | int]) -> dict[str, str | int]:
    """Return the attributes of the process that makes the spans.

    What the operator says in OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES goes before `extra`, such as vLLM's
    version, and that before what we find. Raises ConfigError.
    """
    found: dict[str, str | int] = {
        "service.name": "vllm",
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
        **extra,
        **_resource_attributes(environ.get("OTEL_RESOURCE_ATTRIBUTES", "")),
    }
    if name := environ.get("OTEL_SERVICE_NAME", "").strip():
        found["service.name"] = name
    return {
        **found,
        "telemetry.sdk.name": "vllm-vitals",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": __version__,
    }


def _signal(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return the variable that counts and its text: the one for traces goes before the generic one; '' is unset."""
    if text := environ.get(_TRACES + name, "").strip():
        return _TRACES + name, text
    return _GENERIC + name, environ.get(_GENERIC + name, "").strip()


def _protocol(environ: Mapping[str, str], endpoint: str) -> Protocol:
    place, text = _signal(environ, "PROTOCOL")
    if text:
        return "grpc" if _choice(place, text, "", ("grpc", "http/protobuf")) == "grpc" else "http/protobuf"
    try:
        url = urlsplit(endpoint)
        is_http = url.scheme in {"http", "https"} and (url.port == 4318 or url.path.rstrip("/").endswith("/v1/traces"))
    except ValueError:
        is_http = False  # _collector says what is wrong
    return "http/protobuf" if is_http else "grpc"


def _collector(
    environ: Mapping[str, str], place: str, text: str, protocol: Protocol
) -> tuple[OtlpSettings, Secret | None]:
    """Return where an endpoint is, and the credentials that stood in it as a header's value."""
    expected = "http://HOST:PORT or https://HOST:PORT" + (" or HOST:PORT" if protocol == "grpc" else "")
    error = ConfigError(f"{place}: expected {expected}, found {_without_credentials(text)!r}")
    has_scheme = "://" in text
    try:
        url = urlsplit(text if has_scheme else f"//{text}")
        host, port = url.hostname or "", url.port
    except ValueError:
        raise error from None
    if not host or any(character.isspace() or not character.isprintable() for character in text) or port == 0:
        raise error
    if has_scheme:
        if url.scheme not in {"http", "https"}:
            raise error
        secure = url.scheme == "https"
    elif protocol == "grpc" and not url.path:
        secure = _scheme_free_is_secure(environ, place)
    else:
        raise error
    credentials = None
    if url.username is not None:
        pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
        credentials = Secret("Basic " + base64.b64encode(pair.encode()).decode())
    port = port or _PORTS[protocol, secure]
    if protocol == "grpc":
        return OtlpSettings("grpc", target=f"{_bracketed(host)}:{port}", secure=secure), credentials
    path = url.path
    if place == _GENERIC + "ENDPOINT":
        path = path.rstrip("/") + "/v1/traces"
    elif place == _FLAG and path in {"", "/"}:
        path = "/v1/traces"  # no collector takes spans at /
    target = urlunsplit(("", "", path or "/", url.query, ""))
    if not target.isascii():
        raise error
    return OtlpSettings("http/protobuf", host, port, target, secure=secure), credentials


def _scheme_free_is_secure(environ: Mapping[str, str], place: str) -> bool:
    if place == _FLAG:
        return False
    name, text = _signal(environ, "INSECURE")
    return not _is_true({name: text}, name)


def _headers(place: str, text: str) -> tuple[tuple[str, Secret], ...]:
    """Return the pairs of `name=value,name=value` with percent-encoded values, as W3C Baggage writes them."""
    found: dict[str, Secret] = {}
    for number, item in enumerate(_list(text), 1):
        name, equals, value = item.partition("=")
        name, value = name.strip().lower(), unquote(value.strip())
        if not equals or not name or not set(name) <= _HEADER_NAME:
            # The item is not shown: whatever stands here may be a secret.
            raise ConfigError(f"{place}: expected name=value[,name=value], found something else in item {number}")
        if not value.isascii() or not value.isprintable():
            raise ConfigError(f"{place}: expected printable ASCII as value of {name!r}, found other characters")
        found[name] = Secret(value)
    return tuple(found.items())


def _bsp(environ: Mapping[str, str], name: str, unit: str, default: int, most: int) -> int:
    place = f"OTEL_BSP_{name}"
    return _whole(place, environ.get(place, "").strip(), unit, default, most)


def _whole(place: str, text: str, unit: str, default: int, most: int) -> int:
    if not text:
        return default
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not 0 < number <= most:
        raise ConfigError(f"{place}: expected {unit} from 1 to {most}, found {text!r}")
    return number


def _files(environ: Mapping[str, str]) -> tuple[Path | None, Path | None, Path | None]:
    """Return certificate, client certificate and client key."""
    names = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    paths: list[Path | None] = []
    for name in names:
        place, text = _signal(environ, name)
        if not text:
            paths.append(None)
            continue
        path = Path(text)
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{place}: expected a PEM file, found {text!r}: {error.strerror}") from None
        paths.append(path)
    certificate, client_certificate, client_key = paths
    if (client_certificate is None) != (client_key is None):
        missing = _signal(environ, "CLIENT_CERTIFICATE" if client_certificate is None else "CLIENT_KEY")[0]
        raise ConfigError(f"{missing}: expected a PEM file beside the other half of the client's pair, found none")
    return certificate, client_certificate, client_key


def _resource_attributes(text: str) -> dict[str, str]:
    found = {}
    for item in _list(text):
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"OTEL_RESOURCE_ATTRIBUTES: expected name=value[,name=value], found {item!r}")
        found[unquote(name.strip())] = unquote(value.strip())
    return found


def _choice(place: str, text: str, default: str, choices: tuple[str, ...]) -> str:
    if text and text.lower() not in choices:
        raise ConfigError(f"{place}: expected {' or '.join(choices)}, found {text!r}")
    return text.lower() or default


def _is_true(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() == "true"  # the specification: anything else is false


def _list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _without_credentials(text: str) -> str:
    before, at, after = text.rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at and "://" in before else f"...@{after}" if at else text

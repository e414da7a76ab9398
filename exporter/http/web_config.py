"""TLS and basic auth from the web config file that Prometheus' own exporters use (exporter-toolkit's format)."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import os
import ssl
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import bcrypt

from ...settings.scalars import BcryptHash, ConfigError, HeaderValue, Secret
from ...settings.typed_yaml import from_node, read_yaml

log = logging.getLogger("vllm_vitals")

_RELOAD_SECONDS: Final = 1.0  # how often the files' times are looked at, on demand
_CACHED_LOGINS: Final = 128
_HASHES_AT_ONCE: Final = 4
_VERSIONS: Final = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
# Go's names (RFC) to OpenSSL's; those of TLS 1.3 are not configurable in Go either.
_CIPHERS: Final = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
}
_CURVES: Final = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}

# RequireAnyClientCert is missing on purpose: OpenSSL cannot ask for a certificate and not look at it.
ClientAuth = Literal["NoClientCert", "RequestClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"]
_VERIFY: Final[Mapping[str, ssl.VerifyMode]] = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


@dataclass(frozen=True, slots=True)
class TlsServerConfig:
    """`tls_server_config`; paths are relative to the web config file."""

    cert_file: str | None = None
    key_file: str | None = None
    cert: str | None = None
    key: Secret | None = None
    client_auth_type: ClientAuth = "NoClientCert"
    client_ca_file: str | None = None
    client_ca: str | None = None
    client_allowed_sans: tuple[str, ...] = ()
    min_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] = "TLS12"
    max_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] = "TLS13"
    cipher_suites: tuple[str, ...] = ()
    curve_preferences: tuple[str, ...] = ()
    prefer_server_cipher_suites: bool = True


HeaderName = Literal[
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
]


@dataclass(frozen=True, slots=True)
class HttpServerConfig:
    """`http_server_config`; we speak HTTP/1.1 only, whatever `http2` says."""

    http2: bool = True
    headers: Mapping[HeaderName, HeaderValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WebConfigFile:
    """The file's content."""

    tls_server_config: TlsServerConfig | None = None
    http_server_config: HttpServerConfig = field(default_factory=HttpServerConfig)
    basic_auth_users: Mapping[str, BcryptHash] = field(default_factory=dict)


class WebConfig:
    """The web config file as it is now: read again when it or a file that it names changes.

    A reload that fails is logged and counted, and the last good content stays in use.

    Raises:
        ConfigError: the file is wrong at start.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._config = WebConfigFile()
        self._context: ssl.SSLContext | None = None
        self._watched: tuple[Path, ...] = ()
        self._stamps: tuple[object, ...] = ()
        self._looked_at = 0.0
        self._salt = os.urandom(16)
        self._logins: dict[bytes, bool] = {}
        self._hashing = asyncio.Semaphore(_HASHES_AT_ONCE)
        self.reload_failures = 0
        if path is not None:
            self._load(path)

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context for a new connection, None for plain HTTP."""
        self._reload()
        return self._context

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the headers that every answer carries."""
        return tuple(self._config.http_server_config.headers.items())

    async def allows(self, authorization: str | None) -> bool:
        """Tell whether a request with this Authorization header may pass.

        The hash is computed off the event loop, few at a time; both answers are remembered under a salted digest.
        """
        self._reload()
        users = self._config.basic_auth_users
        if not users:
            return True
        user, password = _credentials(authorization)
        # an unknown user costs as much as a known one, so that timing does not tell which names exist
        hashed = users.get(user) or next(iter(users.values()))
        key = hmac.digest(self._salt, f"{user}\0{password}\0{hashed}".encode(), hashlib.sha256)
        known = self._logins.get(key)
        if known is None:
            async with self._hashing:
                known = await asyncio.to_thread(_matches, password, hashed) and user in users
            if len(self._logins) >= _CACHED_LOGINS:
                self._logins.pop(next(iter(self._logins)))
            self._logins[key] = known
        return known

    def _reload(self) -> None:
        if self._path is None or time.monotonic() - self._looked_at < _RELOAD_SECONDS:
            return
        self._looked_at = time.monotonic()
        if self._stamps == _stamps(self._watched):
            return
        try:
            self._load(self._path)
            log.info("%s: read again", self._path)
        except ConfigError as error:
            self.reload_failures += 1  # once, not at each request: the stamps are those of the wrong files
            log.error("%s; the last good one stays in use", error)  # noqa: TRY400  the text says all

    def _load(self, path: Path) -> None:
        # stamps are taken before a file is read: one that changes while we read it is read again
        self._watched, self._stamps = (path,), _stamps((path,))
        root = read_yaml(path)
        config = WebConfigFile() if root is None else from_node(WebConfigFile, root, str(path))
        assert isinstance(config, WebConfigFile)
        tls = config.tls_server_config
        context = None
        if tls is not None and root is not None:
            names = (tls.cert_file, tls.key_file, tls.client_ca_file)
            named = tuple(path.parent / name for name in names if name)
            self._watched, self._stamps = (path, *named), (*self._stamps, *_stamps(named))
            line = next(key.start_mark.line + 1 for key, _ in root.value if key.value == "tls_server_config")
            context = _context(tls, path.parent, f"{path}:{line}: tls_server_config")
        self._context = context
        self._config = config
        self._logins.clear()


def _stamps(paths: tuple[Path, ...]) -> tuple[object, ...]:
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> object:
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_ino, stat.st_size)


def _context(tls: TlsServerConfig, folder: Path, where: str) -> ssl.SSLContext:
    if not (tls.cert_file or tls.cert) or not (tls.key_file or tls.key):
        raise ConfigError(f"{where}: expected cert_file and key_file (or cert and key), found none or one of them")
    if tls.client_allowed_sans:
        raise ConfigError(f"{where}.client_allowed_sans: expected no such key, it is not supported here")
    if _VERSIONS[tls.min_version] > _VERSIONS[tls.max_version]:
        raise ConfigError(f"{where}: expected min_version up to {tls.max_version}, found {tls.min_version}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    context.maximum_version = _VERSIONS[tls.max_version]
    part = "cipher_suites"
    try:
        if tls.cipher_suites:
            context.set_ciphers(":".join(_known(name, _CIPHERS, f"{where}.{part}") for name in tls.cipher_suites))
        part = "curve_preferences"
        for curve in tls.curve_preferences[:1]:  # Python can set one
            context.set_ecdh_curve(_known(curve, _CURVES, f"{where}.{part}"))
        part = f"cert_file {tls.cert_file}, key_file {tls.key_file}" if tls.cert_file else "cert, key"
        if tls.cert_file and tls.key_file:
            _load_chain(context, folder / tls.cert_file, folder / tls.key_file)
        else:
            _load_inline_chain(context, tls, folder)
        context.verify_mode = _VERIFY[tls.client_auth_type]
        part = f"client_ca_file {tls.client_ca_file}" if tls.client_ca_file else "client_ca"
        if tls.client_ca_file or tls.client_ca:
            ca_file = folder / tls.client_ca_file if tls.client_ca_file else None
            context.load_verify_locations(ca_file, cadata=tls.client_ca)
        elif context.verify_mode is not ssl.CERT_NONE:
            raise ConfigError(f"{where}: expected client_ca_file for {tls.client_auth_type}, found none")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{where}: {part}: expected usable PEM files and names, found: {error}") from error
    return context


def _load_inline_chain(context: ssl.SSLContext, tls: TlsServerConfig, folder: Path) -> None:
    cert = tls.cert or (folder / str(tls.cert_file)).read_text(encoding="ascii")
    key = tls.key or (folder / str(tls.key_file)).read_text(encoding="ascii")
    # ssl reads chains from files only; a private folder that is gone at once is as good as it gets
    with tempfile.TemporaryDirectory() as private:
        chain = Path(private) / "chain.pem"
        chain.touch(mode=0o600)
        chain.write_text(f"{cert}\n{key}\n", encoding="ascii")
        _load_chain(context, chain, None)


def _load_chain(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    # without a password function OpenSSL would ask for one on the terminal
    context.load_cert_chain(cert, key, password=lambda: "")


def _known(name: str, table: Mapping[str, str], place: str) -> str:
    try:
        return table[name]
    except KeyError:
        raise ConfigError(f"{place}: expected one of {', '.join(table)}, found {name!r}") from None


def _credentials(authorization: str | None) -> tuple[str, str]:
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return user, password


def _matches(password: str, hashed: str) -> bool:
    try:
        return bcrypt.checkpw(password.encode()[:72], hashed.encode())  # bcrypt's own bound; longer ones are refused
    except ValueError:
        return False

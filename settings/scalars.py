"""The kinds of single values that settings are made of: what a person may write, and what we make of it."""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin
from urllib.parse import urlsplit


class ConfigError(Exception):
    """A setting is wrong; the text says where, what was found and what was expected."""


class Seconds(float):
    """A duration; written as `500ms`, `15s`, `5m`, `1h` or a plain number of seconds."""


class Ratio(float):
    """A share from 0 to 1; written as `0.98` or `98%`."""


class Port(int):
    """A TCP port."""


class Url(str):
    """An http or https address, without user, password, query and fragment."""

    __slots__ = ()


class Secret(str):
    """Text that never shows itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Hide the text from logs and tracebacks."""
        return "Secret(...)"


class BcryptHash(Secret):
    """A password's bcrypt hash, as htpasswd writes it."""

    __slots__ = ()


class HeaderValue(str):
    """Text that may stand in an HTTP header."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?")
_LONGEST_SECONDS: Final = 10 * 366 * 86400  # nobody waits longer, and clocks of the system overflow somewhere
_BCRYPT_HASH: Final = re.compile(r"\$2[abxy]\$[0-3][0-9]\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_UNITS: Final = {"ms": "0.001", "s": "1", "m": "60", "h": "3600", "d": "86400", None: "1"}
_BOOLEANS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def read_scalar(kind: Any, text: str, place: str) -> Any:
    """Return a scalar's text as a value of a type; `place` opens the error."""
    reader = _READERS.get(kind)
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        # YAML 1.1 reads off as false; we look at the text, so `spot: off` means what it says.
        if text in choices:
            return text
        raise ConfigError(f"{place}: expected {' or '.join(choices)}, found {text!r}{nearest(text, choices)}")
    assert reader is not None, f"no reader for {kind}"
    try:
        return reader(text)
    except ValueError:
        secret = (isinstance(kind, type) and issubclass(kind, Secret)) or (kind is Url and "@" in text)
        found = "something else" if secret else repr(text)
        raise ConfigError(f"{place}: expected {expected(kind)}, found {found}") from None


def _read_duration(text: str) -> Seconds:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError
    # Decimal: 51ms is 0.051, which a bucket is called by, and not 0.051000000000000004.
    seconds = Decimal(match[1]) * Decimal(_UNITS[match[2]])
    if seconds > _LONGEST_SECONDS:
        raise ValueError
    return Seconds(float(seconds))


def _read_ratio(text: str) -> Ratio:
    value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value <= 1:
        raise ValueError
    return Ratio(value)


def _read_port(text: str) -> Port:
    port = Port(text)
    if not 0 < port < 65536:
        raise ValueError
    return port


def _read_address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:  # a bare port would listen on all interfaces
        raise ValueError
    host.encode("idna")  # raises a ValueError for what can be no name
    return Address(host.strip("[]") or "0.0.0.0", int(port))


def _read_boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError from None


def _read_whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _read_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _read_bcrypt_hash(text: str) -> BcryptHash:
    if _BCRYPT_HASH.fullmatch(text) is None:
        raise ValueError
    return BcryptHash(text)


def _read_header_value(text: str) -> HeaderValue:
    if not (text and text.isascii() and text.isprintable()):
        raise ValueError
    return HeaderValue(text)


def _read_url(text: str) -> Url:
    url = urlsplit(text.strip())
    if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0 or "@" in url.netloc:
        raise ValueError
    if url.query or url.fragment or not (text.isascii() and text.strip().isprintable()) or " " in text.strip():
        raise ValueError
    return Url(text.strip().rstrip("/"))


def _read_filled(text: str) -> str:
    if not text:
        raise ValueError
    return text


_READERS: Final[Mapping[Any, Callable[[str], Any]]] = {
    str: _read_filled,
    int: _read_whole,
    float: _read_number,
    bool: _read_boolean,
    Path: lambda text: Path(_read_filled(text)).expanduser(),
    Seconds: _read_duration,
    Ratio: _read_ratio,
    Port: _read_port,
    Address: _read_address,
    Secret: Secret,
    BcryptHash: _read_bcrypt_hash,
    HeaderValue: _read_header_value,
    Url: _read_url,
}
_EXPECTATIONS: Final[Mapping[Any, str]] = {
    str: "text",
    int: "a whole number, 0 or more",
    float: "a number",
    bool: "on or off",
    Path: "a path",
    Seconds: "a duration such as 500ms, 15s or 5m, ten years at most",
    Ratio: "a share such as 0.98 or 98%",
    Port: "a port from 1 to 65535",
    Address: "HOST:PORT such as 127.0.0.1:9836",
    BcryptHash: "a bcrypt hash (htpasswd -nBC 10 '')",
    HeaderValue: "one line of printable ASCII",
    Url: "an address such as http://127.0.0.1:9093, without user, password and query",
}


def expected(kind: Any) -> str:
    """Return in words what a kind of value looks like."""
    if get_origin(kind) is Literal:
        return " or ".join(str(choice) for choice in get_args(kind))
    return _EXPECTATIONS.get(kind, "a value")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what to add to an error about an unknown name."""
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f", did you mean {match[0]!r}?" if match else f"; known keys: {', '.join(known)}"

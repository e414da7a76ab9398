"""Keyed hashes of what must be recognised again but not read: `user` and chosen headers."""

import hmac
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Final, Self

from ...settings.scalars import ConfigError
from ...settings.tracing import PrivacySettings

LEAST_KEY_BYTES: Final = 16
_log: Final = logging.getLogger("vllm_vitals")


class Hasher:
    """HMAC-SHA256 as hexadecimal text; without the key, nobody can find a value by trying all of them."""

    __slots__ = ("_digits", "_key")

    def __init__(self, key: bytes, digits: int = 16) -> None:
        """Take a key and the number of hexadecimal digits: 16 tell billions of values apart."""
        self._key = key
        self._digits = digits

    def hash(self, text: str) -> str:
        """Return the hash of a text; empty for an empty text."""
        if not text:
            return ""
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256").hex()[: self._digits]

    @classmethod
    def from_settings(cls, settings: PrivacySettings) -> Self:
        """Return the hasher with the key of `hash_key_file`, else with a random key; raises ConfigError."""
        if settings.hash_key_file is not None:
            return cls(read_key(settings.hash_key_file, "tracing.privacy.hash_key_file"))
        _log.info(
            "hashes of users and headers hold until this process ends; "
            "tracing.privacy.hash_key_file makes them comparable with others"
        )
        return cls(secrets.token_bytes(32))


def read_key(path: Path, place: str) -> bytes:
    """Return a key file's bytes without white space around them; raises ConfigError, warns when others may read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read(65536).strip()
    except OSError as error:
        raise ConfigError(f"{place}: expected a readable file, found {path}: {error.strerror}") from None
    if len(key) < LEAST_KEY_BYTES:
        raise ConfigError(
            f"{place}: expected at least {LEAST_KEY_BYTES} bytes (openssl rand -hex 32 > FILE), "
            f"found {len(key)} in {path}"
        )
    if mode & stat.S_IROTH:
        _log.warning("%s: %s is readable by everybody (mode %04o); chmod 600 it", place, path, mode)
    return key

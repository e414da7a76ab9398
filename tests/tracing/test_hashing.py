import hashlib
import hmac
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_vitals.settings.scalars import ConfigError
from vllm_vitals.settings.tracing import PrivacySettings
from vllm_vitals.tracing.audit.hashing import Hasher, read_key


@pytest.fixture
def key_file(tmp_path):
    def write(content, mode=0o600):
        path = tmp_path / "hash.key"
        path.write_bytes(content)
        path.chmod(mode)
        return path

    return write


def test_a_hash_is_the_beginning_of_hmac_sha256():
    full = hmac.new(b"k" * 32, b"alice", hashlib.sha256).hexdigest()
    assert Hasher(b"k" * 32).hash("alice") == full[:16]
    assert Hasher(b"k" * 32, digits=24).hash("alice") == full[:24]


def test_nothing_has_no_hash():
    assert Hasher(b"k" * 32).hash("") == ""


@given(st.text(min_size=1))
def test_any_text_has_a_hash_that_does_not_hold_it(text):
    assert len(Hasher(b"k" * 32).hash(text)) == 16


def test_the_same_key_file_gives_the_same_hashes(key_file):
    settings = PrivacySettings(hash_key_file=key_file(b"0123456789abcdef\n"))
    hashes = {Hasher.from_settings(settings).hash("alice") for _ in range(2)}
    assert hashes == {Hasher(b"0123456789abcdef").hash("alice")}, "white space around the key does not count"


def test_without_a_key_file_hashes_hold_for_this_process_and_it_is_said(caplog):
    caplog.set_level(logging.INFO, "vllm_vitals")
    first, second = (Hasher.from_settings(PrivacySettings()) for _ in range(2))
    assert first.hash("alice") == first.hash("alice") != second.hash("alice")
    assert "hash_key_file" in caplog.text


def test_a_short_key_is_refused(key_file):
    with pytest.raises(ConfigError, match=r"privacy.*at least 16 bytes.*found 15"):
        read_key(key_file(b"  0123456789abcde\n"), "privacy")


def test_a_missing_key_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_key(tmp_path / "none", "privacy")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_key_that_everybody_may_read_is_warned_of(key_file, caplog, mode, warned):
    read_key(key_file(b"0123456789abcdef", mode), "privacy")
    assert ("readable by everybody" in caplog.text) is warned

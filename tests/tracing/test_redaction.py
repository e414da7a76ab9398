import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_vitals.settings.scalars import ConfigError
from vllm_vitals.tracing.logs.redaction import KINDS, Redactor

ALL = Redactor(KINDS)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mail bob.smith+x@mail.example.co.uk now", "mail [email] now"),
        ("jörg@exämple.de", "[email]"),
        ("<a@b.io>,c@d.io", "<[email]>,[email]"),
        ("card 4111 1111 1111 1111.", "card [card]."),
        ("5500-0000-0000-0004", "[card]"),
        ("amex 3782 822463 10005", "amex [card]"),
        ("pan=4111111111111111,", "pan=[card],"),
        ("1234 4111 1111 1111 1111", "1234 [card]"),
        ("ssn 078-05-1120", "ssn [ssn]"),
        ("call +49 (0)30 1234-5678 today", "call [phone] today"),
        ("call +14155550123", "call [phone]"),
        ("call (415) 555-0123 or 415-555-0123", "call [phone] or [phone]"),
        ("Authorization: Bearer abc.def-ghi", "[bearer]"),
        ("bearer x", "[bearer]"),
        ("key sk-proj-abcdefgh12345678 used", "key [bearer] used"),
        ("hf_abcdefghijklmnop", "[bearer]"),
        ("AKIAIOSFODNN7EXAMPLE", "[bearer]"),
        ("non-default args: {'api_key': ['hush'], 'model': 'm'}", "non-default args: {'[bearer]'], 'model': 'm'}"),
        ("GET /x?api_key=hush&n=1", "GET /x?[bearer]&n=1"),
        ("Authorization: Basic dXNlcjpwYXNz", "[bearer]"),
    ],
)
def test_what_is_found_is_replaced_by_its_kind(text, redacted):
    assert ALL.text(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "prompt 12345678 tokens, 4096 cached, 128 256 1024",
        "at 1790000000123 and 1790000000123456789",  # epoch milliseconds, nanoseconds
        "2026-11-22T23:59:00.041Z",
        "11-22 23:59:00",
        "chatcmpl-5f0f4a5ac3b64f2e9a1b0c9d8e7f6a5b",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "550e8400-e29b-41d4-a716-446655440000",
        "127.0.0.1:8000 10.0.0.5:4242",
        "4111 1111 1111 1112",  # fails Luhn
        "0.4111111111111111",
        "666-12-1234 900-12-1234 000-12-1234",  # never issued
        "torch 2.13.0+cpu, +3 tokens, max_tokens=120000000",
        "user@host",
        "ask-me-anything about bearers",
    ],
)
def test_counts_ids_times_and_addresses_stay(text):
    assert ALL.text(text) == text


def test_only_what_was_asked_for_is_replaced():
    assert Redactor(["email"]).text("a@b.io 078-05-1120") == "[email] 078-05-1120"
    assert Redactor([]).text("a@b.io") == "a@b.io"


def test_own_patterns_have_their_own_name():
    redactor = Redactor([], {"ticket": r"TCK-\d+"})
    assert redactor.text("see TCK-12") == "see [ticket]"


@pytest.mark.parametrize(
    ("kinds", "patterns", "words"),
    [
        (["emial"], {}, "did you mean 'email'"),
        ([], {"x": "("}, "expected a regular expression"),
        ([], {"x": "a*"}, "matches nothing"),
        ([], {"a b": "x"}, "expected a name"),
    ],
)
def test_wrong_input_is_named(kinds, patterns, words):
    with pytest.raises(ConfigError, match=words):
        Redactor(kinds, patterns)


@given(st.text())
def test_no_text_makes_it_raise_and_twice_is_as_once_for_addresses(text):
    ALL.text(text)
    once = Redactor(["email"]).text(text)
    assert Redactor(["email"]).text(once) == once


@given(st.integers(10**11, 10**15 - 1), st.sampled_from("23456"))
def test_every_number_that_passes_the_check_is_a_card(number, first):
    digits = first + str(number)
    for check in "0123456789":
        doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[::-2])
        if (doubled + sum(int(digit) for digit in digits[-2::-2]) + int(check)) % 10 == 0:
            assert Redactor(["card"]).text(f"x {digits}{check} y") == "x [card] y"
        else:
            assert Redactor(["card"]).text(f"x {digits}{check} y") == f"x {digits}{check} y"


ADVERSARIAL = (
    "1-", "1 ", "+1", "1111 ", "a@", "a.", "a-", "@", "a@a.", "4111 1111 1111 1112 ", "(415) ", "bearer ", "api_key",
    "api_key=", "authorization: ", "sk-", "000-00-", "+1(", "1234-123456-", "\t", "9" * 50 + ".",
)  # fmt: skip


def test_a_long_text_of_anything_takes_linear_time():
    """A quadratic expression would need many minutes for these: the deadline is no measurement."""
    program = (
        "import sys; from vllm_vitals.tracing.logs.redaction import KINDS, Redactor\n"
        "for part in sys.argv[1:]: Redactor(KINDS).text(part * (250_000 // len(part)))"
    )
    subprocess.run([sys.executable, "-c", program, *ADVERSARIAL], check=True, timeout=60)

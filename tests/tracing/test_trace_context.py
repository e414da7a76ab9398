"""Callers' trace headers."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_vitals.tracing.request.trace_context import (
    clean_tracestate,
    format_traceparent,
    new_span_id,
    new_trace_id,
    parse_traceparent,
)

GOOD = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_good_header_is_read():
    assert parse_traceparent(GOOD) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True)


@pytest.mark.parametrize(("flags", "sampled"), [(b"00", False), (b"01", True), (b"02", False), (b"03", True)])
def test_only_the_first_flag_means_sampled(flags, sampled):
    assert parse_traceparent(GOOD[:-2] + flags).sampled is sampled


def test_a_later_version_may_say_more():
    assert parse_traceparent(b"01" + GOOD[2:] + b"-more") is not None


@pytest.mark.parametrize(
    "header",
    [
        b"", b"00", GOOD[:-1], GOOD + b"-more", GOOD + b"0", GOOD.upper(), b"ff" + GOOD[2:], b" " + GOOD, GOOD + b"\n",
        b"00-" + b"0" * 32 + GOOD[35:], GOOD[:36] + b"0" * 16 + b"-01", GOOD.replace(b"-", b"_"), b"\xff" * 55,
    ],
)  # fmt: skip
def test_anything_else_is_no_header(header):
    assert parse_traceparent(header) is None


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_we_write_we_read(trace_id, span_id, sampled):
    assert parse_traceparent(format_traceparent(trace_id, span_id, sampled=sampled)) == (trace_id, span_id, sampled)


@given(st.binary(max_size=600))
def test_whatever_comes_is_read_or_refused(header):
    parse_traceparent(header)
    state = clean_tracestate(header)
    assert len(state) <= 512
    assert "\n" not in state


def test_tracestate_is_passed_on_as_it_is():
    assert clean_tracestate(b"vendor=abc, other=1") == "vendor=abc, other=1"


def test_ids_differ_after_a_fork():
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, b"%032x%016x" % (new_trace_id(), new_span_id()))
        os._exit(0)
    os.wait()
    assert os.read(read, 64) != b"%032x%016x" % (new_trace_id(), new_span_id())
    os.close(read)
    os.close(write)

"""The hand-written encoder says what the official protobufs say."""

import contextlib
import math

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from support.otlp_receiver import attributes, value_of
from vllm_vitals.tracing.spans.otlp import (
    SCHEMA_URL,
    export_request,
    rejected_spans,
    resource_bytes,
    retry_delay,
    scope_bytes,
    span_bytes,
)
from vllm_vitals.tracing.spans.tree import Link, Span, SpanEvent

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)
DOUBLE = st.floats(allow_nan=False)
VALUE = TEXT | st.booleans() | INT64 | DOUBLE | st.lists(TEXT, max_size=4) | st.lists(INT64 | DOUBLE, max_size=4)
ATTRIBUTES = st.lists(st.tuples(TEXT, VALUE), max_size=8)
TIME = st.integers(0, 2**64 - 1)
TRACE_ID = st.integers(1, 2**128 - 1)
SPAN_ID = st.integers(1, 2**64 - 1)
SPANS = st.builds(
    Span,
    TRACE_ID,
    SPAN_ID,
    SPAN_ID | st.just(0),
    TEXT,
    st.integers(0, 5),
    TIME,
    TIME,
    ATTRIBUTES,
    st.integers(0, 2),
    TEXT,
    st.lists(st.builds(SpanEvent, TEXT, TIME, ATTRIBUTES), max_size=3),
    st.lists(st.builds(Link, TRACE_ID, SPAN_ID), max_size=2),
    TEXT,
    st.integers(0, 2**32 - 1),
)


def decoded(*spans, resource=None):
    data = export_request(resource_bytes(resource or {}), scope_bytes("s", "1"), map(span_bytes, spans))
    return ExportTraceServiceRequest.FromString(data).resource_spans[0]


def one(value):
    span = Span(1, 2, 0, "", 1, 0, 0, [("key", value)])
    return value_of(decoded(span).scope_spans[0].spans[0].attributes[0].value)


def same(found, expected):
    assert [pair.key for pair in found] == [key for key, _ in expected]
    for pair, (_, value) in zip(found, expected, strict=True):
        assert value_of(pair.value) == value
        kind = list if isinstance(value, list) else type(value)
        assert type(value_of(pair.value)) is kind


@given(st.lists(SPANS, max_size=4))
def test_every_field_of_a_span_reads_as_written(spans):
    found = decoded(*spans).scope_spans[0].spans
    for got, span in zip(found, spans, strict=True):
        assert int.from_bytes(got.trace_id) == span.trace_id
        assert len(got.trace_id) == 16
        assert int.from_bytes(got.span_id) == span.span_id
        assert len(got.span_id) == 8
        assert int.from_bytes(got.parent_span_id) == span.parent_span_id
        assert len(got.parent_span_id) in {0, 8}
        assert (got.name, got.kind, got.trace_state, got.flags) == (span.name, span.kind, span.tracestate, span.flags)
        assert (got.start_time_unix_nano, got.end_time_unix_nano) == (span.start_ns, span.end_ns)
        assert (got.status.code, got.status.message) == (span.status, span.message)
        same(got.attributes, span.attributes)
        for event, wanted in zip(got.events, span.events, strict=True):
            assert (event.name, event.time_unix_nano) == (wanted.name, wanted.time_ns)
            same(event.attributes, wanted.attributes)
        for link, wanted in zip(got.links, span.links, strict=True):
            assert (int.from_bytes(link.trace_id), int.from_bytes(link.span_id)) == wanted


@pytest.mark.parametrize("size", [0, 1, 63, 125, 126, 127, 128, 129, 4000, 4095, 4096, 16_383, 16_384, 3_000_000])
def test_strings_of_any_length_survive(size):
    assert one("x" * size) == "x" * size
    assert one(["x" * size]) == ["x" * size]
    span = Span(1, 2, 0, "", 1, 0, 0, [("k" * min(size, 1024), "v")])
    assert attributes(decoded(span).scope_spans[0].spans[0].attributes) == {"k" * min(size, 1024): "v"}


@pytest.mark.parametrize("number", [0, 1, 127, 128, 4095, 4096, 2**31, 2**63 - 1, -1, -(2**63)])
def test_integers_survive(number):
    assert one(number) == number


def test_what_no_int64_holds_becomes_text():
    assert one(2**63) == str(2**63)
    assert one(-(2**63) - 1) == str(-(2**63) - 1)


@pytest.mark.parametrize("number", [0.0, -0.0, 1e-300, math.inf, -math.inf])
def test_doubles_survive(number):
    assert math.copysign(1, one(number)) == math.copysign(1, number)
    assert one(number) == number


def test_not_a_number_stays_one():
    assert math.isnan(one(math.nan))


def test_true_is_not_one():
    assert one(True) is True
    assert one([True, 1, 1.0]) == [True, 1, 1.0]
    assert [type(item) for item in one([True, 1, 1.0])] == [bool, int, float]


def test_a_lone_surrogate_does_no_harm():
    assert one("a\udc80b") == "a?b"


def test_another_type_becomes_its_text():
    assert one({"a": 1}) == "{'a': 1}"
    assert one(type("Name", (str,), {})("sub")) == "sub"


def test_resource_scope_and_schema_stand_around_the_spans():
    found = decoded(resource={"service.name": "vllm", "process.pid": 12_345_678})
    assert attributes(found.resource.attributes) == {"service.name": "vllm", "process.pid": 12_345_678}
    assert (found.scope_spans[0].scope.name, found.scope_spans[0].scope.version) == ("s", "1")
    assert found.schema_url == found.scope_spans[0].schema_url == SCHEMA_URL


@given(st.integers(0, 2**63 - 1), st.text(max_size=20))
def test_a_partial_success_is_read(rejected, message):
    answer = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    )
    assert rejected_spans(answer.SerializeToString()) == rejected
    assert rejected_spans(b"") == 0


def test_a_negative_rejection_counts_for_none():
    answer = ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(rejected_spans=-3))
    assert rejected_spans(answer.SerializeToString()) == 0


@given(st.binary(max_size=60))
def test_garbage_as_an_answer_is_a_value_error_or_a_number(data):
    with contextlib.suppress(ValueError):
        assert rejected_spans(data) >= 0
    assert retry_delay(data) is None or retry_delay(data) >= 0


@given(st.integers(0, 10**6), st.integers(0, 999_999_999))
def test_the_delay_of_a_retry_info_is_read(seconds, nanos):
    def field(number, data):
        return bytes((number << 3 | 2, len(data))) + data

    duration = Duration(seconds=seconds, nanos=nanos).SerializeToString()
    info = Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=field(1, duration)).SerializeToString()
    other = Any(type_url="type.googleapis.com/google.rpc.DebugInfo", value=b"\xff\xff").SerializeToString()
    status = b"\x08\x08" + field(2, b"later")
    assert retry_delay(status + field(3, other) + field(3, info)) == pytest.approx(seconds + nanos / 1e9)
    assert retry_delay(status + field(3, other)) is None
    assert retry_delay(status) is None

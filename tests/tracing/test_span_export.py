"""Spans reach a real collector over gRPC and HTTP, and a sick collector costs spans, never the engine."""

import functools
import logging
import os
import time

import pytest
from support.certificates import Authority
from support.finished_requests import request, sequence
from support.http import free_port
from support.otlp_receiver import (
    GARBAGE,
    HANG,
    NOT_HTTP,
    RESET,
    Answer,
    OtlpReceiver,
    elapsed,
    partial,
    settled,
    status,
)
from support.span_sinks import SPANS, counts, sampled
from vllm_vitals.tracing.counters import EXPORT_FAILURES
from vllm_vitals.tracing.spans.buffer import BATCH_SPANS, SpanBuffer
from vllm_vitals.tracing.spans.export import SpanSink

BOTH = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])


@pytest.fixture
def sink_to(open_sink):
    return functools.partial(open_sink, SpanSink)


@BOTH
def test_spans_arrive_with_their_resource(receiver, sink_to, protocol):
    sink = sink_to(receiver.url(protocol), protocol)
    sink.take(sampled())
    found = receiver.wait_for(lambda spans: len(spans) == SPANS)
    assert {span.name for _, span in found} >= {"llm_request", "vllm.queue", "vllm.decode"}
    assert all(resource == {"service.name": "test", "process.pid": os.getpid()} for resource, _ in found)
    (call,) = receiver.calls
    assert call.protocol == protocol.partition("/")[0]
    assert receiver.broken == []
    settled(lambda: counts(sink) == (SPANS, 0, 0), "the count")


def test_http_goes_to_the_path_that_was_named(receiver, sink_to):
    sink = sink_to(f"http://127.0.0.1:{receiver.http_port}/tenant/traces?a=b", "http/protobuf")
    sink.take(sampled())
    assert receiver.wait_for_calls(1)[0].path == "/tenant/traces?a=b"


def test_an_unsampled_request_sends_nothing(receiver, sink_to):
    sink = sink_to(receiver.http_url, "http/protobuf")
    sink.take(request(sequence()))
    sink.take(sampled())
    sink.close(time.monotonic() + 5)
    assert len(receiver.spans()) == SPANS


@BOTH
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_headers_and_compression_are_as_asked_for(receiver, sink_to, protocol, compression):
    sink = sink_to(receiver.url(protocol), protocol, HEADERS="authorization=Bearer%20abc", COMPRESSION=compression)
    sink.take(sampled())
    (call,) = receiver.wait_for_calls(1)
    assert call.headers["authorization"] == "Bearer abc"
    assert call.headers["user-agent"].startswith("vllm-vitals/")
    if protocol != "grpc":
        assert call.headers["content-type"] == "application/x-protobuf"
        assert call.headers.get("content-encoding") == ("gzip" if compression == "gzip" else None)
    assert len(receiver.wait_for(lambda spans: spans)) == SPANS


@BOTH
def test_a_burst_goes_out_in_batches_over_one_connection(receiver, sink_to, protocol):
    sink = sink_to(receiver.url(protocol), protocol)
    for number in range(300):
        sink.take(sampled(number))
    sink.close(time.monotonic() + 10)
    assert len(receiver.spans()) == 300 * SPANS
    assert max(call.spans for call in receiver.calls) <= BATCH_SPANS
    assert len(receiver.calls) < 12
    assert counts(sink) == (300 * SPANS, 0, 0)


@BOTH
def test_tls_with_a_client_certificate(tmp_path, sink_to, protocol):
    authority = Authority(tmp_path)
    client = authority.issue("client", "engine", client=True)
    with OtlpReceiver(authority, client_certificates=True) as receiver:
        files = {"CERTIFICATE": authority.ca, "CLIENT_CERTIFICATE": client.cert, "CLIENT_KEY": client.key}
        sink_to(receiver.url(protocol), protocol, **files).take(sampled())
        receiver.wait_for(lambda spans: len(spans) == SPANS)


@BOTH
def test_a_collector_that_we_have_no_reason_to_trust_gets_nothing(tmp_path, sink_to, protocol, caplog):
    with OtlpReceiver(Authority(tmp_path / "theirs")) as receiver:
        sink = sink_to(receiver.url(protocol), protocol, CERTIFICATE=Authority(tmp_path / "ours").ca)
        sink.take(sampled())
        settled(lambda: sink._counters.total(EXPORT_FAILURES) > 0, "a failure")
        assert receiver.calls == []


@BOTH
@pytest.mark.parametrize("sick", [status(503), RESET])
def test_what_may_pass_is_tried_again(receiver, sink_to, protocol, sick):
    receiver.answers = [sick, Answer()]
    sink = sink_to(receiver.url(protocol), protocol)
    sink.take(sampled())
    receiver.wait_for(lambda spans: len(spans) == SPANS)
    settled(lambda: counts(sink) == (SPANS, 0, 0), "the count")
    assert sink._counters.total(EXPORT_FAILURES) == 1


@BOTH
@pytest.mark.parametrize("code", [503, 429])
def test_the_collector_says_when_to_come_again(receiver, sink_to, protocol, code):
    receiver.answers = [status(code, retry_after=1), Answer()]
    sink = sink_to(receiver.url(protocol), protocol)
    sink.take(sampled())
    first, second = receiver.wait_for_calls(2)
    assert second.at - first.at >= 0.99


@BOTH
@pytest.mark.parametrize("code", [400, 401])
def test_a_refusal_is_not_repeated(receiver, sink_to, protocol, code):
    receiver.answers = [status(code), Answer()]
    sink = sink_to(receiver.url(protocol), protocol)
    sink.take(sampled(1))
    settled(lambda: counts(sink) == (0, SPANS, 0), "the count")
    sink.take(sampled(2))
    found = receiver.wait_for(lambda spans: spans)
    assert {int.from_bytes(span.trace_id) for _, span in found} == {0xABC2}
    assert len(receiver.calls) == 2


def test_exhausted_without_a_time_is_a_refusal_in_grpc(receiver, sink_to):
    receiver.answers = [status(429)]
    sink = sink_to(receiver.grpc_url, "grpc")
    sink.take(sampled())
    settled(lambda: counts(sink) == (0, SPANS, 0), "the count")


@BOTH
def test_rejected_spans_of_a_partial_success_are_counted(receiver, sink_to, protocol):
    receiver.answers = [partial(2)]
    sink = sink_to(receiver.url(protocol), protocol)
    sink.take(sampled())
    settled(lambda: counts(sink) == (SPANS - 2, 2, 0), "the count")
    assert len(receiver.calls) == 1


@pytest.mark.parametrize(("protocol", "sick"), [("grpc", GARBAGE), ("http/protobuf", GARBAGE)])
def test_a_success_that_is_not_otlp_is_none(receiver, sink_to, protocol, sick):
    receiver.answers = [sick]
    sink = sink_to(receiver.url(protocol), protocol)
    sink.take(sampled())
    settled(lambda: counts(sink) == (0, SPANS, 0), "the count")


def test_an_answer_that_is_not_http_is_tried_again(receiver, sink_to):
    receiver.answers = [NOT_HTTP, Answer()]
    sink = sink_to(receiver.http_url, "http/protobuf")
    sink.take(sampled())
    receiver.wait_for(lambda spans: len(spans) == SPANS)


def test_an_answer_in_json_is_one(receiver, sink_to):
    receiver.answers = [Answer(body=b'{"partialSuccess":{}}', content_type="application/json; charset=utf-8")]
    sink = sink_to(receiver.http_url, "http/protobuf")
    sink.take(sampled())
    settled(lambda: counts(sink) == (SPANS, 0, 0), "the count")


def test_a_redirect_is_not_followed(receiver, sink_to):
    receiver.answers = [Answer(307)]
    sink = sink_to(receiver.http_url, "http/protobuf", HEADERS="authorization=secret")
    sink.take(sampled())
    settled(lambda: counts(sink) == (0, SPANS, 0), "the count")


@BOTH
def test_one_call_takes_no_longer_than_its_timeout(receiver, sink_to, protocol):
    receiver.answers = [HANG, Answer()]
    sink = sink_to(receiver.url(protocol), protocol, TIMEOUT=300)
    sink.take(sampled())
    receiver.wait_for(lambda spans: len(spans) == SPANS, 10)


def test_a_collector_that_answers_byte_by_byte_does_not_hold_the_call(sink_to):
    from support.faulty_server import FaultyServer, drip

    with FaultyServer(v1=drip(b"x" * 100_000, seconds=0.02)) as server:
        sink = sink_to(f"{server.url}/v1/traces", "http/protobuf", TIMEOUT=500)
        sink.take(sampled())
        settled(lambda: sink._counters.total(EXPORT_FAILURES) > 0, "the end of the call", 5)


@BOTH
def test_a_collector_that_comes_late_gets_what_waited(sink_to, protocol):
    port = free_port()
    where = f"http://127.0.0.1:{port}" + ("" if protocol == "grpc" else "/v1/traces")
    sink = sink_to(where, protocol)
    for number in range(20):
        sink.take(sampled(number))
    settled(lambda: sink._counters.total(EXPORT_FAILURES) > 0, "a failure")
    ports = {"grpc_port": port} if protocol == "grpc" else {"http_port": port}
    with OtlpReceiver(**ports) as receiver:
        receiver.wait_for(lambda spans: len(spans) == 20 * SPANS)


@BOTH
@pytest.mark.parametrize("sick", ["down", "hang", "reset"])
def test_a_sick_collector_costs_the_oldest_spans_and_no_memory(receiver, sink_to, protocol, sick):
    receiver.answers = [RESET if sick == "reset" else HANG]
    port = free_port()
    url = receiver.url(protocol) if sick != "down" else f"http://127.0.0.1:{port}/v1/traces"
    sink = sink_to(url, protocol, queue=100)
    for number in range(500):
        sink.take(sampled(number))
        assert sink.waiting <= 100 + BATCH_SPANS
    emitted, failed, dropped = counts(sink)
    assert (emitted, failed) == (0, 0)
    assert dropped + sink.waiting == 500 * SPANS
    assert dropped > 0


@BOTH
def test_close_brings_out_what_is_left(receiver, sink_to, protocol):
    sink = sink_to(receiver.url(protocol), protocol)
    for number in range(20):
        sink.take(sampled(number))
    sink.close(time.monotonic() + 5)
    assert len(receiver.spans()) == 20 * SPANS
    assert counts(sink) == (20 * SPANS, 0, 0)
    sink.take(sampled())
    assert counts(sink) == (20 * SPANS, 0, SPANS)


@BOTH
@pytest.mark.parametrize("sick", ["down", "hang", "reset"])
def test_close_keeps_its_deadline_and_every_span_is_accounted_for(receiver, sink_to, protocol, sick):
    receiver.answers = [HANG]
    url = receiver.url(protocol) if sick == "hang" else f"http://127.0.0.1:{free_port()}/v1/traces"
    sink = sink_to(url, protocol)
    for number in range(300):
        sink.take(sampled(number))
    if sick == "hang":
        receiver.wait_for_calls(1)
    assert elapsed(lambda: sink.close(time.monotonic() + 0.8)) < 5  # a call may take 10
    assert counts(sink) == (0, 0, 300 * SPANS)


@BOTH
def test_close_does_not_wait_for_a_collector_that_fails_now(receiver, sink_to, protocol):
    receiver.answers = [status(503)]
    sink = sink_to(receiver.url(protocol), protocol)
    for number in range(300):
        sink.take(sampled(number))
    assert elapsed(lambda: sink.close(time.monotonic() + 60)) < 20
    assert counts(sink) == (0, 0, 300 * SPANS)


def test_a_kept_connection_that_the_collector_closed_is_no_failure(receiver, sink_to):
    sink = sink_to(receiver.http_url, "http/protobuf")
    sink.take(sampled(1))
    settled(lambda: counts(sink) == (SPANS, 0, 0), "the first count")
    receiver.drop()
    sink.take(sampled(2))
    settled(lambda: counts(sink) == (2 * SPANS, 0, 0), "the second count")
    assert sink._counters.total(EXPORT_FAILURES) == 0


def test_trouble_is_logged_once_and_its_end_once_and_no_secret_ever(receiver, sink_to, caplog):
    receiver.answers = [status(503), status(503), Answer()]
    url = receiver.http_url.replace("http://", "http://user:s3cret@") + "?token=s3cret"
    sink = sink_to(url, "http/protobuf", HEADERS="x-key=s3cret")
    with caplog.at_level(logging.DEBUG, "vllm_vitals"):
        sink.take(sampled())
        receiver.wait_for(lambda spans: spans)
        settled(lambda: len(caplog.records) == 2, "both lines")
    went, came = (record.getMessage() for record in caplog.records)
    assert went == f"the collector {receiver.http_url} does not take spans: HTTP 503"
    assert came == f"the collector {receiver.http_url} takes spans again"
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert receiver.calls[0].headers["authorization"].startswith("Basic ")
    assert "s3cret" not in caplog.text


def test_an_unreadable_certificate_is_said_and_spans_are_dropped(receiver, sink_to, tmp_path, caplog):
    (tmp_path / "ca.pem").write_text("no certificate")
    sink = sink_to(receiver.http_url.replace("http:", "https:"), "http/protobuf", CERTIFICATE=tmp_path / "ca.pem")
    sink.take(sampled())
    settled(lambda: counts(sink) == (0, 0, SPANS), "the drop")
    assert "no spans any more: SSLError" in caplog.text


def test_a_forked_process_neither_sends_nor_closes(receiver, sink_to):
    sink = sink_to(receiver.http_url, "http/protobuf")
    if (pid := os.fork()) == 0:
        sink.take(sampled(7))
        sink.close(time.monotonic() + 5)
        os._exit(0 if sink._thread is None and not sink._buffer.spans else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    sink.take(sampled(8))
    sink.close(time.monotonic() + 5)
    assert {int.from_bytes(span.trace_id) for _, span in receiver.spans()} == {0xABC8}


def test_the_buffer_drops_whole_pieces_oldest_first():
    buffer = SpanBuffer(max_spans=10, max_bytes=1000)
    assert [buffer.add([bytes([65 + number])] * 4) for number in range(4)] == [0, 0, 4, 4]
    assert buffer.take() == (8, [b"CCCC", b"DDDD"])
    assert (buffer.spans, buffer.bytes) == (0, 0)
    assert buffer.add([b"x" * 600] * 2) == 2  # alone too large
    assert buffer.take() == (0, [])

"""Two API servers before two engines: every process traces its share, and any of them tells the sum."""

from collections import Counter

import pytest
from support.calls import completion
from support.exposition import series
from support.fixtures import CACHE
from support.http import get
from support.otlp_receiver import OtlpReceiver
from support.traced_traffic import Traffic
from support.traced_vllm import TracedVllm
from support.waiting import wait_for

REQUESTS = 24


@pytest.fixture(scope="module")
def receiver():
    """An OTLP receiver."""
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def server(receiver):
    """Eight processes of one vLLM."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_url.removesuffix("/v1/traces")}
    server = TracedVllm(CACHE, "--data-parallel-size", "2", "--api-server-count", "2", environment=environment)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def test_every_request_of_every_process_is_told_once(server, receiver):
    traffic = Traffic(server.url)
    traffic.crowd(REQUESTS, max_tokens=30)
    wait_for(lambda: len(server.request_lines()) >= REQUESTS, "a line of each request")
    lines = server.request_lines()
    assert Counter(line["request_id"] for line in lines) == dict.fromkeys(traffic.sent, 1)
    assert {line["engine_index"] for line in lines} == {0, 1}
    assert len({line["process.pid"] for line in lines}) == 2
    traces = {line["trace.id"] for line in lines}
    receiver.wait_for(lambda spans: {s.trace_id.hex() for _, s in spans if s.name == "vllm.decode"} == traces)

    def total():
        page = series(get(f"{server.url}/metrics/requests").text)
        return sum(value for (name, _), value in page.items() if name == "vllm_vitals_requests_total")

    for _ in range(4):  # whichever process answers
        wait_for(lambda: total() == REQUESTS, "the sum of all processes")
    page = get(f"{server.url}/metrics/requests").text
    assert "vllm_vitals_tracing_info" in page
    assert "vllm_vitals_tracing_info" not in server.page()


def test_all_processes_bring_out_what_they_have_when_the_server_stops(server, receiver):
    traffic = Traffic(server.url)
    receiver.clear()
    traffic.send("last", "/v1/completions", completion(), {"traceparent": f"00-{0xF1:032x}-{0xAA:016x}-01"})
    server.interrupt(seconds=90)
    names = {span.name for _, span in receiver.spans() if span.trace_id.hex() == f"{0xF1:032x}"}
    assert names >= {"POST /v1/completions", "llm_request", "vllm.decode"}
    assert "last" in {line["request_id"] for line in server.request_lines()}

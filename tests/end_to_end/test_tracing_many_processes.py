"""Two API servers before two engines: every process traces its share, and any of them tells the sum.

What they trace passes a real collector.
"""

from collections import Counter

import pytest
from support.calls import completion
from support.collectors import KINDS, Collector
from support.exposition import series
from support.fixtures import CACHE
from support.http import get
from support.otlp_receiver import OtlpReceiver
from support.traced_traffic import Traffic
from support.traced_vllm import TracedVllm
from support.waiting import wait_for


@pytest.fixture(scope="module")
def receiver():
    """An OTLP receiver."""
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def collector(receiver, tmp_path_factory):
    """A collector before the receiver."""
    program = Collector(KINDS[0], receiver.grpc_url, tmp_path_factory.mktemp("collector"))
    yield program
    program.stop()


@pytest.fixture(scope="module")
def server(collector):
    """Eight processes of one vLLM."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "VLLM_VITALS_TRACING_EXPORT": "process",
    }
    server = TracedVllm(CACHE, "--data-parallel-size", "2", "--api-server-count", "2", environment=environment)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def test_every_request_of_every_process_is_told_once(server, receiver):
    traffic = Traffic(server.url)

    def both_served():  # which process takes a connection is the kernel's choice
        for number in range(8):
            body = completion(prompt=f"{number}", max_tokens=3)
            traffic.send(f"one-{len(traffic.sent)}", "/v1/completions", body)
        return len({line["process.pid"] for line in server.request_lines()}) == 2

    traffic.crowd(12, max_tokens=30)
    wait_for(both_served, "requests in both processes", 60)
    wait_for(lambda: len(server.request_lines()) >= len(traffic.sent), "a line of each request")
    lines = server.request_lines()
    assert Counter(line["request_id"] for line in lines) == dict.fromkeys(traffic.sent, 1)
    assert {line["engine_index"] for line in lines} == {0, 1}
    traces = {line["trace.id"] for line in lines}
    receiver.wait_for(lambda spans: {s.trace_id.hex() for _, s in spans if s.name == "vllm.decode"} == traces)

    def total():
        page = series(get(f"{server.url}/metrics/requests").text)
        return sum(value for (name, _), value in page.items() if name == "vllm_vitals_requests_total")

    for _ in range(6):  # whichever process answers
        wait_for(lambda: total() == len(traffic.sent), "the sum of all processes")
    page = get(f"{server.url}/metrics/requests").text
    assert "vllm_vitals_tracing_info" in page
    assert "vllm_vitals_tracing_info" not in server.page()


def test_spans_survive_that_vllm_kills_its_api_servers(server, receiver):
    traffic = Traffic(server.url)
    traffic.send("last", "/v1/completions", completion(), {"traceparent": f"00-{0xF1:032x}-{0xAA:016x}-01"})
    wait_for(lambda: "last" in {line["request_id"] for line in server.request_lines()}, "the last line", pause=0.005)
    server.interrupt(seconds=90)  # with several API servers vLLM follows SIGTERM by SIGKILL at once
    receiver.wait_for(
        lambda spans: (
            {s.name for _, s in spans if s.trace_id.hex() == f"{0xF1:032x}"}
            >= {"POST /v1/completions", "llm_request", "vllm.decode"}
        )
    )

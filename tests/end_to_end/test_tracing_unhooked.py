"""A vLLM into which the hooks do not fit: phases come from durations, in both modes."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
from support.calls import chat, completion
from support.fixtures import CACHE
from support.otlp_receiver import OtlpReceiver, attributes
from support.traced_traffic import Traffic
from support.traced_vllm import TracedVllm
from support.waiting import wait_for

PHASES = ["vllm.ingress", "vllm.queue", "vllm.prefill", "vllm.decode"]
MILLISECOND = 1_000_000


@pytest.fixture(scope="module")
def servers():
    """One server for each mode, both with an OutputProcessor.add_request that looks different."""
    with OtlpReceiver() as own_receiver, OtlpReceiver() as alongside_receiver:
        environment = {"OTEL_BSP_SCHEDULE_DELAY": "300"}
        to_own = {**environment, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": own_receiver.grpc_url}
        own = TracedVllm(CACHE, environment=to_own, sabotage=("add_request",))
        flag = ("--otlp-traces-endpoint", alongside_receiver.grpc_url)
        alongside = TracedVllm(CACHE, *flag, environment=environment, sabotage=("add_request",))
        try:
            yield {
                "own": SimpleNamespace(server=own, receiver=own_receiver),
                "alongside": SimpleNamespace(server=alongside, receiver=alongside_receiver),
            }
        finally:
            own.stop()
            alongside.stop()


@pytest.fixture(scope="module", params=["own", "alongside"])
def seen(request, servers):
    """What came of three requests."""
    one = servers[request.param]
    one.server.wait_until_ready()
    traffic = Traffic(one.server.url)
    traffic.send("plain", "/v1/completions", completion())
    traffic.send("chat", "/v1/chat/completions", chat())
    traffic.send("stream", "/v1/chat/completions", chat(stream=True))
    wait_for(lambda: len(one.server.request_lines()) >= 3, "a line of each request", 30)
    lines = {line["request_id"]: line for line in one.server.request_lines()}
    traces = {line["trace.id"] for line in lines.values()}
    spans = one.receiver.wait_for(
        lambda spans: (
            traces <= {s.trace_id.hex() for _, s in spans if s.name == "vllm.decode"}
            and traces <= {s.trace_id.hex() for _, s in spans if s.name == "llm_request"}
            and traces <= {s.trace_id.hex() for _, s in spans if s.name.startswith("POST")}
        )
    )
    return SimpleNamespace(mode=request.param, lines=lines, spans=[span for _, span in spans], server=one.server)


def test_each_sequence_has_its_phases_below_the_http_request(seen):
    for line in seen.lines.values():
        spans = [span for span in seen.spans if span.trace_id.hex() == line["trace.id"]]
        children = defaultdict(list)
        for span in spans:
            children[span.parent_span_id].append(span)
        (root,) = [span for span in spans if span.name.startswith("POST")]
        (sequence,) = children[root.span_id]
        assert sequence.name == "llm_request"
        parts = children[sequence.span_id]
        assert [part.name for part in parts if part.name != "vllm.egress"] == PHASES
        whole = sequence.end_time_unix_nano - sequence.start_time_unix_nano
        assert abs(whole - sum(p.end_time_unix_nano - p.start_time_unix_nano for p in parts)) < MILLISECOND
        assert any(attributes(span.attributes).get("vllm.clock") == "stacked" for span in [sequence, *parts])


def test_lines_say_that_times_come_from_durations(seen):
    for line in seen.lines.values():
        assert line["timing"] == "durations"
        assert line["output_tokens"] == 8
        assert line["decode_ms"] > 0
        assert line["status"] == 200


def test_what_is_missing_is_told_once(seen):
    told = [line["message"] for line in seen.server.lines() if "OutputProcessor.add_request" in line["message"]]
    assert len([text for text in told if "found the_request" in text]) == 1

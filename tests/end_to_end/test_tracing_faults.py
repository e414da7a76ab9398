"""A vLLM that does not fit, hooks that fail on every call, a collector that hangs: vLLM serves on."""

import time
from types import SimpleNamespace

import pytest
from support.calls import completion
from support.exposition import series, value
from support.fixtures import CACHE
from support.http import get
from support.otlp_receiver import HANG, OtlpReceiver
from support.traced_traffic import Traffic
from support.traced_vllm import TracedVllm
from support.waiting import wait_for

FINISHED = "OutputProcessor._update_stats_from_finished"


@pytest.fixture(scope="module")
def seen():
    """A sabotaged server after some traffic."""
    with OtlpReceiver() as receiver:
        receiver.answers[:] = [HANG]
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_url}
        server = TracedVllm(CACHE, environment=environment, sabotage=("abort_requests", "finish", "hold"))
        try:
            server.wait_until_ready()
            traffic = Traffic(server.url)
            for number in range(6):
                traffic.send(f"plain-{number}", "/v1/completions", completion())
            traffic.hang_up("hung-up", server, completion(stream=True, max_tokens=200))
            wait_for(lambda: len(server.request_lines()) >= 7, "a line of each request", 30)
            page = server.page()
            requests = series(get(f"{server.url}/metrics/requests").text)
            health = get(f"{server.url}/health").status
            receiver.wait_for_calls(1)
            output = server.output
            started = time.monotonic()
            server.interrupt(seconds=60)
            yield SimpleNamespace(
                sent=traffic.sent, page=page, requests=requests, server=server, health=health, output=output,
                seconds_to_stop=time.monotonic() - started,
            )  # fmt: skip
        finally:
            server.stop()


def test_vllm_serves_on(seen):
    assert [sent.reply.status for sent in seen.sent.values()] == [200] * 6 + [0]
    assert seen.health == 200
    assert "Traceback" not in seen.output


def test_a_stop_that_is_meant_is_no_engine_failure(seen):
    assert "[shutdown]" in seen.server.output
    assert "engine failure" not in seen.server.output


def test_the_hook_that_does_not_fit_is_told_once(seen):
    told = [line for line in seen.server.lines() if "OutputProcessor.abort_requests" in line["message"]]
    assert len(told) == 1
    assert told[0]["log.level"] == "warning"
    assert "expected the parameters request_ids, found whichever" in told[0]["message"]
    name = "vllm_vitals_tracing_hook_fallbacks_total"
    assert value(seen.page, name, hook="OutputProcessor.abort_requests") == 1


def test_the_hook_that_fails_is_counted_every_time_and_told_once(seen):
    assert value(seen.page, "vllm_vitals_tracing_hook_failures_total", hook=FINISHED) == 6
    assert len([line for line in seen.server.lines() if FINISHED in line["message"]]) == 1


def test_requests_are_told_as_far_as_they_are_known(seen):
    lines = {line["request_id"]: line for line in seen.server.request_lines()}
    assert lines.keys() == seen.sent.keys()
    assert lines["plain-0"]["status"] == 200
    assert "output_tokens" not in lines["plain-0"]
    assert lines["hung-up"]["outcome"] == "disconnected"


def test_a_hanging_collector_does_not_keep_the_server_from_stopping(seen):
    # vLLM itself takes seconds to stop its engine; 2 s of ours are allowed on top of what it needs.
    assert seen.seconds_to_stop < 30

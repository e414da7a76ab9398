"""A real vLLM whose own tracing is on and whose statistics are off: what kills it without the plugin, works with it."""

import threading
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from support.calls import completion, post
from support.fixtures import CACHE
from support.http import get
from support.otlp_receiver import OtlpReceiver, attributes
from support.traced_traffic import Traffic
from support.traced_vllm import TracedVllm
from support.vllm_server import VllmServer
from support.waiting import wait_for
from vllm_vitals.tracing.fatal.watch import fatal_counts

PHASES = ["vllm.ingress", "vllm.queue", "vllm.prefill", "vllm.decode"]
MILLISECOND = 1_000_000
FINISHED = {"plain", "chat", "stream", "usage", "siblings", "two-prompts", "one-token", "prefix-0", "malformed"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """vLLM with and without the plugin, both told to trace and to keep no statistics."""
    state = tmp_path_factory.mktemp("state")
    with OtlpReceiver() as receiver, OtlpReceiver() as other:
        environment = {"OTEL_BSP_SCHEDULE_DELAY": "300", "VLLM_VITALS_STATE_DIR": str(state)}
        flags = ("--disable-log-stats", "--otlp-traces-endpoint")
        traced = TracedVllm(CACHE, *flags, receiver.grpc_url, environment=environment, sabotage=("hold",))
        native = VllmServer(CACHE, *flags, other.grpc_url, environment=environment)
        try:
            traced.wait_until_ready()
            yield SimpleNamespace(traced=traced, native=native, receiver=receiver, state=state)
        finally:
            traced.stop()
            native.stop()


@pytest.fixture(scope="module")
def seen(servers):
    """What came of traffic of every kind."""
    traffic = Traffic(servers.traced.url)
    traffic.every_kind(servers.traced)
    names = {*traffic.sent}
    wait_for(lambda: names <= {line["request_id"] for line in servers.traced.request_lines()}, "a line of each request")
    lines = {line["request_id"]: line for line in servers.traced.request_lines()}
    wanted = {lines[name]["trace.id"] for name in names - {"unsampled"}}
    finished = {lines[name]["trace.id"] for name in FINISHED}
    servers.receiver.wait_for(
        lambda spans: (
            wanted <= {span.trace_id.hex() for _, span in spans if span.name.startswith("POST")}
            and finished <= {span.trace_id.hex() for resource, span in spans if is_native(resource, span)}
            and finished <= {span.trace_id.hex() for _, span in spans if span.name == "vllm.prefill"}
        )
    )
    return SimpleNamespace(sent=traffic.sent, lines=lines, spans=servers.receiver.spans())


def is_native(resource, span):
    return span.name == "llm_request" and "vllm.instrumenting_module_name" in resource


def of_request(seen, name):
    """Return root, vLLM's own spans, ours of that name, and children by their parent's id."""
    spans = [(r, s) for r, s in seen.spans if s.trace_id.hex() == seen.lines[name]["trace.id"]]
    children = defaultdict(list)
    for _, span in spans:
        children[span.parent_span_id].append(span)
    (root,) = [span for _, span in spans if span.name.startswith("POST")]
    native = [span for resource, span in spans if is_native(resource, span)]
    ours = [span for resource, span in spans if span.name == "llm_request" and not is_native(resource, span)]
    return root, native, ours, children


def test_without_the_plugin_the_first_request_ends_the_server(servers):
    servers.native.wait_until_ready()
    post(servers.native.url, "/v1/completions", completion())  # its own answer is out before the assertion fails

    def is_lost():
        try:
            return get(f"{servers.native.url}/health").status == 503
        except OSError:
            return True

    wait_for(is_lost, "a lost server")


def test_with_the_plugin_it_lives_and_keeps_serving(servers, seen):
    assert get(f"{servers.traced.url}/health").status == 200
    assert post(servers.traced.url, "/v1/completions", completion()).status == 200
    assert "vllm:generation_tokens_total" in servers.traced.page()


def test_vllms_span_hangs_below_ours_and_nothing_is_emitted_twice(seen):
    for name in FINISHED:
        root, native, ours, _ = of_request(seen, name)
        assert len(native) == (2 if name in {"siblings", "two-prompts"} else 1), name
        assert ours == [], name
        assert {span.parent_span_id for span in native} == {root.span_id}, name
    assert max(Counter(span.span_id for _, span in seen.spans).values()) == 1


def test_vllms_span_gets_its_phases(seen):
    for name in FINISHED:
        _, native, _, children = of_request(seen, name)
        for span in native:
            parts = [child for child in children[span.span_id] if child.name != "vllm.egress"]
            assert [part.name for part in parts] == PHASES[: 3 if name == "one-token" else 4]
            for part in children[span.span_id]:
                assert span.start_time_unix_nano <= part.start_time_unix_nano
                assert part.end_time_unix_nano <= span.end_time_unix_nano
            whole = span.end_time_unix_nano - span.start_time_unix_nano
            summed = sum(c.end_time_unix_nano - c.start_time_unix_nano for c in children[span.span_id])
            assert abs(whole - summed) < MILLISECOND, name


def test_phases_are_as_long_as_vllm_says(seen):
    for name in FINISHED - {"siblings", "two-prompts"}:
        _, (span,), _, children = of_request(seen, name)
        told = attributes(span.attributes)
        lengths = {c.name: (c.end_time_unix_nano - c.start_time_unix_nano) / 1e9 for c in children[span.span_id]}
        assert lengths["vllm.queue"] == pytest.approx(told["gen_ai.latency.time_in_queue"], abs=1e-6)
        assert lengths["vllm.prefill"] == pytest.approx(told["gen_ai.latency.time_in_model_prefill"], abs=1e-6)
        if name != "one-token":
            assert lengths["vllm.decode"] == pytest.approx(told["gen_ai.latency.time_in_model_decode"], abs=1e-6)


def test_vllms_span_is_enriched(seen):
    _, (span,), _, _ = of_request(seen, "chat")
    told = attributes(span.attributes)
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert told["gen_ai.request.model"] == "tiny"
    assert told["gen_ai.request.temperature"] == 0
    assert told["gen_ai.usage.output_tokens"] == told["gen_ai.usage.completion_tokens"] == 8
    assert told["vllm.num_preemptions"] == 0


@pytest.mark.parametrize("name", ["hung-up-stream", "hung-up-plain"])
def test_what_vllm_forgets_is_ours(seen, name):
    root, native, ours, _ = of_request(seen, name)
    assert native == []
    assert [span.parent_span_id for span in ours] == [root.span_id]
    assert attributes(ours[0].attributes)["error.type"]


def test_an_unsampled_request_stays_without_spans(seen):
    assert seen.lines["unsampled"]["trace.sampled"] is False
    assert seen.lines["unsampled"]["trace.id"] not in {span.trace_id.hex() for _, span in seen.spans}


def test_start_up_spans_stay(seen):
    names = {span.name for _, span in seen.spans if span.kind == Span.SPAN_KIND_INTERNAL}
    assert any("init" in name.lower() or "load" in name.lower() for name in names - {*PHASES}), names


def test_the_page_says_which_mode_is_active(servers):
    assert 'mode="alongside"' in servers.traced.page()


def test_an_engine_that_dies_names_the_requests_that_it_takes_along(servers, seen):
    server = servers.traced
    core = server.engine_core()
    traffic = Traffic(server.url)
    long = completion(max_tokens=900, n=8, temperature=1)  # much longer than it takes to see that they run
    threads = [
        threading.Thread(target=traffic.send, args=(f"lost-{n}", "/v1/completions", long), daemon=True)
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: 'vllm:num_requests_running{engine="0",model_name="tiny"} 24.0' in server.page(), "all at work")
    core.kill()
    wait_for(lambda: {line["request_id"] for line in server.request_lines()} >= {"lost-0", "lost-1", "lost-2"}, "lines")
    for line in server.request_lines():
        if line["request_id"].startswith("lost-"):
            assert (line["outcome"], line["error.type"]) == ("server_error", "EngineDeadError")
            assert line["output_tokens"] > 0
    told = wait_for(lambda: [one for one in server.lines() if one["log.logger"] == "vllm_vitals.fatal"], "the death")
    assert len(told) == 1
    assert {"lost-0", "lost-1", "lost-2"} <= {*told[0]["request_ids"]}
    assert fatal_counts(servers.state)["engine_dead"] == 1
    traces = {line["trace.id"] for line in server.request_lines() if line["request_id"].startswith("lost-")}
    servers.receiver.wait_for(
        lambda spans: traces <= {s.trace_id.hex() for _, s in spans if s.name == "llm_request" and s.status.code == 2}
    )

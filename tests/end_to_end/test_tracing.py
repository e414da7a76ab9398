"""A real vLLM with the plugin, mode `own`: every request has its spans and its line, and the sums are exact."""

import json
import subprocess
from collections import defaultdict
from types import SimpleNamespace

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from support.calls import completion
from support.exposition import series
from support.fixtures import CACHE
from support.otlp_receiver import OtlpReceiver, attributes
from support.programs import VITALS
from support.traced_traffic import SAMPLED, Traffic
from support.traced_vllm import TracedVllm
from support.waiting import wait_for

SMALL_CACHE = ("--block-size", "32", "--num-gpu-blocks-override", "24", "--max-model-len", "512")
PHASES = ["vllm.ingress", "vllm.queue", "vllm.prefill", "vllm.decode"]
MILLISECOND = 1_000_000
LAST_TRACE = 0xF1  # of the request just before the server stops


@pytest.fixture(scope="module", params=["thread", "process"])
def seen(tmp_path_factory, request):
    """What receiver, log and metrics page say after traffic of every kind."""
    folder = tmp_path_factory.mktemp("traced")
    config = subprocess.run([VITALS, "logging-config"], check=True, capture_output=True, text=True).stdout
    (folder / "logging.json").write_text(config)
    (folder / "audit.key").write_text("0123456789abcdef0123456789abcdef\n")
    (folder / "vitals.yaml").write_text(
        f"tracing:\n  export: {request.param}\n  audit: {{file: {folder}/audit.jsonl, key_file: {folder}/audit.key}}\n"
        "  privacy: {hash_headers: [authorization]}\n"
    )
    with OtlpReceiver() as receiver:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_url,
            "OTEL_SERVICE_NAME": "tiny-service",
            "VLLM_LOGGING_CONFIG_PATH": str(folder / "logging.json"),
            "VLLM_VITALS_CONFIG": str(folder / "vitals.yaml"),
            "VLLM_VITALS_STATE_DIR": str(folder),
        }
        server = TracedVllm(CACHE, *SMALL_CACHE, environment=environment, sabotage=("hold",))
        try:
            server.wait_until_ready()
            traffic = Traffic(server.url)
            traffic.every_kind(server)
            traffic.crowd()
            names = {*traffic.sent}
            wait_for(lambda: names <= {line["request_id"] for line in server.request_lines()}, "a line of each request")
            page = wait_for(lambda: quiet(server), "an engine without work")
            lines = {line["request_id"]: line for line in server.request_lines()}
            wanted = {name for name in names if lines[name]["trace.sampled"]}
            roots = {int(lines[name]["trace.id"], 16) for name in wanted}
            receiver.wait_for(lambda spans: roots <= {trace_of(span) for _, span in spans if span.kind == 2})
            requests = wait_for(lambda: told(server, len(names)), "the metrics of each request")
            lines_before = [*server.request_lines()]
            traffic.send("last", "/v1/completions", completion(), {"traceparent": SAMPLED.format(LAST_TRACE)})
            assert server.interrupt(seconds=60) in {0, -2, 130}
        finally:
            server.stop()
        yield SimpleNamespace(
            sent={name: sent for name, sent in traffic.sent.items() if name != "last"},
            lines=lines,
            all_lines=lines_before,
            last_line=server.request_lines()[-1],
            output=server.output,
            page=series(page),
            requests=requests,
            export=request.param,
            pid=server.process.pid,
            spans=[span for _, span in receiver.spans()],
            resources=[resource for resource, _ in receiver.spans()],
            folder=folder,
        )


def server_page(server, path):
    from support.http import get

    answer = get(f"{server.url}{path}")
    assert answer.status == 200
    return answer.text


def quiet(server):
    """Return the page of an engine that works on nothing."""
    page = server.page()
    found = series(page)
    busy = [v for (name, _), v in found.items() if name in {"vllm:num_requests_running", "vllm:num_requests_waiting"}]
    return page if not any(busy) else None


def told(server, number):
    """Return the request metrics of a number of requests or more; they follow within a second or two."""
    page = series(server_page(server, "/metrics/requests"))
    return page if total(page, "vllm_vitals_requests_total") >= number else None


def trace_of(span):
    return int.from_bytes(span.trace_id, "big")


def total(page, name):
    return sum(value for (found, _), value in page.items() if found == name)


def of_request(seen, name):
    """Return a request's spans: root, sequences, and children by their parent's id."""
    trace = int(seen.lines[name]["trace.id"], 16)
    spans = [span for span in seen.spans if trace_of(span) == trace]
    children = defaultdict(list)
    for span in spans:
        children[span.parent_span_id].append(span)
    roots = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert len(roots) == 1, name
    return roots[0], children[roots[0].span_id], children


def sampled(seen):
    return [name for name in seen.sent if seen.lines[name]["trace.sampled"]]


def test_every_request_has_exactly_one_line(seen):
    ids = [line["request_id"] for line in seen.all_lines]
    assert sorted(ids) == sorted(seen.sent)


def test_every_request_has_its_trace_under_the_ids_of_its_line(seen):
    assert {*seen.sent} - {*sampled(seen)} == {"unsampled"}
    for name in sampled(seen):
        root, _, _ = of_request(seen, name)
        assert root.span_id.hex() == seen.lines[name]["span.id"], name
        assert root.name == f"POST {seen.sent[name].path}"
    quiet_trace = int(seen.lines["unsampled"]["trace.id"], 16)
    assert quiet_trace == 0xB1
    assert quiet_trace not in {trace_of(span) for span in seen.spans}


def test_the_callers_trace_goes_on(seen):
    root, _, _ = of_request(seen, "plain")
    assert trace_of(root) == 0xA1
    assert root.parent_span_id.hex() == "00000000000000aa"
    assert root.trace_state == "k=v"
    assert of_request(seen, "malformed")[0].parent_span_id == b""


def test_the_request_id_goes_in_and_out_and_is_the_engines(seen):
    for name, sent in seen.sent.items():
        if sent.reply.status:
            assert sent.reply.headers["x-request-id"] == name
    for name in ("plain", "chat"):
        _, (sequence,), _ = of_request(seen, name)
        response_id = attributes(sequence.attributes)["gen_ai.response.id"]
        assert response_id == seen.sent[name].reply.json["id"] + ("-0" if name == "plain" else "")
        assert name in response_id


def test_children_lie_inside_their_parent_and_sum_to_it(seen):
    measured = 0
    for name in sampled(seen):
        root, sequences, children = of_request(seen, name)
        for sequence in sequences:
            assert root.start_time_unix_nano <= sequence.start_time_unix_nano + MILLISECOND, name
            phases = [span for span in children[sequence.span_id] if span.name in PHASES]
            assert [span.name for span in phases] == PHASES[: len(phases)], name
            if not phases:
                assert name.startswith("hung-up"), name
                continue
            for span in phases:
                assert sequence.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
                assert span.end_time_unix_nano <= sequence.end_time_unix_nano
                for inner in children[span.span_id]:
                    assert span.start_time_unix_nano <= inner.start_time_unix_nano <= inner.end_time_unix_nano
                    assert inner.end_time_unix_nano <= span.end_time_unix_nano
            whole = sequence.end_time_unix_nano - sequence.start_time_unix_nano
            parts = sum(span.end_time_unix_nano - span.start_time_unix_nano for span in phases)
            assert abs(whole - parts) < MILLISECOND, name
            measured += 1
    assert measured > 20


def test_one_token_needs_no_decode(seen):
    _, (sequence,), children = of_request(seen, "one-token")
    assert [span.name for span in children[sequence.span_id]] == PHASES[:3]


def test_every_preemption_has_its_span(seen):
    counted = total(seen.page, "vllm:num_preemptions_total")
    spans = [span for span in seen.spans if span.name == "vllm.preempted"]
    assert counted > 0
    assert len(spans) == counted
    assert all(span.end_time_unix_nano > span.start_time_unix_nano for span in spans)
    assert sum(line.get("preemptions", 0) for line in seen.all_lines) == counted


def test_siblings_have_their_indexes(seen):
    _, sequences, _ = of_request(seen, "siblings")
    assert sorted(attributes(span.attributes)["vllm.sequence.index"] for span in sequences) == [0, 1]
    assert {attributes(span.attributes)["gen_ai.request.choice.count"] for span in sequences} == {2}
    assert len(of_request(seen, "two-prompts")[1]) == 2


def test_token_counts_of_lines_spans_and_counters_reconcile_exactly(seen):
    lines = seen.all_lines
    assert sum(line.get("output_tokens", 0) for line in lines) == total(seen.page, "vllm:generation_tokens_total")
    prefilled = [line for line in lines if "ttft_ms" in line]
    assert sum(line["input_tokens"] for line in prefilled) == total(seen.page, "vllm:prompt_tokens_total")
    cached = sum(line["cached_tokens"] for line in prefilled)
    assert cached == total(seen.page, "vllm:prompt_tokens_cached_total") > 0
    by_trace = defaultdict(int)
    for span in seen.spans:
        if span.name == "llm_request" and trace_of(span) != LAST_TRACE:
            by_trace[f"{trace_of(span):032x}"] += attributes(span.attributes).get("gen_ai.usage.output_tokens", 0)
    assert by_trace == {
        line["trace.id"]: line["output_tokens"] for line in lines if "output_tokens" in line and line["trace.sampled"]
    }
    assert total(seen.requests, "vllm_vitals_request_output_tokens_total") == total(
        seen.page, "vllm:generation_tokens_total"
    )


def test_prefix_cache_hits_are_told(seen):
    assert seen.lines["prefix-0"]["cache_hit"] is False
    for name in ("prefix-1", "prefix-2"):
        assert seen.lines[name]["cache_hit"] is True
        _, (sequence,), _ = of_request(seen, name)
        tokens = attributes(sequence.attributes)["gen_ai.usage.cache_read.input_tokens"]
        assert tokens == seen.lines[name]["cached_tokens"] > 0


@pytest.mark.parametrize("name", ["hung-up-stream", "hung-up-plain"])
def test_callers_that_hang_up_are_seen(seen, name):
    line = seen.lines[name]
    assert line["client_disconnect"] is True
    assert (line["outcome"], line["error.type"]) == ("disconnected", "disconnected")
    root, (sequence,), _ = of_request(seen, name)
    for span in (root, sequence):
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert attributes(span.attributes)["error.type"]
    assert line["finish_reason"] == "abort"
    assert 0 < line["output_tokens"] < 400


@pytest.mark.parametrize(("name", "status"), [("too-long", 400), ("no-model", 404), ("no-json", 400)])
def test_refused_requests_are_traced(seen, name, status):
    assert seen.sent[name].reply.status == status
    assert seen.lines[name]["status"] == status
    assert seen.lines[name]["outcome"] == "client_error"
    root, sequences, _ = of_request(seen, name)
    assert sequences == []
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert attributes(root.attributes)["error.type"] == str(status)
    assert attributes(root.attributes)["http.response.status_code"] == status


def test_the_model_asked_for_is_told_even_when_there_is_none(seen):
    assert seen.lines["no-model"]["model"] == "unknown"
    assert seen.lines["plain"]["model"] == "tiny"


def test_sessions_and_users(seen):
    assert seen.lines["chat"]["session_id"] == "session-1"
    assert seen.lines["stream"]["session_id"] == "session-2"
    _, (sequence,), _ = of_request(seen, "chat")
    assert attributes(sequence.attributes)["gen_ai.conversation.id"] == "session-1"
    assert len(seen.lines["chat"]["user.hash"]) == 16
    assert "mary@example.org" not in seen.output


def test_times_of_the_line_are_those_of_the_spans(seen):
    for name in ("plain", "stream", "crowd-3"):
        _, (sequence,), children = of_request(seen, name)
        line = seen.lines[name]
        for span in children[sequence.span_id]:
            field = {"vllm.ingress": "ingress_ms", "vllm.queue": "queue_ms", "vllm.prefill": "prefill_ms"}.get(
                span.name
            )
            if field:
                milliseconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
                assert line[field] == pytest.approx(milliseconds, abs=0.01)
        assert line["e2e_ms"] >= line["ttft_ms"] + line["decode_ms"] - 1
        assert line["queue_ms"] <= line["ttft_ms"]


def test_current_names_are_used_and_temperature_0_is_not_lost(seen):
    _, (sequence,), _ = of_request(seen, "chat")
    found = attributes(sequence.attributes)
    assert found["gen_ai.provider.name"] == "vllm"
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == "tiny"
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    assert found["gen_ai.request.temperature"] == 0
    assert found["gen_ai.request.max_tokens"] == 8
    assert found["gen_ai.usage.input_tokens"] == seen.sent["chat"].reply.json["usage"]["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == 8
    assert not any("prompt" in name or "messages" in name for name in found)


def test_the_resource_names_the_service(seen):
    assert {resource["service.name"] for resource in seen.resources} == {"tiny-service"}


def test_lines_are_json_with_the_ids_of_the_request_that_they_are_about(seen):
    assert "The engine says" not in seen.output
    access = [
        json.loads(line) for line in seen.output.splitlines() if line.startswith("{") and '"uvicorn.access"' in line
    ]
    served = [line for line in access if line["url.path"].startswith("/v1/") and line["request_id"] != "last"]
    assert {line["request_id"] for line in served} >= {"plain", "chat", "no-model"}
    for line in served:
        assert line["trace.id"] == seen.lines[line["request_id"]]["trace.id"]


def test_lines_are_of_vllms_process_whoever_writes_them(seen):
    assert {line["process.pid"] for line in seen.all_lines} == {seen.pid}
    assert {line["service.name"] for line in seen.all_lines} == {"tiny-service"}


def test_request_metrics_count_every_outcome(seen):
    outcomes = defaultdict(float)
    for (name, labels), value in seen.requests.items():
        if name == "vllm_vitals_requests_total":
            outcomes[dict(labels)["outcome"]] += value
    assert outcomes["client_error"] == 3
    assert outcomes["disconnected"] == 2
    assert sum(outcomes.values()) == len(seen.sent)
    assert total(seen.requests, "vllm_vitals_request_preemptions_total") == total(
        seen.page, "vllm:num_preemptions_total"
    )


def test_the_plugin_counts_its_own_work_on_vllms_page(seen):
    info = [dict(labels) for name, labels in seen.page if name == "vllm_vitals_tracing_info"]
    assert [(one["mode"], one["export"]) for one in info] == [("own", seen.export)]
    losses = {
        (name, labels): value
        for (name, labels), value in seen.page.items()
        if name.startswith("vllm_vitals_tracing_")
        and any(word in name for word in ("failed", "failures", "dropped", "fallback"))
        and "export_failures" not in name  # a try that a busy machine lets time out is repeated
    }
    assert losses
    assert not any(losses.values()), losses


def test_what_finished_last_comes_out_when_the_server_stops(seen):
    assert seen.last_line["request_id"] == "last"
    names = {span.name for span in seen.spans if trace_of(span) == LAST_TRACE}
    assert names == {"POST /v1/completions", "llm_request", *PHASES}


def test_the_audit_log_holds_every_request_and_is_intact(seen):
    files = sorted(seen.folder.glob("audit.jsonl*"))
    files = [file for file in files if file.suffix != ".lock"]
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert {record["request_id"] for record in records if "request_id" in record} == {*seen.sent, "last"}
    command = [VITALS, "audit", "verify", "--key-file", seen.folder / "audit.key", *files]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0

"""Spans of a finished request: who hangs under whom, and that children fill their parent whatever the clocks say."""

import json
import math
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.finished_requests import T0, request, sequence
from vllm_vitals.tracing.request.phases import preempted_seconds
from vllm_vitals.tracing.request.records import OUTCOMES, Gpu, Http, NativeSpan, RequestRecord, SequenceRecord, Trace
from vllm_vitals.tracing.spans.tree import ERROR, INTERNAL, SERVER, Link, span_count, spans_of

MS = 1_000_000
HTTP = Http(
    "POST",
    "/v1/chat/completions",
    200,
    T0 - 0.002,
    T0 + 1.05,
    first_byte=T0 + 0.14,
    client="10.0.0.7:4711",
    server_address="llm.example",
    server_port=8000,
    user_agent="curl/8",
)
TRACE = Trace(0xABC, 0xDEF, parent_span_id=0x77, sampled=True)


def traced(*sequences, http=HTTP, trace=TRACE, **others):
    return replace(request(*sequences), http=http, trace=trace, **others)


def by_name(spans):
    return {span.name: span for span in spans}


def children_of(spans, parent):
    return [span for span in spans if span.parent_span_id == parent.span_id]


def attributes_of(span):
    found = dict(span.attributes)
    assert len(found) == len(span.attributes), "an attribute stands twice"
    return found


def test_a_chat_is_a_tree_of_six():
    spans = spans_of(traced(sequence()))
    assert [span.name for span in spans] == [
        "POST /v1/chat/completions",
        "llm_request",
        "vllm.ingress",
        "vllm.queue",
        "vllm.prefill",
        "vllm.decode",
    ]
    root, llm, *parts = spans
    assert (root.span_id, root.parent_span_id, root.kind) == (0xDEF, 0x77, SERVER)
    assert (llm.parent_span_id, llm.kind) == (root.span_id, INTERNAL)
    assert {part.parent_span_id for part in parts} == {llm.span_id}
    assert {span.trace_id for span in spans} == {0xABC}
    assert len({span.span_id for span in spans}) == 6
    assert [round((part.end_ns - part.start_ns) / MS) for part in parts] == [10, 20, 100, 900]


def test_the_callers_span_is_marked_as_remote_and_ours_are_not():
    root, llm, *_ = spans_of(traced(sequence()))
    assert (root.flags, llm.flags) == (0x301, 0x101)
    (root, *_) = spans_of(traced(sequence(), trace=replace(TRACE, parent_span_id=0)))
    assert root.flags == 0x101


def test_without_middleware_the_llm_request_is_the_root():
    llm, *parts = spans_of(traced(sequence(), http=None))
    assert (llm.name, llm.kind) == ("llm_request", SERVER)
    assert (llm.span_id, llm.parent_span_id) == (0xDEF, 0x77)
    assert {part.parent_span_id for part in parts} == {0xDEF}
    assert attributes_of(llm)["vllm.request_id"] == "1"


def test_siblings_have_indexes():
    first, second = replace(sequence(n=2), index=0), replace(sequence(n=2), index=1)
    spans = spans_of(traced(first, second))
    siblings = [span for span in spans if span.name == "llm_request"]
    assert [attributes_of(span)["vllm.sequence.index"] for span in siblings] == [0, 1]
    assert [attributes_of(span)["gen_ai.request.choice.count"] for span in siblings] == [2, 2]
    assert {span.parent_span_id for span in siblings} == {0xDEF}
    assert len({span.span_id for span in siblings}) == 2


def test_an_unsampled_request_has_no_spans():
    assert spans_of(traced(sequence(), trace=replace(TRACE, sampled=False))) == []


def test_a_request_that_reached_no_engine_has_its_http_span():
    refused = traced(http=replace(HTTP, status=404), outcome="client_error", error_type="404")
    (root,) = spans_of(refused)
    assert root.status == ERROR
    assert attributes_of(root)["error.type"] == "404"
    assert attributes_of(root)["http.response.status_code"] == 404
    assert root.name == "POST /v1/chat/completions"


def test_paths_that_anybody_can_invent_name_no_span():
    (root,) = spans_of(traced(http=replace(HTTP, path="/v1/wp-admin", method="FROB", status=404), error_type="404"))
    assert root.name == "HTTP"
    assert attributes_of(root)["http.request.method"] == "_OTHER"
    assert "http.route" not in attributes_of(root)


def test_http_attributes_are_the_stable_ones():
    root = spans_of(traced(sequence()))[0]
    expected = {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "server.address": "llm.example",
        "server.port": 8000,
        "client.address": "10.0.0.7",
        "client.port": 4711,
        "user_agent.original": "curl/8",
    }
    assert expected.items() <= attributes_of(root).items()
    assert root.status == 0
    six = spans_of(traced(http=replace(HTTP, client="[::1]:80")))[0]
    assert attributes_of(six)["client.address"] == "::1"


def test_zero_temperature_is_told():
    found = attributes_of(spans_of(traced(sequence(temperature=0, top_p=0.0, max_tokens=0)))[1])
    assert found["gen_ai.request.temperature"] == 0.0
    assert found["gen_ai.request.top_p"] == 0.0
    assert found["gen_ai.request.max_tokens"] == 0
    assert "gen_ai.request.temperature" not in attributes_of(spans_of(traced(sequence()))[1])


def test_the_llm_request_speaks_genai_and_vllm():
    asked = traced(
        sequence(engine_index=1, lora="sql"), session_id="s1", operation="chat", stream=True, model="asked-for"
    )
    found = attributes_of(spans_of(asked)[1])
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "asked-for",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.id": "cmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.request.stream": True,
        "gen_ai.conversation.id": "s1",
        "gen_ai.request.id": "cmpl-1",
        "vllm.engine_index": 1,
        "vllm.lora": "sql",
        "vllm.num_preemptions": 0,
    }
    assert expected.items() <= found.items()
    seconds = {
        "gen_ai.response.time_to_first_chunk": 0.142,
        "gen_ai.latency.time_to_first_token": 0.13,
        "gen_ai.latency.e2e": 1.03,
        "gen_ai.latency.time_in_queue": 0.02,
        "gen_ai.latency.time_in_model_prefill": 0.1,
        "gen_ai.latency.time_in_model_decode": 0.9,
        "gen_ai.latency.time_in_model_inference": 1.0,
    }
    assert {name: found[name] for name in seconds} == pytest.approx(seconds, abs=1e-5)
    assert not [name for name in found if "system" in name or "prompt_tokens" in name]


def test_old_names_come_beside_the_new_ones_when_asked_for():
    found = attributes_of(spans_of(traced(sequence()), legacy=True)[1])
    assert (found["gen_ai.system"], found["gen_ai.provider.name"]) == ("vllm", "vllm")
    assert found["gen_ai.usage.prompt_tokens"] == found["gen_ai.usage.input_tokens"] == 7
    assert found["gen_ai.usage.completion_tokens"] == 10
    assert found["gen_ai.request.n"] == 1


def test_tokens_are_counted_once_in_a_trace():
    spans = spans_of(traced(sequence()))
    assert sum("gen_ai.usage.output_tokens" in attributes_of(span) for span in spans) == 1
    prefill = attributes_of(by_name(spans)["vllm.prefill"])
    assert prefill == {
        "vllm.phase.clock": "wall",
        "vllm.prompt_tokens": 7,
        "vllm.cached_tokens": 4,
        "vllm.computed_tokens": 3,
    }
    decode = attributes_of(by_name(spans)["vllm.decode"])
    assert decode == {"vllm.output_tokens": 10, "vllm.time_per_output_token": pytest.approx(0.1)}


def test_a_preemption_hangs_under_the_phase_it_lies_in():
    found = sequence(preemptions=((T0 + 0.05, T0 + 0.08), (T0 + 0.5, T0 + 0.7)))
    spans = spans_of(traced(found))
    names = by_name(spans)
    in_prefill, in_decode = (span for span in spans if span.name == "vllm.preempted")
    assert in_prefill.parent_span_id == names["vllm.prefill"].span_id
    assert in_decode.parent_span_id == names["vllm.decode"].span_id
    assert round((in_decode.end_ns - in_decode.start_ns) / MS) == 200
    llm = attributes_of(names["llm_request"])
    assert (llm["vllm.num_preemptions"], llm["vllm.preempted_seconds"]) == (2, preempted_seconds(found))
    assert [event.name for event in names["llm_request"].events] == ["first_token", "preempted", "preempted"]


def test_a_kv_transfer_hangs_under_the_queue():
    spans = spans_of(traced(sequence(kv_transfer=(T0 + 0.012, T0 + 0.025), remote_prefill=True)))
    transfer = by_name(spans)["vllm.kv_transfer"]
    assert transfer.parent_span_id == by_name(spans)["vllm.queue"].span_id
    assert round((transfer.end_ns - transfer.start_ns) / MS) == 13


def test_an_abort_is_an_error_with_its_event():
    aborted = sequence(finish_reason="abort", last_token=T0 + 0.3, finished=T0 + 0.4)
    root, llm, *parts = spans_of(traced(aborted, outcome="disconnected", error_type="disconnected"))
    assert (root.status, llm.status) == (ERROR, ERROR)
    assert attributes_of(root)["error.type"] == attributes_of(llm)["error.type"] == "disconnected"
    assert llm.events[-1] == ("aborted", llm.end_ns, ())
    assert parts[-1].end_ns == llm.end_ns == round((T0 + 0.4) * 1e9)


def test_an_abort_before_the_first_token_is_one_span():
    nothing_yet = sequence(
        finish_reason="abort", queued=None, scheduled=None, first_token=None, last_token=None, output_tokens=0
    )
    (llm,) = spans_of(traced(nothing_yet, http=None, outcome="aborted", error_type="aborted"))
    assert [event.name for event in llm.events] == ["aborted"]
    assert "gen_ai.latency.time_in_queue" not in attributes_of(llm)


def test_a_sequence_that_went_well_is_no_error_beside_one_that_did_not():
    spans = spans_of(traced(sequence(), sequence(finish_reason="error"), outcome="server_error", error_type="500"))
    good, bad = (span for span in spans if span.name == "llm_request")
    assert (good.status, bad.status) == (0, ERROR)
    assert "error.type" not in attributes_of(good)
    assert attributes_of(bad)["error.type"] == "500"


def test_nothing_comes_after_the_api_server_let_go_of_it():
    late = sequence(last_token=T0 + 3000, finished=T0 + 1.03)
    root, llm, *parts = spans_of(traced(late))
    assert llm.end_ns == parts[-1].end_ns == round((T0 + 1.03) * 1e9)
    assert root.end_ns == round((T0 + 1.05) * 1e9)


def test_one_token_has_no_decode():
    spans = spans_of(traced(sequence(decode=0.0, output_tokens=1)))
    assert "vllm.decode" not in by_name(spans)
    assert attributes_of(spans[1])["gen_ai.latency.time_in_model_decode"] == 0.0


@pytest.mark.parametrize(
    ("how", "word"), [({"timing": "durations"}, "stacked"), ({"remote_clock": True}, "anchored"), ({}, None)]
)
def test_times_that_are_not_exact_are_marked(how, word):
    _, llm, *parts = spans_of(traced(sequence(**how)))
    assert {attributes_of(span).get("vllm.clock") for span in (llm, *parts)} == {word}


def test_a_restarted_trace_links_to_the_caller():
    root, llm, *_ = spans_of(traced(sequence(), trace=replace(TRACE, parent_span_id=0, link=(5, 6))))
    assert (root.links, llm.links) == ((Link(5, 6),), ())


def test_tracestate_travels_on():
    assert {span.tracestate for span in spans_of(traced(sequence(), trace=replace(TRACE, tracestate="a=b")))} == {"a=b"}


def test_gpu_facts_stand_on_the_root():
    one = Gpu("GPU-1", "H100", 10**10, 350.5)
    found = attributes_of(spans_of(traced(sequence(), gpus=(one,)))[0])
    expected = {"hw.id": "GPU-1", "hw.model": "H100", "vllm.gpu.memory_used": 10**10, "vllm.gpu.power": 350.5}
    assert expected.items() <= found.items()
    found = attributes_of(spans_of(traced(sequence(), gpus=(one, Gpu("GPU-2", "H100", None, 300.0))))[0])
    assert found["hw.id"] == ["GPU-1", "GPU-2"]
    assert found["vllm.gpu.power"] == [350.5, 300.0]
    assert "vllm.gpu.memory_used" not in found


def test_content_is_there_only_when_captured_and_is_cut():
    spans = spans_of(traced(sequence()))
    assert not [name for span in spans for name, _ in span.attributes if "messages" in name]
    captured = sequence(output_text="\u00e9" * 9000)
    llm = attributes_of(spans_of(traced(captured, captured, input_messages='[{"role":"user"}]'))[1])
    assert llm["gen_ai.input.messages"] == '[{"role":"user"}]'
    (message,) = json.loads(llm["gen_ai.output.messages"])
    assert message["parts"][0]["content"] == "\u00e9" * 8192


def test_long_ids_are_cut():
    asked = traced(replace(sequence(), response_id="x" * 999), request_id="y" * 999, session_id="z" * 999)
    for span in spans_of(asked):
        assert all(len(value) <= 256 for _, value in span.attributes if isinstance(value, str))


def test_ids_of_the_caller_and_hashes_stand_on_the_root():
    found = attributes_of(spans_of(traced(sequence(), user="u#", headers={"x-api-key": "h#"}, session_id="s"))[0])
    assert found["user.hash"] == "u#"
    assert found["http.request.header.x-api-key"] == ("h#",)
    assert (found["gen_ai.conversation.id"], found["vllm.request_id"]) == ("s", "1")


class TestAlongsideVllmsOwnSpan:
    NATIVE = NativeSpan(0xABC, 0x99, round(T0 * 1e9), round((T0 + 1.04) * 1e9), sampled=True)

    def test_children_hang_under_it_and_it_is_not_made_again(self):
        root, *parts = spans_of(traced(sequence(native=self.NATIVE)))
        assert root.name == "POST /v1/chat/completions"
        assert [part.name for part in parts] == [
            "vllm.ingress",
            "vllm.queue",
            "vllm.prefill",
            "vllm.decode",
            "vllm.egress",
        ]
        assert {(part.trace_id, part.parent_span_id) for part in parts} == {(0xABC, 0x99)}
        assert (parts[0].start_ns, parts[-1].end_ns) == (self.NATIVE.start, self.NATIVE.end)
        assert round((parts[-1].end_ns - parts[-1].start_ns) / MS) == 10

    def test_a_rest_below_a_millisecond_is_no_egress(self):
        short = replace(self.NATIVE, end=round((T0 + 1.0305) * 1e9))
        assert "vllm.egress" not in by_name(spans_of(traced(sequence(native=short))))

    def test_its_own_decision_counts(self):
        unsampled = sequence(native=replace(self.NATIVE, sampled=False))
        assert [span.name for span in spans_of(traced(unsampled))] == ["POST /v1/chat/completions"]
        theirs = traced(sequence(native=self.NATIVE), trace=replace(TRACE, sampled=False))
        assert len(spans_of(theirs)) == 5


MAYBE = lambda strategy: st.none() | strategy
NEAR = st.floats(-0.05, 60).map(lambda seconds: T0 + seconds)
SKEWED = NEAR | st.floats(-4000, 4000).map(lambda seconds: T0 + seconds) | st.just(0.0)
SPAN_OF_TIME = st.tuples(SKEWED, SKEWED).map(lambda pair: tuple(sorted(pair)))


@st.composite
def sequences(draw):
    arrival = T0 + draw(st.floats(0, 1))
    times = draw(st.lists(NEAR, min_size=4, max_size=4).map(sorted) | st.lists(MAYBE(SKEWED), min_size=4, max_size=4))
    native = draw(
        MAYBE(
            st.builds(
                lambda start, length, sampled: NativeSpan(
                    0xABC, 0x99, round(start * 1e9), round((start + length) * 1e9), sampled
                ),
                NEAR,
                st.floats(0, 60),
                st.booleans(),
            )
        )
    )
    return SequenceRecord(
        "cmpl-1",
        "1",
        draw(st.integers(0, 3)),
        "tiny",
        arrival,
        draw(NEAR),
        queued=times[0],
        scheduled=times[1],
        first_token=times[2],
        last_token=times[3],
        preemptions=tuple(draw(st.lists(SPAN_OF_TIME, max_size=3))),
        kv_transfer=draw(MAYBE(SPAN_OF_TIME)),
        remote_clock=draw(st.booleans()),
        output_tokens=draw(st.integers(0, 3)),
        finish_reason=draw(st.sampled_from(("", "stop", "length", "abort", "error"))),
        error_type=draw(st.sampled_from(("", "aborted", "ValueError"))),
        native=native,
    )


@st.composite
def requests(draw):
    started, ended = sorted(draw(st.tuples(NEAR, NEAR)))
    return RequestRecord(
        "1",
        "tiny",
        draw(st.sampled_from(OUTCOMES)),
        started,
        ended,
        replace(TRACE, sampled=draw(st.booleans())),
        draw(MAYBE(st.just(replace(HTTP, started=started, ended=ended)))),
        tuple(draw(st.lists(sequences(), max_size=3))),
        error_type=draw(st.sampled_from(("", "404"))),
        stream=draw(MAYBE(st.booleans())),
    )


@given(requests())
def test_children_lie_inside_their_parent_and_fill_it(given_request):
    spans = spans_of(given_request)
    parents = {span.span_id: (span.start_ns, span.end_ns) for span in spans}
    natives = [s.native for s in given_request.sequences if s.native is not None and s.native.sampled]
    for span in spans:
        assert 0 <= span.start_ns <= span.end_ns
        for event in span.events:
            assert span.start_ns <= event.time_ns <= span.end_ns
        windows = [parents[span.parent_span_id]] if span.parent_span_id in parents else []
        if span.parent_span_id == 0x99:
            windows = [(native.start, native.end) for native in natives]
        if windows:
            assert any(start <= span.start_ns and span.end_ns <= end for start, end in windows), span
        if span.name == "llm_request":
            fills(span.start_ns, span.end_ns, children_of(spans, span))
    if len(natives) == 1:
        fills(natives[0].start, natives[0].end, [span for span in spans if span.parent_span_id == 0x99])


def fills(start, end, children):
    phases = [span for span in children if span.name != "vllm.preempted"]
    assert [span.start_ns for span in phases] == [start, *(span.end_ns for span in phases[:-1])][: len(phases)]
    if phases:
        assert abs(sum(span.end_ns - span.start_ns for span in phases) - (end - start)) <= MS


@given(requests())
def test_every_preemption_is_one_span_and_the_count_is_known_beforehand(given_request):
    spans = spans_of(given_request)
    assert span_count(given_request) == len(spans)
    traced_ones = [
        s for s in given_request.sequences if (s.native.sampled if s.native else given_request.trace.sampled)
    ]
    expected = sum(len(found.preemptions) for found in traced_ones)
    assert sum(span.name == "vllm.preempted" for span in spans) == expected


@given(requests())
def test_attributes_are_of_kinds_that_otlp_knows(given_request):
    for span in spans_of(given_request):
        for name, value in attributes_of(span).items():
            assert isinstance(name, str)
            assert isinstance(value, str | bool | int | float | tuple | list), name
            assert not (isinstance(value, float) and not math.isfinite(value)), name


def test_a_forked_process_has_other_ids():
    mine = spans_of(traced(sequence()))[1].span_id
    reader, writer = os.pipe()
    from vllm_vitals.tracing.spans import tree as span_tree

    state = span_tree._ids.getstate()
    if (pid := os.fork()) == 0:
        os.write(writer, str(span_tree._ids.getrandbits(64)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    theirs = int(os.read(reader, 100))
    os.close(reader)
    os.close(writer)
    span_tree._ids.setstate(state)
    assert theirs != span_tree._ids.getrandbits(64)
    assert mine


def test_beam_search_leaves_a_bounded_tree_that_says_what_it_left_out():
    one = traced(*(replace(sequence(), index=n) for n in range(300)))
    spans = spans_of(one)
    assert [span.name for span in spans].count("llm_request") == 128
    assert span_count(one) == len(spans)
    (root,) = (span for span in spans if span.kind == SERVER)
    assert attributes_of(root)["vllm.sequences_omitted"] == 172
    assert "vllm.sequences_omitted" not in attributes_of(spans_of(traced(sequence()))[0])

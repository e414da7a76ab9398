"""What is made of what middleware and hooks saw."""

import copy
import pickle
from types import SimpleNamespace

import pytest
from support.seen_requests import PREEMPTED, QUEUED, SCHEDULED, event, exchange, state, timeline
from vllm_vitals.settings.tracing import GoodputSettings, SamplingSettings
from vllm_vitals.tracing.logs.request_line import fields
from vllm_vitals.tracing.metrics.request_metrics import RequestMetricsSink
from vllm_vitals.tracing.request.assembly import Assembly, Clock
from vllm_vitals.tracing.request.durations import Durations, from_span
from vllm_vitals.tracing.request.in_flight import Timeline, Times
from vllm_vitals.tracing.request.phases import phases
from vllm_vitals.tracing.request.sampling import Sampler
from vllm_vitals.tracing.spans.tree import INTERNAL, spans_of


@pytest.fixture
def assembly():
    """Makes records as a server of the model `tiny` does."""
    return Assembly(Sampler(SamplingSettings(), {}), model="tiny", hash_text=lambda text: f"hash({text})")


def test_engine_times_become_wall_times(assembly):
    request = assembly.alone(timeline())
    (sequence,) = request.sequences
    assert sequence.timing == "events"
    assert not sequence.remote_clock
    assert [phase.seconds for phase in phases(sequence)] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.005)
    assert (sequence.input_tokens, sequence.cached_tokens, sequence.output_tokens) == (20, 4, 9)
    assert (sequence.temperature, sequence.n) == (0.0, 1)


def test_the_clock_is_anchored_anew_every_ten_seconds(monkeypatch):
    now = SimpleNamespace(monotonic=100.0, wall=1_000_100.0)
    monkeypatch.setattr("time.monotonic", lambda: now.monotonic)
    monkeypatch.setattr("time.time", lambda: now.wall)
    clock = Clock()
    assert clock.offset() == 1_000_000.0
    now.wall += 5  # the wall clock is stepped
    now.monotonic += 10
    now.wall += 10
    assert clock.offset() == 1_000_000.0
    now.monotonic += 0.1
    now.wall += 0.1
    assert clock.offset() == pytest.approx(1_000_005.0)


@pytest.mark.parametrize("shift", [86_400.0, -86_400.0, 5.0, -5.0])
def test_an_engine_on_another_host_is_anchored_on_its_last_message_and_marked(assembly, shift):
    (sequence,) = assembly.alone(timeline(shift)).sequences
    assert sequence.remote_clock
    assert sequence.arrival <= sequence.queued
    assert sequence.last_token <= sequence.finished + 0.001
    assert [phase.seconds for phase in phases(sequence)] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.01)


def test_an_engine_on_another_host_is_anchored_on_its_fastest_message(assembly):
    lagging = timeline(86_400.0)
    lagging.finished += 0.9  # the last message was late, the first was not
    (sequence,) = assembly.alone(lagging).sequences
    assert sequence.remote_clock
    assert sequence.first_token == pytest.approx(sequence.arrival + 0.602, abs=1e-6)


def test_an_api_server_that_lags_behind_is_no_other_host(assembly):
    lagging = timeline()
    lagging.finished += 0.9
    assert not assembly.alone(lagging).sequences[0].remote_clock


def test_each_preemption_has_its_interval(assembly):
    made = timeline()
    begin = made.stats.first_token_ts
    made.events = [
        [event(QUEUED, 1), event(SCHEDULED, 2), event(PREEMPTED, begin + 0.1)],
        [event(SCHEDULED, begin + 0.15)],
        [event(PREEMPTED, begin + 0.2), event(SCHEDULED, begin + 0.3)],
    ]
    lengths = [resumed - preempted for preempted, resumed in assembly.alone(made).sequences[0].preemptions]
    assert lengths == pytest.approx([0.05, 0.1], abs=1e-5)


def test_a_preemption_that_never_ended_ends_with_the_request(assembly):
    made = timeline(reason="abort")
    made.events = [[event(PREEMPTED, made.stats.last_token_ts + 0.001)]]
    request = assembly.alone(made)
    ((begin, end),) = request.sequences[0].preemptions
    assert begin < end == request.sequences[0].finished
    assert (request.outcome, request.error_type) == ("aborted", "aborted")


def test_aborted_before_the_first_token_has_no_phases(assembly):
    made = timeline(reason="abort")
    made._times = Times(made.stats.arrival_time, 0.0, 0.0, 0.0, 0.0, 0)
    (sequence,) = assembly.alone(made).sequences
    assert sequence.timing == "none"
    assert sequence.first_token is None
    assert phases(sequence) == ()


def test_statistics_that_are_off_leave_the_rest(assembly):
    made = Timeline()
    made.finish(state(), "stop")
    made.done = True
    (sequence,) = assembly.alone(made).sequences
    assert (sequence.finish_reason, sequence.input_tokens, sequence.timing) == ("stop", 20, "none")


def test_n_is_the_parents(assembly):
    parent = SimpleNamespace(sampling_params=SimpleNamespace(n=3))
    assert assembly.alone(timeline(parent_req=parent)).sequences[0].n == 3


def test_an_error_of_the_engine_outweighs_the_status(assembly):
    http = exchange()
    lost = timeline(reason="error", exchange=http)
    lost.error_type = "EngineDeadError"
    request = assembly.request(http, [lost])
    assert (request.outcome, request.error_type) == ("server_error", "EngineDeadError")


def test_a_sequence_that_outlives_its_request_hangs_below_it(assembly):
    http = exchange()
    late = assembly.alone(timeline(exchange=http))
    assert late.request_id == "a"
    assert late.trace.trace_id == http.trace_id
    assert late.trace.parent_span_id == http.span_id
    (own, *_) = spans_of(late)
    assert (own.name, own.kind, own.flags) == ("llm_request", INTERNAL, 0x101)  # below a local parent


def test_what_comes_late_is_counted_with_its_tokens_but_not_as_a_request(assembly):
    http = exchange()
    sink = RequestMetricsSink(["tiny"], GoodputSettings())
    sink.take(assembly.request(http, []))
    sink.take(assembly.alone(timeline(exchange=http)))
    numbers = sink.values().numbers
    assert numbers["vllm_vitals_requests_total", ("tiny", "ok")] == 1
    assert numbers["vllm_vitals_request_output_tokens_total", ("tiny", "ok")] == 9
    assert fields(assembly.alone(timeline(exchange=http)))["late"] is True
    assert "late" not in fields(assembly.alone(timeline()))


def test_a_timeline_that_went_out_with_vllms_statistics_is_nothing():
    statistics = SimpleNamespace(vllm_vitals=timeline(exchange=exchange()))
    assert pickle.loads(pickle.dumps(statistics)).vllm_vitals is None
    assert copy.deepcopy(statistics).vllm_vitals is None


def test_the_session_is_found_where_it_is_said_first(assembly):
    http = exchange(x_session_id="header")
    http.body = [b'{"session_id": "body", "user": "mary"}']
    assert assembly.request(http, []).session_id == "body"
    http.body = [b'{"vllm_xargs": {"session_id": "xargs"}, "user": "mary"}']
    assert assembly.request(http, []).session_id == "xargs"
    http.body = [b'{"user": "mary"}']
    assert assembly.request(http, []).session_id == "header"
    http = exchange()
    http.body = [b'{"user": "mary"}']
    assert assembly.request(http, []).session_id == "hash(mary)"


def test_nothing_is_sampled_where_spans_go_nowhere():
    dark = Assembly(Sampler(SamplingSettings(), {}), hash_text=str, exporting=False)
    assert not dark.request(exchange(), []).trace.sampled


def test_durations_of_vllms_span_are_stacked_from_its_start():
    told = {
        "gen_ai.latency.e2e": 1.0, "gen_ai.latency.time_in_queue": 0.2, "gen_ai.latency.time_in_model_inference": 0.7,
        "gen_ai.latency.time_in_model_decode": 0.4, "gen_ai.usage.completion_tokens": 9,
    }  # fmt: skip
    assert from_span(told, 100.0) == pytest.approx(Durations(100.0, 100.1, 100.3, 100.6, 101.0, 9))
    assert from_span({}, 100.0) is None


@pytest.mark.parametrize(("given", "told"), [(float("nan"), ""), (7, ""), ("s" * 1000, "s" * 256), (None, "")])
def test_a_session_of_any_kind_becomes_short_text(assembly, given, told):
    made = timeline()
    made.session_id = given
    assert assembly.alone(made).session_id == told

"""What is counted of finished requests."""

import pytest
from support.finished_requests import T0, request, sequence
from vllm_vitals.settings.scalars import Seconds
from vllm_vitals.settings.tracing import GoodputSettings
from vllm_vitals.tracing.metrics.request_metrics import RequestMetricsSink
from vllm_vitals.tracing.metrics.values import Exemplar
from vllm_vitals.tracing.request.records import OUTCOMES
from vllm_vitals.vocabulary.ours import PLUGIN

TARGETS = GoodputSettings(ttft=Seconds(0.5), tpot=Seconds(0.2))


def counted(*requests, models=("tiny",), goodput=TARGETS):
    sink = RequestMetricsSink(models, goodput)
    for each in requests:
        sink.take(each)
    return sink.values()


def number(values, family, *labels):
    return values.numbers[f"vllm_vitals_{family}", labels]


def histogram(values, phase, model="tiny"):
    return values.histograms[f"vllm_vitals_request_{phase}_seconds", (model,)]


def test_before_the_first_request_every_child_of_a_served_model_is_there_with_0():
    values = counted()
    for outcome in OUTCOMES:
        for model in ("tiny", "other"):
            assert number(values, "requests_total", model, outcome) == 0
        assert number(values, "request_output_tokens_total", "tiny", outcome) == 0
    assert [number(values, "requests_slow_total", "tiny", missed) for missed in ("ttft", "tpot", "both")] == [0, 0, 0]
    assert sum(histogram(values, "e2e").counts) == 0


def test_all_that_is_emitted_is_in_the_vocabulary_with_its_labels():
    values = counted(request(sequence()))
    for family, labels in (*values.numbers, *values.histograms):
        assert len(labels) == len(PLUGIN[family].labels), family


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_requests_and_their_tokens_are_counted_by_outcome(outcome):
    values = counted(request(sequence(), outcome=outcome))
    assert number(values, "requests_total", "tiny", outcome) == 1
    assert sum(number(values, "requests_total", "tiny", each) for each in OUTCOMES) == 1
    tokens = [number(values, f"request_{kind}_tokens_total", "tiny", outcome) for kind in ("input", "cached", "output")]
    assert tokens == [7, 4, 10]


def test_prompt_tokens_of_a_request_aborted_in_the_queue_do_not_count_as_in_vllm():
    waiting = sequence(scheduled=None, first_token=None, last_token=None, output_tokens=0, finish_reason="abort")
    values = counted(request(waiting, outcome="aborted"))
    assert number(values, "request_input_tokens_total", "tiny", "aborted") == 0
    assert number(values, "requests_total", "tiny", "aborted") == 1


def test_phases_sum_to_the_time_of_the_sequence():
    values = counted(request(sequence(0.01, 0.02, 0.1, 0.9)))
    sums = [histogram(values, phase).sum for phase in ("ingress", "queue", "prefill", "decode")]
    assert sums == pytest.approx([0.01, 0.02, 0.1, 0.9], abs=1e-6)
    assert histogram(values, "time_to_first_token").sum == pytest.approx(0.13, abs=1e-6)
    assert histogram(values, "time_per_output_token").sum == pytest.approx(0.1, abs=1e-6)
    assert histogram(values, "e2e").sum == pytest.approx(1.05)


def test_each_sequence_is_an_observation_of_the_phases_and_the_request_one_of_e2e():
    values = counted(request(sequence(), sequence()))
    assert sum(histogram(values, "prefill").counts) == 2
    assert sum(histogram(values, "e2e").counts) == 1
    assert number(values, "requests_total", "tiny", "ok") == 1


def test_a_request_given_up_in_mid_answer_has_a_ttft_but_no_decode_tpot_or_e2e():
    values = counted(request(sequence(finish_reason="abort"), outcome="disconnected"))
    found = {phase: sum(histogram(values, phase).counts) for phase in ("time_to_first_token", "queue", "decode", "e2e")}
    assert found == {"time_to_first_token": 1, "queue": 1, "decode": 0, "e2e": 0}
    assert sum(histogram(values, "time_per_output_token").counts) == 0


@pytest.mark.parametrize(
    ("seconds", "bound"), [(0.0, 0.001), (0.001, 0.001), (0.0011, 0.002), (0.5, 0.5), (120.0, 120.0)]
)
def test_a_bound_belongs_to_its_bucket(seconds, bound):
    e2e = histogram(counted(request(sequence(), started=0.0, ended=seconds)), "e2e")
    assert e2e.bounds[e2e.counts.index(1)] == bound


def test_above_all_bounds_is_the_last_bucket():
    assert histogram(counted(request(sequence(), ended=T0 + 9999)), "e2e").counts[-1] == 1


def test_goodput_targets_are_bucket_bounds_and_metrics():
    values = counted(goodput=GoodputSettings(ttft=Seconds(0.321), tpot=Seconds(0.0123)))
    assert 0.321 in histogram(values, "time_to_first_token").bounds
    assert 0.0123 in histogram(values, "time_per_output_token").bounds
    assert number(values, "goodput_target_seconds", "ttft") == 0.321
    assert number(values, "goodput_target_seconds", "tpot") == 0.0123


@pytest.mark.parametrize(
    ("sequences", "missed"),
    [
        ([sequence()], None),
        ([sequence(queue=0.6)], "ttft"),
        ([sequence(decode=9.0)], "tpot"),
        ([sequence(queue=0.6, decode=9.0)], "both"),
        ([sequence(output_tokens=1, decode=0.0)], None),  # no TPOT: TTFT alone
        ([sequence(output_tokens=1, decode=0.0, queue=0.6)], "ttft"),
        ([sequence(), sequence(queue=0.6)], "ttft"),  # the worst of its sequences
    ],
)
def test_a_good_request_meets_both_targets_together(sequences, missed):
    values = counted(request(*sequences))
    slow = {each for each in ("ttft", "tpot", "both") if number(values, "requests_slow_total", "tiny", each)}
    assert (number(values, "requests_good_total", "tiny"), slow) == ((0, {missed}) if missed else (1, set()))


def test_only_requests_that_ended_well_are_good_or_slow():
    values = counted(request(sequence(), outcome="aborted"), request(sequence(queue=3), outcome="server_error"))
    assert number(values, "requests_good_total", "tiny") == 0
    assert number(values, "requests_slow_total", "tiny", "ttft") == 0


def test_a_target_that_is_left_out_is_not_missed():
    values = counted(request(sequence(queue=5.0)), goodput=GoodputSettings(ttft=None, tpot=Seconds(0.2)))
    assert number(values, "requests_good_total", "tiny") == 1
    assert ("vllm_vitals_goodput_target_seconds", ("ttft",)) not in values.numbers


def test_preemptions_and_their_time():
    preempted = sequence(preemptions=((T0 + 0.3, T0 + 0.5), (T0 + 0.6, T0 + 0.65)))
    values = counted(request(preempted), request(sequence()))
    assert number(values, "request_preemptions_total", "tiny") == 2
    assert number(values, "request_preempted_seconds_total", "tiny") == pytest.approx(0.25, abs=1e-6)


def test_only_a_kept_trace_is_an_exemplar_and_the_newest_of_a_bucket_stands():
    lost = counted(request(sequence(), sampled=False))
    assert set(histogram(lost, "e2e").exemplars) == {None}
    values = counted(
        request(sequence(), sampled=True, trace_id=1, ended=T0 + 1.06),
        request(sequence(), sampled=True, trace_id=2, ended=T0 + 1.07),
        request(sequence(), sampled=True, trace_id=3, ended=T0 + 1.05),  # reported late
        request(sequence(), sampled=False, ended=T0 + 1.08),
    )
    (found,) = [each for each in histogram(values, "e2e").exemplars if each is not None]
    assert found == Exemplar(f"{2:032x}", f"{0xDEF:016x}", pytest.approx(1.07), T0 + 1.07)


def test_names_that_callers_make_up_do_not_become_label_values():
    values = counted(*(request(outcome="client_error", model=f"made-up-{n}") for n in range(100)))
    assert {labels[0] for _, labels in values.numbers if len(labels) == 2} == {"tiny", "other"}
    assert number(values, "requests_total", "other", "client_error") == 100
    assert number(counted(request(outcome="client_error")), "requests_total", "tiny", "client_error") == 1


def test_a_lora_adapter_that_was_loaded_later_counts_under_its_name_and_from_then_on_when_it_is_refused():
    values = counted(
        request(sequence(lora="sql-adapter")), request(model="sql-adapter", outcome="client_error"), models=("tiny",)
    )
    assert number(values, "requests_total", "sql-adapter", "ok") == 1
    assert number(values, "requests_total", "sql-adapter", "client_error") == 1


@pytest.mark.parametrize(("asked_for", "name"), [("llama", "llama"), ("", "other")])
def test_where_vllm_does_not_tell_the_served_name_the_one_that_it_took_stands(asked_for, name):
    values = counted(request(sequence(model=""), model=asked_for), models=())
    assert number(values, "requests_total", name, "ok") == 1


def test_the_number_of_adapters_is_bounded():
    values = counted(*(request(sequence(lora=f"adapter-{n}")) for n in range(500)))
    models = {labels[0] for family, labels in values.numbers if family == "vllm_vitals_requests_total"}
    assert len(models) <= 66
    total = sum(count for (family, _), count in values.numbers.items() if family == "vllm_vitals_requests_total")
    assert total == 500
    assert sum(histogram(values, "e2e", "other").counts) > 0

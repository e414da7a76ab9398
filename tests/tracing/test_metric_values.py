"""Values of several processes: handed over as text, added up."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.finished_requests import T0, request, sequence
from vllm_vitals.settings.scalars import Seconds
from vllm_vitals.settings.tracing import GoodputSettings
from vllm_vitals.tracing.metrics.request_metrics import RequestMetricsSink
from vllm_vitals.tracing.metrics.values import Values, from_json, merged, to_json
from vllm_vitals.tracing.request.records import OUTCOMES

lengths = st.integers(0, 400).map(lambda n: n / 64)  # exact in binary, so that sums do not depend on their order
sequences = st.builds(
    sequence,
    lengths,
    lengths,
    lengths,
    lengths,
    output_tokens=st.integers(0, 30),
    lora=st.sampled_from([None, "adapter"]),
    preemptions=st.sampled_from([(), ((T0 + 0.25, T0 + 0.5),)]),
)
requests = st.lists(
    st.builds(
        lambda rows, **others: request(*rows, **others),
        st.lists(sequences, max_size=3),
        outcome=st.sampled_from(OUTCOMES),
        model=st.sampled_from(["tiny", "unknown"]),
        ended=lengths.map(lambda seconds: T0 + seconds),
        trace_id=st.integers(1, 2**128 - 1),
        sampled=st.booleans(),
    ),
    max_size=12,
)


def values_of(some) -> Values:
    sink = RequestMetricsSink(["tiny"], GoodputSettings())
    for each in some:
        sink.take(each)
    return sink.values()


@settings(max_examples=150, deadline=None)
@given(st.lists(requests, min_size=1, max_size=4))
def test_merging_processes_is_counting_all_requests_in_one(parts):
    together = merged([values_of(part) for part in parts])
    alone = values_of([each for part in parts for each in part])
    assert together.numbers == pytest.approx(alone.numbers)
    assert together.histograms.keys() == alone.histograms.keys()
    for series, histogram in alone.histograms.items():
        other = together.histograms[series]
        assert (other.bounds, other.counts) == (histogram.bounds, histogram.counts)
        assert other.sum == pytest.approx(histogram.sum)
        newest = [(one is None, one and one.at) for one in histogram.exemplars]
        assert [(one is None, one and one.at) for one in other.exemplars] == newest


@settings(max_examples=100, deadline=None)
@given(requests)
def test_a_process_reads_what_another_wrote(some):
    values = values_of(some)
    assert from_json(to_json(values, "1 2"), "1 2") == values


def test_gauges_are_not_added_up():
    values = values_of([])
    series = ("vllm_vitals_goodput_target_seconds", ("ttft",))
    assert merged([values, values]).numbers[series] == values.numbers[series] == 0.5


def test_histograms_of_other_bounds_are_not_added():
    other = RequestMetricsSink(["tiny"], GoodputSettings(ttft=Seconds(0.123)))
    other.take(request(sequence()))
    both = merged([values_of([request(sequence())]), other.values()])
    assert sum(both.histograms["vllm_vitals_request_time_to_first_token_seconds", ("tiny",)].counts) == 1
    assert sum(both.histograms["vllm_vitals_request_queue_seconds", ("tiny",)].counts) == 2


GOOD = json.loads(to_json(values_of([request(sequence(), sampled=True)]), "s"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.pop("server"),
        lambda document: document.update(server="another"),
        lambda document: document.update(numbers=7),
        lambda document: document["numbers"][0].__setitem__(0, "unknown_total"),
        lambda document: document["numbers"][0].__setitem__(0, "vllm_vitals_request_queue_seconds"),
        lambda document: document["numbers"][0].__setitem__(1, ["tiny"]),
        lambda document: document["numbers"][0].__setitem__(1, ["tiny", 1]),
        lambda document: document["numbers"][0].__setitem__(2, "many"),
        lambda document: document["numbers"][0].__setitem__(2, float("nan")),
        lambda document: document["histograms"][0].__setitem__(3, [1]),
        lambda document: document["histograms"][0][3].__setitem__(0, -1),
        lambda document: document["histograms"][0][2].__setitem__(0, 99),
        lambda document: document["histograms"][0][5].__setitem__(0, ['"}', "0" * 16, 1, 1]),
        lambda document: document["histograms"][0].__setitem__(0, "vllm_vitals_requests_total"),
        lambda document: document["histograms"][0].append(1),
    ],
)
def test_a_file_that_is_not_what_a_process_of_this_server_writes_is_refused(spoil):
    document = json.loads(json.dumps(GOOD))
    spoil(document)
    with pytest.raises(ValueError):
        from_json(json.dumps(document).encode(), "s")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_document_is_refused(text):
    with pytest.raises(ValueError):
        from_json(text, "s")

"""Promises among vLLM's buckets: bounds of a real page, text of `le`, interpolation, the flag."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString
from vllm_vitals.alerts.buckets import HISTOGRAMS, bounds, flag, le, position, read_share


def test_the_bounds_are_those_of_a_real_page(captured):
    families = {family.name: family for family in text_string_to_metric_families(captured("metrics").decode())}
    for indicator, histogram in HISTOGRAMS.items():
        found = {sample.labels["le"] for sample in families[histogram].samples if sample.name.endswith("_bucket")}
        assert found == {*map(le, bounds(indicator)), "+Inf"}


@given(st.floats(1e-3, 1e9))
def test_a_bound_is_written_as_the_client_library_writes_it(seconds):
    assert le(seconds) == floatToGoString(seconds)


def test_a_promise_on_a_bound_is_exact_and_one_between_is_interpolated():
    assert position("ttft", 0.5, custom=False) == (0.5, 0.5, 0)
    assert position("tpot", 0.06, custom=False) == (0.05, 0.075, pytest.approx(0.4))
    assert position("tpot", 0.06, custom=True).exact
    for outside in (0.0001, 1e6):
        with pytest.raises(ValueError, match=str(outside)):
            position("ttft", outside, custom=False)


@pytest.mark.parametrize(
    ("indicator", "seconds", "read"),
    [("tpot", 0.06, 0.131), ("ttft", 0.2, 0.207), ("ttft", 0.3, 0.147), ("ttft", 0.5, 1 / 9)],
)
def test_how_far_off_an_interpolated_promise_reads(indicator, seconds, read):
    assert read_share(indicator, seconds) == pytest.approx(read, abs=5e-4)


def test_the_flag_holds_vllms_bounds_and_the_promises(sla_of):
    sla = sla_of("{ttft: 99% under 300ms, tpot: 95% under 60ms, itl: 99% under 50ms, e2e: 95% under 30s}")
    option, text = shlex.split(flag(sla.services))
    families = json.loads(text)
    assert option == "--custom-histogram-buckets"
    assert families == {
        "time_to_first_token": sorted([*bounds("ttft"), 0.3]),
        "inter_token_latency": sorted([*bounds("tpot"), 0.06]),
    }


def test_there_is_no_flag_where_every_promise_is_a_bound(sla_of):
    assert flag(sla_of("ttft: 99% under 500ms").services) is None

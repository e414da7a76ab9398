"""Promises and limits as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_vitals.alerts.promises import (
    Count,
    Limit,
    Memory,
    PerSecond,
    Power,
    Promise,
    Share,
    Temperature,
    Throughput,
    duration,
    percent,
)
from vllm_vitals.settings.scalars import ConfigError, Seconds

KINDS = (Count, Share, PerSecond, Throughput, Temperature, Memory, Power)


@pytest.mark.parametrize(
    ("text", "target", "threshold", "budget"),
    [
        ("99% under 500ms", 0.99, 0.5, 0.01),
        ("99.9%", 0.999, None, 0.001),
        ("95 % under 1.5s", 0.95, 1.5, 0.05),
        ("99.995% under 2m", 0.99995, 120, 0.00005),
    ],
)
def test_a_promise_is_a_share_and_perhaps_a_time(text, target, threshold, budget):
    promise = Promise.from_scalar(text, "x")
    assert (promise.target, promise.threshold, promise.budget) == (target, threshold, budget)


@pytest.mark.parametrize(
    "text", ["100%", "0%", "99", "99% below 1s", "99% under", "99% under 5", "99% under 0s", "-1%"]
)
def test_what_is_no_promise_is_refused_with_what_was_found(text):
    with pytest.raises(ConfigError, match=r"^sla\.yaml:3: ttft: expected .*, found "):
        Promise.from_scalar(text, "sla.yaml:3: ttft")


@given(st.integers(1, 99_999), st.none() | st.integers(1, 600_000))
def test_a_promise_reads_what_it_writes(thousandths, milliseconds):
    threshold = None if milliseconds is None else Seconds(milliseconds / 1000)
    promise = Promise(thousandths / 100_000, threshold)
    assert Promise.from_scalar(str(promise), "x") == promise


@pytest.mark.parametrize(
    ("kind", "text", "bound", "value", "hold"),
    [
        (Temperature, "at most 85 C for 5m", "most", 85, 300),
        (Memory, "at most 76 GiB", "most", 76 * 2**30, 0),
        (Memory, "at most 98% for 15m", "most", 0.98, 900),
        (Throughput, "at least 50 tok/s for 10m", "least", 50, 600),
        (PerSecond, "at most 6/min for 10m", "most", 0.1, 600),
        (PerSecond, "at most 36/h", "most", 0.01, 0),
        (Count, "at most 100 for 30s", "most", 100, 30),
        (Power, "at most 650 W", "most", 650, 0),
        (Share, "at most 10%", "most", 0.1, 0),
    ],
)
def test_a_limit_is_kept_in_base_units(kind, text, bound, value, hold):
    limit = kind.from_scalar(text, "x")
    assert (limit.bound, limit.hold, limit.severity) == (bound, hold, "ticket")
    assert limit.value == pytest.approx(value)
    assert kind.from_scalar(text + " as page", "x").severity == "page"


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_limit_shows_an_example_that_it_takes(kind):
    with pytest.raises(ConfigError) as caught:
        kind.from_scalar("85 degrees", "x")
    for example in kind.EXAMPLE.split("' or '"):
        assert example in str(caught.value)
        limit = kind.from_scalar(example, "x")
        assert kind.from_scalar(str(limit), "x") == limit


@pytest.mark.parametrize(
    "text", ["at most 85", "at most 85 F", "85 C", "at most C", "at most 85 C for", "at most -1 C"]
)
def test_a_limit_without_its_unit_is_refused(text):
    with pytest.raises(ConfigError, match=r"expected a limit such as 'at most 85 C for 5m', found"):
        Temperature.from_scalar(text, "x")


def test_limits_are_all_of_one_shape():
    assert all(issubclass(kind, Limit) for kind in KINDS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "500ms"), (1, "1s"), (90, "90s"), (300, "5m"), (5400, "90m"), (86400, "1d"), (1.5, "1.5s")],
)
def test_durations_take_the_largest_unit_that_is_exact(seconds, text):
    assert duration(seconds) == text


def test_percentages_have_no_rounding_noise():
    assert [percent(share) for share in (0.999, 0.07, 0.99995, 0.29, 1.0)] == ["99.9", "7", "99.995", "29", "100"]

import json
import math
import shutil
import subprocess

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from vllm_vitals.exporter.engines.history import (
    SPAN_SECONDS,
    WINDOW_SECONDS,
    ReadingRing,
    Track,
    bucket_quantile,
    restarted,
)
from vllm_vitals.exporter.engines.readings import Histogram, Reading

EMPTY = Reading(0.0, "vllm", (("0", "m"),), *([None] * 13))


def at(seconds: float, **values) -> Reading:
    return EMPTY.__class__(**{**{n: getattr(EMPTY, n) for n in EMPTY.__slots__}, "at": seconds, **values})


def ring(*readings: Reading | None, interval: float = 5.0) -> ReadingRing:
    made = ReadingRing(interval)
    for reading in readings:
        made.lost() if reading is None else made.add(reading)
    return made


def tokens(reading: Reading) -> float | None:
    return reading.generation_tokens


# --- restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"start_time": 1.0}, {"start_time": 2.0}, True),
        ({"start_time": 1.0, "prompt_tokens": 5}, {"start_time": 1.0, "prompt_tokens": 5}, False),
        ({"start_time": 1.0, "prompt_tokens": 5}, {"start_time": 1.0, "prompt_tokens": 4}, True),
        ({"prompt_tokens": 5}, {"prompt_tokens": 4}, True),
        ({"generation_tokens": 5}, {"generation_tokens": 0}, True),
        ({"progress": 5}, {"progress": 4}, True),
        ({"prompt_tokens": 5}, {"prompt_tokens": None}, False),
        ({"prompt_tokens": None}, {"prompt_tokens": 5}, False),
        ({"start_time": 1.0}, {"start_time": None}, False),
        ({"running": 5}, {"running": 0}, False),  # a gauge
    ],
)
def test_a_restart_is_another_start_time_or_a_counter_that_fell(before, after, expected):
    assert restarted(at(0, **before), at(5, **after)) is expected
    assert ring(at(0, **before), at(5, **after)).restarts == int(expected)


def test_a_restart_behind_a_gap_is_seen_once():
    down = ring(at(0, prompt_tokens=5), None, None, at(15, prompt_tokens=1), at(20, prompt_tokens=2))
    assert down.restarts == 1


def test_who_a_server_is_stays_known_while_it_is_down_and_its_numbers_do_not():
    down = ring(at(0, pairs=(("0", "tiny"),)), None, None)
    assert down.last is None
    assert down.known.pairs == (("0", "tiny"),)
    assert ring().known is None


def test_rates_never_bridge_a_restart_or_a_gap():
    assert ring(at(0, generation_tokens=10), at(5, generation_tokens=60)).rate(tokens) == 10
    assert ring(at(0, generation_tokens=100), at(5, generation_tokens=10)).rate(tokens) is None
    assert ring(at(0, generation_tokens=10), None, at(10, generation_tokens=60)).rate(tokens) is None


# --- rates ------------------------------------------------------------------------------------------------------------


def test_rates_cover_the_window_and_no_more():
    long = ring(*(at(5.0 * n, generation_tokens=n * n) for n in range(100)))
    first, last = long.window
    assert last - first == pytest.approx(WINDOW_SECONDS)
    assert long.rate(tokens) == pytest.approx((99**2 - 87**2) / 60)
    assert long.latest_rate(tokens) == pytest.approx((99**2 - 98**2) / 5)
    assert long.increase(tokens) == pytest.approx((99**2 - 87**2, 60))


def test_two_readings_of_one_moment_have_no_rate():
    twice = ring(at(5, generation_tokens=1), at(5, generation_tokens=1))
    assert (twice.rate(tokens), twice.latest_rate(tokens)) == (None, None)


def test_what_is_not_known_has_no_rate():
    assert ring().rate(tokens) is None
    assert ring(at(0)).latest_rate(tokens) is None
    assert ring(at(0), at(5, generation_tokens=1)).rate(tokens) is None


# --- stalls -----------------------------------------------------------------------------------------------------------


def stalled(*readings: Reading | None) -> float:
    return ring(*readings).stalled_seconds()


def test_work_without_progress_is_a_stall():
    busy = [at(10.0 * n, running=1.0, progress=7.0) for n in range(5)]
    assert stalled(*busy) == 40
    assert stalled(*busy, at(50, running=1.0, progress=8.0)) == 0
    assert stalled(*busy, at(50, running=0.0, waiting=0.0, progress=7.0)) == 0
    assert stalled(*(at(10.0 * n, running=0.0, waiting=3.0, progress=7.0) for n in range(3))) == 20


def test_a_stall_goes_on_behind_a_gap():
    assert stalled(at(0, running=1.0, progress=7.0), None, at(20, running=1.0, progress=7.0)) == 20


def test_a_restart_ends_a_stall():
    before, after = ({"running": 1.0, "progress": 0.0, "start_time": start} for start in (1.0, 2.0))
    assert stalled(at(0, **before), at(20, **before), at(40, **after)) == 0


def test_an_engine_that_does_not_tell_its_progress_is_never_stalled():
    assert stalled(*(at(10.0 * n, running=1.0) for n in range(5))) == 0


def test_without_a_reading_nothing_is_stalled():
    assert stalled() == 0
    assert stalled(at(0, running=1.0, progress=7.0), None) == 0


# --- quantiles --------------------------------------------------------------------------------------------------------


BUCKETS = st.lists(st.integers(0, 50), min_size=2, max_size=8).flatmap(
    lambda steps: st.lists(
        st.floats(0.001, 100), min_size=len(steps) - 1, max_size=len(steps) - 1, unique_by=lambda bound: f"{bound:g}"
    ).map(lambda bounds: (sorted(float(f"{b:g}") for b in bounds), [sum(steps[: n + 1]) for n in range(len(steps))]))
)


@given(BUCKETS, st.floats(0.01, 1))
def test_the_quantile_lies_in_the_bucket_of_its_rank(buckets, q):
    bounds, counts = buckets
    found = bucket_quantile(q, [*bounds, math.inf], counts)
    if not counts[-1]:
        assert found is None
        return
    assert found is not None
    below = [bound for bound, count in zip(bounds, counts, strict=False) if count < q * counts[-1]]
    above = [bound for bound, count in zip(bounds, counts, strict=False) if count >= q * counts[-1]]
    assert (below[-1] if below else 0.0) - 1e-9 <= found <= (above[0] if above else bounds[-1]) + 1e-9


@given(BUCKETS)
def test_a_higher_quantile_is_never_lower(buckets):
    bounds, counts = buckets
    found = [bucket_quantile(q / 20, [*bounds, math.inf], counts) for q in range(1, 21)]
    if counts[-1]:
        assert found == sorted(found)


@pytest.mark.parametrize(
    ("bounds", "counts"),
    [((), ()), ((math.inf,), (5,)), ((1.0, 2.0), (1, 2)), ((1.0, math.inf), (0, 0)), ((1.0, math.inf), (-2, -1))],
)
def test_without_observations_or_a_last_bucket_there_is_no_quantile(bounds, counts):
    assert bucket_quantile(0.5, bounds, counts) is None


def test_the_quantile_is_that_of_the_window_not_of_all_time():
    bounds = (1.0, 2.0, math.inf)
    history = ring(at(0, ttft=Histogram(bounds, (90, 100, 100))), at(5, ttft=Histogram(bounds, (90, 110, 110))))
    assert history.quantile(0.5, lambda r: r.ttft) == 1.5
    changed = ring(at(0, ttft=Histogram((1.0, math.inf), (1, 1))), at(5, ttft=Histogram((2.0, math.inf), (9, 9))))
    assert changed.quantile(0.5, lambda r: r.ttft) is None


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing; ./vitals test installs it")
def test_quantiles_are_those_of_a_real_prometheus(tmp_path):
    cases = [
        ([0.1, 0.5, 1.0], [0, 3, 7, 10]),
        ([0.1, 0.5, 1.0], [10, 10, 10, 10]),
        ([0.1, 0.5, 1.0], [0, 0, 0, 10]),
        ([0.1, 0.5, 1.0], [0, 0, 10, 10]),
        ([0.005, 0.01, 0.02, 0.04], [1, 1, 5, 5, 6]),
        ([1.0], [2, 3]),
        ([0.0, 1.0], [3, 4, 5]),
        ([0.1, 0.5, 1.0], [4, 3, 7, 6]),  # not monotonic: rows read at different moments
        ([7.0, 30.0, 60.0], [1, 100, 1000, 1001]),
    ]
    series, checks = [], []
    for number, (bounds, counts) in enumerate(cases):
        for bound, count in zip([*bounds, math.inf], counts, strict=True):
            le = "+Inf" if math.isinf(bound) else f"{bound:g}"
            series.append({"series": f'x_bucket{{case="{number}",le="{le}"}}', "values": f"{count}"})
        for q in (0.01, 0.3, 0.5, 0.95, 0.99, 1.0):
            ours = bucket_quantile(q, [*bounds, math.inf], counts)
            theirs = f'histogram_quantile({q}, x_bucket{{case="{number}"}})'
            expression = f"abs({theirs} - {ours!r}) < bool 1e-9"
            checks.append(
                {"expr": expression, "eval_time": "0s", "exp_samples": [{"labels": f'{{case="{number}"}}', "value": 1}]}
            )
    tests = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": checks}]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- sparklines -------------------------------------------------------------------------------------------------------


def test_a_track_holds_ten_minutes():
    track = Track(interval=1.0)
    for n in range(2000):
        track.add(n / 3 if n % 2 else None)
    points = track.points()
    assert len(points) == SPAN_SECONDS
    assert points[-2:] == [None, 666.3]
    json.dumps(points, allow_nan=False)

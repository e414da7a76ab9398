"""Integration of the driver's utilisation samples."""

import pytest
from vllm_vitals.exporter.gpus.nvml.busy import BusyTime

SECOND = 1_000_000


def test_the_first_samples_only_say_where_to_begin():
    busy = BusyTime()
    busy.add([(1 * SECOND, 100), (2 * SECOND, 100)])
    assert (busy.seconds, busy.last_seen) == (0, 2 * SECOND)


def test_each_sample_stands_for_the_time_since_the_one_before():
    busy = BusyTime()
    busy.add([(10 * SECOND, 0)])
    busy.add([(10 * SECOND + 200_000, 50), (10 * SECOND + 300_000, 100)])
    assert busy.seconds == pytest.approx(0.5 * 0.2 + 0.1)


def test_samples_out_of_order_or_seen_before_count_once():
    busy = BusyTime()
    busy.add([(10 * SECOND, 0)])
    busy.add([(10 * SECOND + 400_000, 100), (10 * SECOND + 200_000, 100), (10 * SECOND, 100), (0, 100)])
    busy.add([(10 * SECOND + 400_000, 100)])
    assert busy.seconds == pytest.approx(0.4)


def test_a_gap_counts_as_one_second_at_most():
    busy = BusyTime()
    busy.add([(10 * SECOND, 0)])
    busy.add([(100 * SECOND, 100)])
    assert busy.seconds == pytest.approx(1.0)


def test_starting_over_keeps_the_sum():
    busy = BusyTime()
    busy.add([(10 * SECOND, 0)])
    busy.add([(10 * SECOND + 500_000, 100)])
    busy.restart()
    busy.add([(5 * SECOND, 100)])
    busy.add([(5 * SECOND + 500_000, 100)])
    assert busy.seconds == pytest.approx(1.0)

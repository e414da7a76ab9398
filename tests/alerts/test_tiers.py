"""Tiers against table 5-8 of The Site Reliability Workbook, and what they mean in minutes."""

import pytest
from vllm_vitals.alerts.tiers import tiers, window_name, windows

DAY = 86400


def test_for_thirty_days_the_tiers_are_those_of_the_workbook():
    found = [
        (tier.name, tier.pages, window_name(tier.long), window_name(tier.short), tier.factor)
        for tier in tiers(30 * DAY)
    ]
    assert found == [
        ("fast", True, "1h", "5m", pytest.approx(14.4)),
        ("medium", True, "6h", "30m", pytest.approx(6)),
        ("slow", False, "1d", "2h", pytest.approx(3)),
        ("trickle", False, "3d", "6h", pytest.approx(1)),
    ]


def test_for_twenty_eight_days_the_windows_stay_and_the_factors_move():
    assert [tier.factor for tier in tiers(28 * DAY)] == pytest.approx([13.44, 5.6, 2.8, 0.9333], rel=1e-3)


@pytest.mark.parametrize("days", [7, 14, 28, 30, 90])
def test_no_tier_alerts_on_a_kept_promise_and_windows_are_whole_minutes(days):
    for tier in tiers(days * DAY):
        assert tier.factor > 0.9
        assert tier.long % 60 == tier.short % 60 == 0
        assert tier.short < tier.long < days * DAY
    assert [*windows(days * DAY)] == sorted({*windows(days * DAY)})


def test_minutes_from_a_total_outage_to_the_fast_tier():
    fast = tiers(30 * DAY)[0]
    # threshold x 60 minutes, and the minute of `for`: 0.86 at 99.9 %, 8.6 at 99 %, 43 at 95 %
    found = [fast.seconds_to_detect(budget) / 60 - 1 for budget in (0.001, 0.01, 0.05)]
    assert found == pytest.approx([0.864, 8.64, 43.2])
    assert fast.seconds_to_detect(0.07) is None
    assert fast.seconds_to_detect(0.01, 0.144) is None

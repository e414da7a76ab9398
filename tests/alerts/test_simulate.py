"""The simulation against promtool's replay, arithmetic, and what is known of plain policies."""

import numpy as np
import pytest
from vllm_vitals.alerts.simulate import SIZES, Case, Load, Quality, cases, policies, simulate, table
from vllm_vitals.alerts.simulate_plot import plot
from vllm_vitals.alerts.sla_file import load
from vllm_vitals.alerts.tiers import tiers
from vllm_vitals.settings.scalars import ConfigError

STEP = 30


def case_of(sla) -> Case:
    (case,) = cases(sla)
    return case


@pytest.mark.parametrize(
    ("text", "rps", "curve"),
    [("0.5 rps, diurnal", 0.5, "diurnal"), ("30/min", 0.5, "flat"), ("1800/h,office", 0.5, "office")],
)
def test_traffic_is_a_rate_and_a_curve(text, rps, curve):
    assert Load.read(text) == Load(rps, curve)


@pytest.mark.parametrize("text", ["diurnal", "0.5", "0.5 rps, weekly", "0 rps"])
def test_other_traffic_is_refused(text):
    with pytest.raises(ConfigError, match=r"^--traffic: expected .*, found"):
        Load.read(text)


def test_an_outage_is_found_when_the_arithmetic_says_so(sla_of):
    """Steady traffic, no randomness: the policy fires at the computed minute, as Prometheus does (test_rule_tests)."""
    sla = sla_of("ttft: 99% under 500ms")
    pages = policies(sla, case_of(sla))[0]
    total = np.full(4 * 86400 // STEP, 60.0)
    for share in (1.0, 0.3):
        bad = np.zeros(len(total))
        begin = len(total) - 6 * 3600 // STEP
        bad[begin:] = 60.0 * share
        fires = pages.fires(total, bad)
        assert not fires[:begin].any()
        found = (np.flatnonzero(fires)[0] - begin) * STEP
        assert found == pytest.approx(tiers(sla.window)[0].seconds_to_detect(0.01, share), abs=2 * STEP)


def test_half_the_budget_never_fires_and_one_bad_event_at_night_neither(sla_of):
    sla = sla_of("ttft: 99% under 500ms")
    ours = policies(sla, case_of(sla))
    total = np.full(4 * 86400 // STEP, 60.0)
    assert not any(policy.fires(total, total * 0.005).any() for policy in ours)
    quiet, one = np.zeros(len(total)), np.zeros(len(total))
    quiet[::120] = 1.0
    one[10800] = quiet[10800]
    fires = {policy.name: bool(policy.fires(quiet, one).any()) for policy in ours}
    assert not fires["this SLA, pages"]
    assert fires["ratio over 5 min > 5%"]
    assert fires["two windows, no guard"]


def test_at_low_traffic_this_sla_pages_less_often_for_nothing_than_every_plain_policy_that_finds_as_much(sla_of):
    sla = sla_of("ttft: 99% under 500ms")
    found = {quality.policy: quality for quality in simulate(sla, case_of(sla), Load.read("18/h, diurnal"), seeds=4)}
    ours = found["this SLA, pages"]
    assert ours.false_per_month < 0.5
    assert ours.minutes[1.0] is not None
    assert found["ratio over 5 min > 5%"].false_per_month > 20
    assert found["two windows, no guard"].false_per_month > 1


def test_the_same_seeds_give_the_same_figures(sla_of):
    sla = sla_of("availability: 99.9%")
    assert [*simulate(sla, case_of(sla), Load(0.01), seeds=2)] == [*simulate(sla, case_of(sla), Load(0.01), seeds=2)]


def test_a_service_level_of_another_length_is_simulated_with_its_own_windows(sla_of):
    text = "window: 7d\nservices: [{name: a, selector: {job: x}, objectives: {availability: 99.9%}}]\n"
    sla = sla_of(text)
    found = [*simulate(sla, case_of(sla), Load(1.0), seeds=1)]
    assert found[0].minutes[1.0] is not None


def test_promises_that_alert_alike_are_simulated_once():
    names = [case.names for case in cases(load())]
    assert ("vllm availability", "vllm engine_errors") in names
    assert sum(map(len, names)) == 8


def test_a_table_says_what_was_missed():
    quality = Quality(
        "x", 1.25, dict.fromkeys(SIZES, 12.0) | {0.03: None}, dict.fromkeys(SIZES, 0.0) | {0.03: 0.9, 0.1: 0.25}
    )
    text = table(case_of_default(), [quality])
    assert "1.2" in text
    assert "12 min, 25% missed" in text
    assert text.splitlines()[-1].endswith("-")


def case_of_default() -> Case:
    return cases(load())[0]


def test_the_plot_is_a_picture(sla_of, tmp_path):
    sla = sla_of("availability: 99.9%")
    case = case_of(sla)
    found = [*simulate(sla, case, Load(0.1), seeds=1)]
    plot([(case, found)], Load(0.1), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")

"""Days that are added up from recorded hours say what `increase()` over days says, to a real promtool of each version.

Every figure is compared with Prometheus' own `increase()` over the pages' samples, and with the events that there were.
"""

import dataclasses
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from vllm_vitals.alerts.build import rule_groups
from vllm_vitals.alerts.indicators import counts
from vllm_vitals.alerts.rule_tests import LoadPhase, _series
from vllm_vitals.alerts.rules import Alert, Group, as_yaml
from vllm_vitals.alerts.tiers import part_of, window_name, windows

HOUR, DAY = 60, 1440  # minutes
STEP = 30  # minutes between evaluations
# A seam of parts may lose what came between two scrapes, here a minute; Prometheus 3 leaves out the left edge.
TOLERANCE = 0.003
SLA = """\
services:
  - name: chat
    selector: {job: vllm}
    via: engine
    requests_page: on
    objectives:
      ttft: 99% under 500ms
      tpot: 95% under 60ms
      availability: 99.9%
      engine_errors: 99.9%
      goodput: 94%
"""
ALL = ("ttft", "tpot", "availability", "engine_errors", "goodput")


# Which windows are put together, and of what.


@pytest.mark.parametrize(
    ("days", "parts"),
    [
        (7, {"1008m": "336m"}),
        (28, {"1d": "6h", "3d": "1d"}),
        (30, {"1d": "6h", "3d": "1d"}),
        (60, {"12h": "4h", "2d": "12h", "6d": "2d"}),
        (90, {"18h": "6h", "3d": "18h", "9d": "3d"}),
    ],
)
def test_windows_over_six_hours_are_made_of_the_longest_that_divides_them(days, parts):
    every = windows(days * 86400.0)
    found = {window_name(window): part_of(window, every) for window in every}
    assert {name: window_name(part) for name, part in found.items() if part is not None} == parts


def test_a_window_that_none_divides_is_looked_at_whole():
    assert part_of(25 * 3600, (300, 3600 * 6, 3600 * 10)) is None
    assert part_of(24 * 3600, (300,)) is None, "no sum of 288"


@given(st.floats(7, 90))
def test_whatever_the_sla_s_window_parts_cover_a_window_exactly_and_are_recorded_before_it(days):
    every = windows(days * 86400.0)
    for window in every:
        part = part_of(window, every)
        assert window > 6 * 3600 or part is None
        if part is not None:
            assert part in every
            assert part < window
            assert window % part == 0
            assert window // part <= 6


def test_a_part_is_evaluated_in_the_group_of_its_whole_and_before_it(sla_of):
    for days in ("7d", "30d", "45d", "90d"):
        sla = sla_of(f"window: {days}\nretention: 120d\n{SLA}")
        for group in (group for some in rule_groups(sla).values() for group in some):
            recorded: set[str] = set()
            for rule in group.rules:
                if isinstance(rule, Alert):
                    continue
                read = rule.expr.partition("label_replace(last_over_time(")[2].partition("{")[0]
                assert not read or read in recorded
                recorded.add(rule.record)


# What they say.


class Past(NamedTuple):
    """Minutes of traffic, oldest first, and how far a sum of its bad events may be off."""

    phases: Sequence[LoadPhase]
    tolerance: float = TOLERANCE

    @property
    def minutes(self) -> int:
        return sum(phase.minutes for phase in self.phases)

    def events(self, minutes: int) -> tuple[float, float]:
        """Return the events of the last minutes and the bad ones among them."""
        total = bad = 0.0
        for phase in reversed(self.phases):
            part = min(minutes, phase.minutes)
            total, bad, minutes = total + part * phase.total, bad + part * phase.bad, minutes - part
        return total, bad


def day_and_night() -> Iterator[LoadPhase]:
    for _ in range(4):
        for hours, total, bad in ((7, 1, 0), (2, 30, 0.3), (5, 90, 2), (1, 400, 100), (5, 60, 0), (4, 10, 1)):
            yield LoadPhase(hours * HOUR, total, bad)


PASTS = {
    "constant": Past([LoadPhase(4 * DAY, 60, 0.6)]),
    "day and night": Past([*day_and_night()]),
    "ten bad minutes long ago": Past(
        [LoadPhase(2 * DAY, 60, 0), LoadPhase(10, 60, 60), LoadPhase(17 * HOUR + 20, 60, 0)]
    ),
    "ten bad minutes of which a seam may lose one": Past(
        [LoadPhase(2 * DAY, 60, 0), LoadPhase(10, 60, 60), LoadPhase(17 * HOUR + 50, 60, 0)], 0.1
    ),
    "five bad ones on one day": Past(
        [
            LoadPhase(3 * DAY - 20, 1, 0),
            *(LoadPhase(minutes, 1, bad) for _ in range(5) for minutes, bad in ((1, 1), (239, 0))),
            LoadPhase(20, 1, 0),
        ]
    ),
    "restarts within parts, and close to a seam": Past(
        [
            LoadPhase(3 * DAY, 60, 0.6),
            LoadPhase(14 * HOUR, 60, 0.6, reset=True),
            LoadPhase(4 * HOUR + 7, 60, 1.2, reset=True),
            LoadPhase(6 * HOUR - 7, 60, 0, reset=True),
        ],
        0.005,  # the minute before a restart is gone with it
    ),
    "younger than a part": Past([LoadPhase(2 * HOUR, 60, 0.6)]),
    "younger than a day": Past([LoadPhase(8 * HOUR, 60, 0.6)]),
    "younger than three days": Past([LoadPhase(30 * HOUR, 60, 0.6)]),
}


def groups_of(sla, indicator: str) -> list[Group]:
    """Return the groups that record an indicator's hours and days."""
    name = f"chat-{indicator.replace('_', '-')}-slow"
    return [group for some in rule_groups(sla).values() for group in some if group.name == name]


def check(found: str, wanted: str | float, minute: int, tolerance: float = TOLERANCE) -> dict[str, Any]:
    wanted = f"sum({wanted})" if isinstance(wanted, str) else f"vector({wanted})"
    expression = f"abs(sum({found}) - {wanted}) <= bool {tolerance} * {wanted} + 0.01"
    return {"expr": expression, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": 1}]}


def said(binaries, folder, groups: Sequence[Group], series: Sequence[dict[str, str]], checks: Sequence[Any]) -> str:
    """Return what promtool says against checks, empty when all hold."""
    (folder / "long.rules.yml").write_text(as_yaml(groups))
    test = {"interval": "1m", "input_series": [*series], "promql_expr_test": [*checks]}
    file = {"rule_files": ["long.rules.yml"], "evaluation_interval": f"{STEP}m", "tests": [test]}
    (folder / "long.test.yml").write_text(yaml.safe_dump(file, sort_keys=False))
    command = [binaries / "promtool", "test", "rules", "long.test.yml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize(
    ("indicator", "name"),
    [*(("ttft", name) for name in PASTS), *((other, "day and night") for other in ALL if other != "ttft")],
)
def test_sums_of_parts_are_what_increase_says_and_what_happened(prometheus_binaries, sla_of, tmp_path, indicator, name):
    past, sla = PASTS[name], sla_of(SLA)
    (service,) = sla.services
    objective = getattr(service.objectives, indicator)
    now = past.minutes
    assert now % STEP == 0
    checks = []
    for window, days in (("1d", 1), ("3d", 3)):
        raw, (total, bad) = counts(service, indicator, objective, window), past.events(days * DAY)
        checks += [
            check(f"slo:sli_total:increase{window}", raw.total, now),
            check(f"slo:sli_total:increase{window}", total, now),
            check(f"slo:sli_bad:increase{window}", f"{raw.bad}", now, past.tolerance),
            check(f"slo:sli_bad:increase{window}", bad, now, past.tolerance),
        ]
        if bad:
            checks.append(check(f"slo:sli_error:ratio{window}", bad / total, now, past.tolerance))
    series = _series(service, indicator, objective, past.phases)
    assert not said(prometheus_binaries, tmp_path, groups_of(sla, indicator), series, checks)


def minutes_of(values: str) -> list[float]:
    """Return the samples of promtool's `0+60x5 ...`."""
    samples: list[float] = []
    for begin, step, count in re.findall(r"(\S+?)\+(\S+?)x(\d+)", values):
        samples += [float(begin) + float(step) * number for number in range(int(count) + 1)]
    return samples


def without(series: Sequence[dict[str, str]], gap: range) -> list[dict[str, str]]:
    """Return series that nobody scraped for some minutes."""
    return [
        {
            "series": one["series"],
            "values": " ".join(
                "_" if minute in gap else f"{value:.10g}" for minute, value in enumerate(minutes_of(one["values"]))
            ),
        }
        for one in series
        if "+" in one["values"]
    ]


def test_what_nobody_scraped_for_hours_is_in_the_sum_once_both_of_its_sides_are_in_one_part(
    prometheus_binaries, sla_of, tmp_path
):
    sla = sla_of(SLA)
    (service,) = sla.services
    raw = counts(service, "ttft", service.objectives.ttft, "1d")
    gap = range(3 * DAY - 17 * HOUR, 3 * DAY - 14 * HOUR)
    series = without(_series(service, "ttft", service.objectives.ttft, [LoadPhase(3 * DAY, 60, 0.6)]), gap)
    # At a seam within the gap, 180 of 1440 minutes are in neither part.
    checks = [
        check(f"slo:sli_{what}:increase1d", expression, now, tolerance)
        for now, tolerance in ((3 * DAY, TOLERANCE), (3 * DAY - 3 * HOUR, 180 / DAY), (3 * DAY - 2 * HOUR, TOLERANCE))
        for what, expression in zip(("total", "bad"), raw, strict=True)
    ]
    assert not said(prometheus_binaries, tmp_path, groups_of(sla, "ttft"), series, checks)


@pytest.mark.parametrize(
    ("away", "lost"),
    [
        pytest.param(range(6 * HOUR - 30, 6 * HOUR + 20), 50, id="less than an hour, around a seam"),
        pytest.param(range(6 * HOUR - 2 * HOUR, 6 * HOUR + HOUR), 180, id="hours, around a seam"),
        pytest.param(range(6 * HOUR - 30, 6 * HOUR + 5 * HOUR), 331 + 60, id="nearly a part before a seam"),
        pytest.param(range(8 * HOUR, 11 * HOUR), 0, id="hours within a part"),
        pytest.param(range(13 * HOUR, 10 * DAY), 0, id="before it was there at all"),
    ],
)
def test_a_prometheus_that_was_away_loses_no_more_than_that_and_half_a_part_and_the_ratio_stays(
    prometheus_binaries, sla_of, tmp_path, away, lost
):
    """promtool records through every gap, so what was recorded before is an input here; `away`: minutes ago."""
    sla = sla_of(SLA)
    (group,) = groups_of(sla, "ttft")
    days = [rule for rule in group.rules if rule.record.endswith("1d")]
    now = 2 * DAY

    def seen(minute: int) -> bool:
        return now - minute not in away

    def recorded(minute: int) -> float | None:
        """Return the minutes between the first and the last scrape of six hours."""
        scrapes = [one for one in range(max(0, minute - 6 * HOUR), minute + 1) if seen(one)]
        return scrapes[-1] - scrapes[0] if seen(minute) else None

    values = [recorded(minute) for minute in range(now + 1)]
    series = [
        {
            "series": f'slo:sli_{what}:increase6h{{slo="ttft",service="chat",model_name="m"}}',
            "values": " ".join("_" if value is None else f"{value * rate:.10g}" for value in values),
        }
        for what, rate in (("total", 60), ("bad", 6))
    ]
    between = [minute for minute in range(now - DAY, now + 1) if seen(minute)]
    whole = 60 * (between[-1] - between[0])
    checks = [
        check("slo:sli_total:increase1d", whole, now, lost / DAY + 1e-6),
        check("slo:sli_error:ratio1d", 0.1, now, 1e-6),
    ]
    assert not said(prometheus_binaries, tmp_path, [dataclasses.replace(group, rules=days)], series, checks)


def test_an_engine_that_is_gone_stays_in_the_sum_for_as_long_as_the_window(prometheus_binaries, sla_of, tmp_path):
    sla = sla_of(SLA)
    (service,) = sla.services
    there = [
        {**one, "values": one["values"] + " stale"}
        for one in _series(service, "ttft", service.objectives.ttft, [LoadPhase(DAY, 60, 0.6)])
    ]
    checks = [
        check("slo:sli_total:increase1d", 60 * 14 * HOUR, DAY + 10 * HOUR),
        check("slo:sli_bad:increase1d", 0.6 * 14 * HOUR, DAY + 10 * HOUR),
        check("slo:sli_total:increase3d", 60 * DAY, DAY + 10 * HOUR),
        check("slo:sli_total:increase3d", 60 * DAY, 2 * DAY + 10 * HOUR),
        check("slo:sli_total:increase1d or vector(0)", 0, 2 * DAY + 10 * HOUR),
    ]
    assert not said(prometheus_binaries, tmp_path, groups_of(sla, "ttft"), there, checks)

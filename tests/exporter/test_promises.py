"""Promises judged from pages: events as the rules count them, windows over restarts and gaps, and what is not known."""

import itertools
import re

import pytest
from vllm_vitals.alerts.sla_file import load
from vllm_vitals.cli.in_force import in_force
from vllm_vitals.exporter.pages.relabel import Relabeler
from vllm_vitals.exporter.promises.events import count
from vllm_vitals.exporter.promises.record import Count, PromiseRecord, kept
from vllm_vitals.exporter.promises.verdict import percent, stands

MODEL = "m"


def page(server="a", *, total=0, late=0, model=MODEL, engines=1, errors=0, bounds=("0.5", "+Inf"), family="ttft"):
    """A server's page with a TTFT histogram, split over data-parallel ranks, and HTTP counts."""
    name = {"ttft": "vllm:time_to_first_token_seconds", "none": "vllm:other_seconds"}[family]
    lines = [f"# TYPE {name} histogram"]
    for engine in range(engines):
        labels = f'engine="{engine}",model_name="{model}"'
        part, bad = total / engines, late / engines
        lines += [f'{name}_bucket{{{labels},le="{le}"}} {part if le == "+Inf" else part - bad}' for le in bounds]
        lines += [f"{name}_count{{{labels}}} {part}", f"{name}_sum{{{labels}}} 1.0"]
    lines.append("# TYPE vllm:num_requests_running gauge")
    lines += [f'vllm:num_requests_running{{engine="{n}",model_name="{model}"}} 1.0' for n in range(engines)]
    lines.append("# TYPE http_requests_total counter")
    for status, number in (("2xx", total), ("5xx", errors)):
        lines.append(f'http_requests_total{{handler="/v1/completions",method="POST",status="{status}"}} {number}.0')
    return Relabeler(server).relabel("\n".join([*lines, ""]).encode())


def promises(tmp_path, objectives="ttft: 99% under 500ms", more="", labels=None):
    path = tmp_path / "sla.yaml"
    path.write_text(
        f"services:\n- name: s\n  selector: {{job: vllm-vitals}}\n{more}  objectives:\n"
        + "".join(f"    {line}\n" for line in objectives.split("; "))
    )
    return in_force(load(path), path, labels or {})


def standing(record, promised, place=0):
    ((group, _),) = record.groups(place).items()
    return stands(promised.rows[place], lambda window: record.within(place, group, window), record.seconds)


def played(promised, *readings, step=15.0):
    """A record after readings [(server, page), ...], one step apart."""
    record = PromiseRecord(promised)
    for number, pages in enumerate(readings):
        for server, one in pages.items():
            record.take(server, one, None, anew=False)
        record.mark(1000.0 + number * step, list(pages))
    return record


def test_a_budget_that_is_spent_too_fast_burns_by_its_fastest_tier(tmp_path):
    promised = promises(tmp_path)
    record = played(promised, {"a": page()}, {"a": page(total=100, late=20)})
    found = standing(record, promised)
    assert (found.state, found.level, found.tier.name) == ("burning", "critical", "fast")
    assert found.words == "20% of the last 15 s missed it"


@pytest.mark.parametrize(
    ("total", "late", "state"),
    [
        (1000, 5, "kept"),
        (1000, 20, "burning"),  # by the trickle tier, as Prometheus has it: a ticket
        (0, 0, "unknown"),
        (4, 0, "unknown"),  # fewer than min_bad_events
        (100, 4, "unknown"),  # missed, by too few to judge
    ],
)
def test_states_come_from_share_and_number(tmp_path, total, late, state):
    promised = promises(tmp_path)
    assert standing(played(promised, {"a": page()}, {"a": page(total=total, late=late)}), promised).state == state


def test_a_slow_burn_is_a_ticket_and_a_miss_of_the_last_minutes_only_a_note(tmp_path):
    promised = promises(tmp_path)
    slow = standing(played(promised, {"a": page()}, {"a": page(total=1000, late=20)}), promised)
    assert (slow.level, slow.tier.severity) == ("warning", "ticket")
    good = [{"a": page(total=1000 * n)} for n in range(1, 40)]
    late = standing(played(promised, *good, {"a": page(total=40_000, late=300)}), promised)
    assert (late.state, late.level) == ("broken", "note")


def test_what_was_before_we_looked_does_not_count(tmp_path):
    promised = promises(tmp_path)
    record = played(promised, {"a": page(total=5000, late=5000)}, {"a": page(total=5100, late=5000)})
    assert record.within(0, (("model_name", MODEL),), 300) == Count(100, 0)


def test_counters_that_begin_anew_are_added_up(tmp_path):
    promised = promises(tmp_path)
    record = played(promised, {"a": page(total=50)}, {"a": page(total=90)}, {"a": page(total=10, late=4)})
    assert record.within(0, (("model_name", MODEL),), 300) == Count(50, 4)


def test_a_restart_that_no_counter_shows_is_told(tmp_path):
    promised = promises(tmp_path)
    record = played(promised, {"a": page(total=50)})
    record.take("a", page(total=60), None, anew=True)
    record.mark(2000.0, ["a"])
    assert record.within(0, (("model_name", MODEL),), 3600) == Count(60, 0)


def test_ranks_and_servers_of_a_model_are_one_promise_and_the_one_that_hurts_is_known(tmp_path):
    promised = promises(tmp_path)
    first = {"a": page("a", engines=2), "b": page("b")}
    then = {"a": page("a", total=100, engines=2), "b": page("b", total=100, late=60)}
    record = played(promised, first, then)
    group = (("model_name", MODEL),)
    assert record.groups(0) == {group: ("a", "b")}
    assert record.within(0, group, 300) == Count(200, 60)
    assert [record.within(0, group, 300, server) for server in "ab"] == [Count(100, 0), Count(100, 60)]


def test_a_server_that_leaves_takes_no_events_along(tmp_path):
    promised = promises(tmp_path)
    first, then = {"a": page("a"), "b": page("b")}, {"a": page("a", total=10), "b": page("b", total=30, late=30)}
    record = played(promised, first, then, {"a": page("a", total=20)})
    assert record.groups(0) == {(("model_name", MODEL),): ("a",)}
    assert record.within(0, (("model_name", MODEL),), 300) == Count(50, 30)


def test_a_series_that_a_page_leaves_out_once_is_not_counted_from_its_birth_again(tmp_path):
    promised = promises(tmp_path)
    record = played(promised, {"a": page(total=1000)}, {"a": page(family="none")}, {"a": page(total=1010)})
    assert record.within(0, (("model_name", MODEL),), 300) == Count(10, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"family": "none"}, "the engine does not tell vllm:time_to_first_token_seconds"),
        ({"bounds": ("0.25", "+Inf")}, "its histogram has no bucket of 0.5 s"),
    ],
)
def test_a_page_without_the_histogram_or_the_bucket_is_not_known_and_says_why(tmp_path, changes, words):
    promised = promises(tmp_path)
    record = played(promised, {"a": page(**changes)}, {"a": page(total=100, **changes)})
    assert standing(record, promised).state == "unknown"
    assert record.lacks(0, ["a"]) == {"a": words}


def test_a_time_between_two_buckets_is_interpolated_as_the_rules_do(tmp_path):
    promised = promises(tmp_path, "ttft: 99% under 400ms")
    (counted,) = count(promised.rows[0], {}, page(total=100, late=40, bounds=("0.25", "0.5", "+Inf")), None).events
    assert counted.good == pytest.approx(60)  # both buckets hold 60 here
    assert (promised.rows[0].events.lower, promised.rows[0].events.upper) == (0.25, 0.5)


def test_availability_counts_answers_and_errors_of_the_servers_only_model(tmp_path):
    promised = promises(tmp_path, "availability: 99.9%")
    record = played(promised, {"a": page()}, {"a": page(total=90, errors=10)})
    assert record.within(0, (("model_name", MODEL),), 300) == Count(100, 10)


def test_goodput_without_the_plugin_is_the_worse_of_both_promises(tmp_path):
    promised = promises(tmp_path, "ttft: 99% under 500ms; tpot: 95% under 75ms; goodput: 94%")
    record = played(promised, {"a": page()}, {"a": page(total=100, late=20)})
    assert standing(record, promised, 2).state == "unknown"  # nothing is known of TPOT
    assert "time_per_output_token" in record.lacks(2, ["a"])["a"]


@pytest.mark.parametrize(
    ("selector", "labels", "meant"),
    [
        ("{job: vllm-vitals}", {}, True),  # nobody here knows the job
        ("{job: vllm-vitals}", {"job": "vllm-vitals"}, True),
        ("{job: other}", {"job": "vllm-vitals"}, False),
        ("{server: a}", {}, True),
        ("{server: b}", {}, False),
        ('{model_name: "~m.*"}', {}, True),
        ('{model_name: "~.*x"}', {}, False),
    ],
)
def test_a_selector_takes_only_what_it_means(tmp_path, selector, labels, meant):
    promised = promises(tmp_path, labels=labels)
    path = tmp_path / "sla.yaml"
    path.write_text(path.read_text().replace("{job: vllm-vitals}", selector))
    promised = in_force(load(path), path, labels)
    record = played(promised, {"a": page()}, {"a": page(total=100)})
    assert bool(record.groups(0)) is meant


def test_the_tiers_are_those_of_the_rules():
    promised = in_force(load(), None, {})
    ttft = promised.rows[0]
    assert [(tier.name, tier.severity, tier.long, tier.short) for tier in ttft.tiers] == [
        ("fast", "page", 3600, 300),
        ("medium", "page", 21600, 1800),
        ("slow", "ticket", 86400, 7200),
        ("trickle", "ticket", 259200, 21600),
    ]
    assert [round(tier.limit, 4) for tier in ttft.tiers] == [0.144, 0.06, 0.03, 0.01]
    assert {row.indicator for row in promised.rows} >= {"goodput-at-best", "engine-errors", "availability"}


def test_moments_thin_out_with_age_and_stay_bounded():
    moments: list[float] = []
    for second in range(0, 4 * 86400, 15):
        moments.append(float(second))
        if len(moments) % 20 == 0:
            moments = [moments[i] for i in kept(moments, float(second), 3 * 86400.0)]
    assert len(moments) < 500
    now = moments[-1]
    assert now - moments[0] >= 3 * 86400 - 1800
    recent = [moment for moment in moments if now - moment <= 540]
    assert max(b - a for a, b in itertools.pairwise(recent)) <= 15
    assert max(b - a for a, b in itertools.pairwise(moments)) <= 1800


def test_labels_without_end_are_bounded(tmp_path):
    promised = promises(tmp_path)
    record = PromiseRecord(promised)
    for number in range(5000):
        record.take("a", page(model=f"m{number}"), None, anew=False)
    assert len(record.groups(0)) <= 4097
    assert record.left_out > 0


@pytest.mark.parametrize(
    ("share", "words"), [(1.0, "100%"), (0.99999, ">99.99%"), (0.5, "50%"), (0.00001, "<0.01%"), (0.0, "0%")]
)
def test_what_is_not_all_is_never_a_hundred_percent(share, words):
    assert percent(share) == words
    assert re.fullmatch(r"[<>]?[0-9.]+%", words)

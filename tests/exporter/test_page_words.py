import pytest
from vllm_vitals.exporter.health import Verdict
from vllm_vitals.exporter.page_words import (
    engine_notes,
    engine_past,
    engine_state,
    gpu_level,
    gpu_models,
    gpu_notes,
    index_ranges,
    throttles,
    totals,
    verdict,
)

NOW = 1_800_000_000.0


def engine(server="a", **changes):
    row = {
        "server": server, "up": True, "reason": "", "status": "ok", "reasons": (), "level": "ok", "notes": [],
        "running": 3.0, "waiting": 0.0, "prompt_tokens_per_second": 1200.0, "generation_tokens_per_second": 100.0,
        "preemptions_per_second": 0.0, "history": {"waiting": []},
    }  # fmt: skip
    return {**row, **changes}


def gpu(index=0, **changes):
    row = {
        "gpu": str(index), "uuid": f"GPU-{index}", "up": True, "reason": "", "status": "ok", "reasons": (),
        "servers": ["a"], "throttle": [], "xid": [], "age_seconds": 0.5, "power_watts": 400.0,
    }  # fmt: skip
    row |= changes
    notes = gpu_notes(row, NOW)
    return {**row, "notes": notes, "level": gpu_level(notes)}


def xid(code, seconds_ago, *, critical, count=1.0, meaning="broken"):
    return {
        "xid": code, "count": count, "last_timestamp_seconds": NOW - seconds_ago, "meaning": meaning,
        "critical": critical,
    }  # fmt: skip


DOWN = {"up": False, "reason": "refused", "level": "critical", "running": None, "waiting": None}


@pytest.mark.parametrize(
    ("engines", "gpus", "level", "words"),
    [
        ([], [], "wait", "Nothing to watch yet: no engine, no GPU"),
        ([engine()], [], "ok", "All well: 1 engine, no GPU"),
        ([], [gpu(0), gpu(1)], "ok", "GPUs are well: no engine, 2 GPUs"),
        ([engine("a"), engine("b")], [gpu()], "ok", "All well: 2 engines, 1 GPU"),
        ([engine("a"), engine("b", **DOWN)], [gpu()], "critical", "1 engine down: b (refused)"),
        (
            [engine(name, **DOWN) for name in "abcd"],
            [],
            "critical",
            "4 engines down: a (refused), b (refused) and 2 more",
        ),
        ([engine("a", level="critical")], [], "critical", "1 engine not working: a"),
        ([engine("a", up=False, level="wait")], [], "wait", "1 engine not looked at yet: a"),
        ([engine()], [gpu(0, up=False, reason="lost"), gpu(1)], "critical", "1 GPU not readable: GPU 0"),
        ([engine()], [gpu(0, up=False, reason="starting")], "wait", "1 GPU being opened: GPU 0"),
        ([engine()], [gpu(3, xid=[xid(79, 5, critical=True)])], "critical", "1 GPU critical: GPU 3"),
        ([engine()], [gpu(3, throttle=["sw_thermal"])], "warning", "1 GPU with a warning: GPU 3"),
        ([engine()], [gpu(3, throttle=["sw_power_cap"])], "ok", "All well: 1 engine, 1 GPU"),
        (
            [engine("b", **DOWN)],
            [gpu(0, up=False, reason="hang")],
            "critical",
            "1 engine down: b (refused); 1 GPU not readable: GPU 0",
        ),
    ],
)
def test_one_line_says_whether_anything_is_wrong_and_where(engines, gpus, level, words):
    found = verdict(engines, gpus)
    assert (found["level"], found["words"]) == (level, words)


def test_every_problem_names_its_place_and_its_reason():
    broken = engine("b", **DOWN, reasons=("down (refused): nobody listens at its address",))
    hot = gpu(2, throttle=["sw_thermal"], xid=[xid(94, 60, critical=False), xid(13, 5000, critical=False)])
    first, second = verdict([broken], [gpu(1), hot])["problems"]
    assert (first["server"], first["level"]) == ("b", "critical")
    assert first["words"] == "down (refused): nobody listens at its address"
    assert (second["uuid"], second["level"], second["who"]) == ("GPU-2", "warning", "GPU 2 (a)")
    assert second["words"] == "slowed down: too hot; XID 94: broken"


def test_a_queue_that_stays_is_said_and_one_that_passes_is_not():
    stays = engine("a", history={"waiting": [0.0, 3.0, 1.0, 9.0, 4.0]})
    passes = engine("b", history={"waiting": [9.0, 9.0, 9.0, 0.0, 5.0]})
    lost = engine("c", history={"waiting": [9.0, 9.0, None, 5.0]})
    rows = [{**row, "notes": engine_notes(row, 5.0)} for row in (stays, passes, lost)]
    assert [len(row["notes"]) for row in rows] == [1, 0, 0]
    found = verdict(rows, [])
    assert found["words"] == "All up: 3 engines, no GPU; requests keep waiting at a"
    assert (found["level"], found["problems"]) == ("note", [])


def test_a_kv_cache_that_overflows_is_said():
    row = engine("a", preemptions_per_second=0.2)
    found = verdict([{**row, "notes": engine_notes(row, 5.0)}], [])
    assert found["words"] == "All up: 1 engine, no GPU; the KV cache overflows at a"


def test_an_engines_notes_do_not_repeat_its_state():
    row = engine("a", **DOWN, reasons=("down (refused): nobody listens at its address",))
    assert [note["words"] for note in engine_notes(row, 5.0)] == ["nobody listens at its address"]


@pytest.mark.parametrize(
    ("up", "reason", "judged", "expected"),
    [
        (True, "", Verdict("ok"), ("ok", "up")),
        (True, "", Verdict("critical", ("stalled",)), ("critical", "up, but not working")),
        (False, "timeout", Verdict("critical", ("down",)), ("critical", "down (timeout)")),
        (False, "pending", Verdict("critical", ("down",)), ("wait", "not looked at yet")),
    ],
)
def test_a_server_has_a_state_in_two_words(up, reason, judged, expected):
    assert engine_state(up=up, reason=reason, judged=judged) == expected


def test_xids_come_with_meaning_time_and_number_the_newest_first():
    notes = gpu_notes(gpu(xid=[xid(13, 40, critical=False, count=3.0), xid(79, 20, critical=True)]), NOW)
    assert [(note["level"], note["words"], NOW - note["at"]) for note in notes] == [
        ("critical", "XID 79: broken", 20),
        ("warning", "XID 13: broken (3 times)", 40),
    ]


def test_an_old_xid_is_told_without_alarm():
    found = gpu(xid=[xid(79, 901, critical=True, meaning="")])
    assert (found["level"], found["notes"][0]["level"], found["notes"][0]["words"]) == ("ok", "note", "XID 79")


def test_reasons_of_the_verdict_are_told_once():
    found = gpu(
        status="critical",
        reasons=("temperature 95 C, limit 90 C", "XID 79: broken"),
        xid=[xid(79, 5, critical=True)],
    )
    assert [note["words"] for note in found["notes"]] == ["temperature 95 °C, limit 90 °C", "XID 79: broken"]


def test_old_readings_say_how_old_they_are():
    (note,) = gpu(age_seconds=12.0)["notes"]
    assert (note["level"], note["words"], NOW - note["at"]) == ("note", "last read", 12.0)


def test_clocks_that_nobody_holds_down_are_no_news():
    assert throttles(["idle", "sw_power_cap", "application_clocks", "hw_thermal"]) == ["sw_power_cap", "hw_thermal"]


def test_totals_say_when_a_part_is_missing():
    rows = [engine("a"), engine("b", running=None, generation_tokens_per_second=None)]
    words = totals(rows, [gpu(0), gpu(1, power_watts=1000.0)])
    assert words == "3 running, 0 waiting (from 1 of 2) · 2,400 tok/s in, 100 tok/s out (from 1 of 2) · 1.4 kW"
    assert totals([], []) == ""


def test_small_words():
    assert index_ranges([7, 0, 1, 2, 5]) == "0\N{EN DASH}2, 5, 7"
    assert engine_past(2, 1) == "2 data parallel ranks, 1 restart seen"
    assert engine_past(1, 0) == ""
    assert gpu_models(["H100", "H100", "L4"]) == "2 \N{MULTIPLICATION SIGN} H100, 1 \N{MULTIPLICATION SIGN} L4"

from dataclasses import fields, replace

import pytest
from vllm_vitals.exporter.live.health import Symptom, Verdict
from vllm_vitals.exporter.live.rows import EngineRow, GpuRow, XidRow
from vllm_vitals.exporter.live.wording import (
    alert_rows,
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
from vllm_vitals.exporter.promises.alerts import Alert, Alerts, Source
from vllm_vitals.exporter.promises.watch import PromiseRow

NOW = 1_800_000_000.0


def engine(server="a", **changes):
    row = dict.fromkeys(field.name for field in fields(EngineRow)) | {
        "server": server, "up": True, "reason": "", "status": "ok", "reasons": (), "symptoms": (), "level": "ok",
        "notes": [], "running": 3.0, "waiting": 0.0, "prompt_tokens_per_second": 1200.0,
        "generation_tokens_per_second": 100.0, "preemptions_per_second": 0.0, "history": {"waiting": []},
    }  # fmt: skip
    return EngineRow(**row | changes)


def with_notes(row):
    return replace(row, notes=engine_notes(row, 5.0))


def gpu(index=0, **changes):
    row = dict.fromkeys(field.name for field in fields(GpuRow)) | {
        "gpu": str(index), "uuid": f"GPU-{index}", "up": True, "reason": "", "status": "ok", "reasons": (),
        "symptoms": (), "servers": ["a"], "throttle": [], "xid": [], "age_seconds": 0.5, "power_watts": 400.0,
    }  # fmt: skip
    made = GpuRow(**row | changes)
    notes = gpu_notes(made, NOW)
    return replace(made, notes=notes, level=gpu_level(notes))


def xid(code, seconds_ago, *, critical, count=1.0, meaning="broken"):
    return XidRow(code, count, NOW - seconds_ago, meaning, critical)


LOST = "lost, it fell off the bus"
REFUSED = (
    Symptom(
        "down", "critical", "down (refused): nobody listens at its address", detail="nobody listens at its address"
    ),
)
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
        ([engine()], [gpu(0, up=False, reason="lost"), gpu(1)], "critical", f"1 GPU not readable: GPU 0 ({LOST})"),
        ([engine()], [gpu(0, up=False, reason="starting")], "wait", "1 GPU being opened: GPU 0"),
        ([engine()], [gpu(3, xid=[xid(79, 5, critical=True)])], "critical", "1 GPU critical: GPU 3 (XID 79: broken)"),
        (
            [engine()],
            [gpu(3, throttle=["sw_thermal"])],
            "warning",
            "1 GPU with a warning: GPU 3 (slowed down: too hot)",
        ),
        ([engine()], [gpu(3, throttle=["sw_power_cap"])], "ok", "All well: 1 engine, 1 GPU"),
        (
            [engine("b", **DOWN)],
            [gpu(0, up=False, reason="hang")],
            "critical",
            "1 engine down: b (refused); 1 GPU not readable: GPU 0 (the driver does not answer)",
        ),
    ],
)
def test_one_line_says_whether_anything_is_wrong_and_where(engines, gpus, level, words):
    found = verdict(engines, gpus)
    assert (found.level, found.words) == (level, words)


def test_every_problem_names_its_place_and_its_reason():
    broken = engine("b", **DOWN, reasons=tuple(one.text for one in REFUSED), symptoms=REFUSED)
    hot = gpu(2, throttle=["sw_thermal"], xid=[xid(94, 60, critical=False), xid(13, 5000, critical=False)])
    first, second = verdict([broken], [gpu(1), hot]).problems
    assert (first.server, first.level) == ("b", "critical")
    assert first.words == "down (refused): nobody listens at its address"
    assert (second.uuid, second.level, second.who) == ("GPU-2", "warning", "GPU 2 (a)")
    assert second.words == "slowed down: too hot; XID 94: broken"


def test_a_queue_that_stays_is_said_and_one_that_passes_is_not():
    stays = engine("a", history={"waiting": [0.0, 3.0, 1.0, 9.0, 4.0]})
    passes = engine("b", history={"waiting": [9.0, 9.0, 9.0, 0.0, 5.0]})
    lost = engine("c", history={"waiting": [9.0, 9.0, None, 5.0]})
    rows = [with_notes(row) for row in (stays, passes, lost)]
    assert [len(row.notes) for row in rows] == [1, 0, 0]
    found = verdict(rows, [])
    assert found.words == "All up: 3 engines, no GPU; requests keep waiting at a"
    assert (found.level, found.problems) == ("note", [])


def promise(title="TTFT", state="burning", **changes):
    row = dict.fromkeys(field.name for field in fields(PromiseRow)) | {
        "service": "vllm", "indicator": title.lower(), "title": title, "promise": "99% under 500ms",
        "labels": {"model_name": "m"}, "servers": ["a", "b"], "hurts": ["a"] if state in {"burning", "broken"} else [],
        "state": state, "level": {"burning": "critical", "kept": "ok", "broken": "note"}.get(state, "wait"),
        "good_ratio": 0.9, "words": "20% of the last 1 h missed it",
    }  # fmt: skip
    return PromiseRow(**row | changes)


def alert(name="GPUThrottled", state="firing", severity="ticket", **labels):
    return Alert(state, {"alertname": name, "severity": severity, **labels}, {"summary": f"{name} is bad"}, NOW)


def alerts(*rows, error=""):
    return alert_rows(Alerts((Source("Alertmanager", "", error),), rows, len(rows)))


PAGE = alert("VLLMTTFTBudgetBurn", severity="page", service="vllm", slo="ttft", burn_tier="fast")


@pytest.mark.parametrize(
    ("promises", "found_alerts", "level", "words"),
    [
        ([promise(state="kept")], alerts(), "ok", "All well: 1 engine, no GPU"),
        ([promise()], alerts(), "critical", "1 promise burns: TTFT at a"),
        ([promise(level="warning")], alerts(), "warning", "1 promise burns: TTFT at a"),
        ([promise(), promise("TPOT")], alerts(), "critical", "2 promises burn: TTFT, TPOT at a"),
        (
            [promise(), promise(hurts=["b"]), promise(hurts=[]), promise(hurts=[], labels={"model_name": "n"})],
            alerts(),
            "critical",
            "4 promises burn: TTFT at a; TTFT at b; and at 2 more",
        ),
        ([promise()], alerts(PAGE), "critical", "1 promise burns: TTFT at a"),  # the alert says the same
        ([promise(state="kept")], alerts(PAGE), "critical", "1 alert fires: VLLMTTFTBudgetBurn"),
        (
            [promise(state="kept")],
            alerts(alert(), alert(gpu="1"), alert("B")),
            "warning",
            "3 alerts fire: GPUThrottled, B",
        ),
        ([promise(state="kept")], alerts(alert(state="silenced")), "ok", "All well: 1 engine, no GPU"),
        (
            [promise(state="kept")],
            alerts(alert(state="pending")),
            "note",
            "All up: 1 engine, no GPU; 1 alert pending: GPUThrottled",
        ),
        ([], alerts(error="refused"), "note", "All up: 1 engine, no GPU; alerts of Alertmanager cannot be read"),
        ([promise(state="unknown")], alerts(), "note", "All up: 1 engine, no GPU; 1 of 1 promise not known"),
        ([promise(state="broken")], alerts(), "note", "All up: 1 engine, no GPU; less than promised: TTFT at a"),
    ],
)
def test_all_is_well_only_while_promises_are_kept_and_no_alert_is_there(promises, found_alerts, level, words):
    found = verdict([engine()], [], promises, found_alerts)
    assert (found.level, found.words) == (level, words)


def test_a_promise_that_burns_is_told_with_what_weighs_on_the_engine():
    row = engine("a", preemptions_per_second=0.2)
    found = verdict([with_notes(row)], [], [promise()])
    assert found.words == "1 promise burns: TTFT at a; the KV cache overflows at a"
    (problem,) = found.problems
    assert (problem.who, problem.server, problem.level) == ("TTFT at a", "a", "critical")
    assert problem.words == "20% of the last 1 h missed it; promised: 99% under 500ms"


def test_a_kv_cache_that_overflows_is_said():
    row = engine("a", preemptions_per_second=0.2)
    found = verdict([with_notes(row)], [])
    assert found.words == "All up: 1 engine, no GPU; the KV cache overflows at a"


def test_an_engines_notes_do_not_repeat_its_state():
    row = engine("a", **DOWN, symptoms=REFUSED)
    assert [note.words for note in engine_notes(row, 5.0)] == ["nobody listens at its address"]


STALLED = Verdict((Symptom("stalled", "critical", "no progress"),))


@pytest.mark.parametrize(
    ("up", "reason", "judged", "expected"),
    [
        (True, "", Verdict(), ("ok", "up")),
        (True, "", STALLED, ("critical", "up, but not working")),
        (False, "timeout", Verdict(REFUSED), ("critical", "down (timeout)")),
        (False, "pending", Verdict(REFUSED), ("wait", "not looked at yet")),
    ],
)
def test_a_server_has_a_state_in_two_words(up, reason, judged, expected):
    assert engine_state(up=up, reason=reason, judged=judged) == expected


def test_xids_come_with_meaning_time_and_number_the_newest_first():
    notes = gpu_notes(gpu(xid=[xid(13, 40, critical=False, count=3.0), xid(79, 20, critical=True)]), NOW)
    assert [(note.level, note.words, NOW - note.at) for note in notes] == [
        ("critical", "XID 79: broken", 20),
        ("warning", "XID 13: broken (3 times)", 40),
    ]


def test_an_old_xid_is_told_without_alarm():
    found = gpu(xid=[xid(79, 901, critical=True, meaning="")])
    assert (found.level, found.notes[0].level, found.notes[0].words) == ("ok", "note", "XID 79")


def test_reasons_of_the_verdict_are_told_once():
    found = gpu(
        status="critical",
        symptoms=(
            Symptom("temperature", "critical", "temperature 95 C, limit 90 C", 95.0, 90.0),
            Symptom("xid", "critical", "XID 79: broken", 79),
        ),
        xid=[xid(79, 5, critical=True)],
    )
    assert [note.words for note in found.notes] == ["temperature 95 °C, limit 90 °C", "XID 79: broken"]


def test_a_warning_of_a_gpu_that_is_critical_for_another_reason_stays_a_warning():
    hot = Symptom("temperature", "critical", "temperature 95 C, limit 90 C", 95.0, 90.0)
    pending = Symptom("row_remap_pending", "warning", "row remapping waits for a GPU reset")
    found = gpu(status="critical", symptoms=(hot, pending))
    assert [(note.level, note.code) for note in found.notes] == [("critical", "symptom"), ("warning", "symptom")]
    assert found.level == "critical"


def test_old_readings_say_how_old_they_are():
    (note,) = gpu(age_seconds=12.0).notes
    assert (note.level, note.words, NOW - note.at) == ("note", "last read", 12.0)


def test_clocks_that_nobody_holds_down_are_no_news():
    assert throttles(["display_clocks", "sw_power_cap", "application_clocks", "hw_thermal", "new"]) == [
        "sw_power_cap",
        "hw_thermal",
        "new",
    ]


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

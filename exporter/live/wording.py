"""What the live page says in words: the verdict on everything, and what there is to say about a server or a GPU."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, Literal, cast

from ...vocabulary.reasons import DRIVER, GPU, THROTTLE, GpusCode, Throttle, ThrottleCode, gpu_code, sentence
from ..promises.alerts import Alerts
from ..promises.verdict import Level
from ..promises.watch import PromiseRow
from .health import XID_WINDOW_SECONDS, Symptom, Verdict
from .rows import AlertRow, AlertRows, EngineRow, GpuRow, Headline, Note, Problem

_ORDER: Final[tuple[Level, ...]] = ("note", "ok", "wait", "warning", "critical")
_NAMED: Final = 2  # of several in one phrase
_STALE_SECONDS: Final = 10.0  # readings of a GPU older than this are said to be
_QUEUE_SECONDS: Final = 20.0  # requests wait at every burst; a queue that stays is worth a word

NO_ALERTS: Final = AlertRows()


_NOT_FAILING: Final = frozenset(("starting", "off"))  # GPUs that are not read although nothing is wrong


def messages(gpu_reason: GpusCode | Literal[""], *, engines: int) -> list[str]:
    """Return in sentences what is missing, and what to do about it."""
    words = []
    if gpu_reason:
        why = DRIVER[gpu_reason]
        begin = "GPUs are" if gpu_reason in _NOT_FAILING else "No GPU is read:"
        words.append(" ".join([f"{begin} {why.meaning}.", *([sentence(why.advice)] if why.advice else ())]))
    if not engines:
        words.append(
            "No engine is known. Start vLLM, then name it: vllm-vitals up --engine http://127.0.0.1:8000, or try "
            "vllm-vitals up --demo."
        )
    return words


def throttles(reasons: Iterable[str]) -> list[str]:
    """Return the reasons worth telling: not those that keep the clocks down without anybody being to blame for it."""
    return [reason for reason in reasons if _throttle(reason).weight != "quiet"]


def _throttle(code: str) -> Throttle[str]:
    """Return a row of the table, and for a code that is in no table one that says no more than the code."""
    return THROTTLE.get(cast("ThrottleCode", code)) or Throttle(code, code)


def engine_state(*, up: bool, reason: str, judged: Verdict) -> tuple[Level, str]:
    """Return a server's level and its state in two words."""
    if up:
        return judged.status, "up" if judged.status == "ok" else "up, but not working"
    return ("wait", "not looked at yet") if reason == "pending" else ("critical", f"down ({reason})")


def engine_notes(engine: EngineRow, interval: float) -> list[Note]:
    """Return what there is to say about a server: reasons of its verdict, and what weighs on it."""
    notes = [Note(engine.level, symptom.detail or symptom.text) for symptom in engine.symptoms]
    waiting = engine.history["waiting"][-max(2, math.ceil(_QUEUE_SECONDS / interval)) :]
    if len(waiting) > 1 and all(waiting):
        notes.append(Note("note", "requests keep waiting", code="queue"))
    if engine.preemptions_per_second:
        words = "the KV cache overflows: requests are preempted and computed again"
        notes.append(Note("note", words, code="preemption"))
    return notes


def engine_past(ranks: int, restarts: int) -> str:
    """Return how a server is built and how often it began anew while we looked."""
    words = [f"{ranks} data parallel ranks"] if ranks > 1 else []
    words += [f"{restarts} restart{'' if restarts == 1 else 's'} seen"] if restarts else []
    return ", ".join(words)


def gpu_models(names: Iterable[str]) -> str:
    """Return how many GPUs of which model there are."""
    return ", ".join(f"{count} \N{MULTIPLICATION SIGN} {name}" for name, count in Counter(names).items())


def index_ranges(indices: Iterable[int]) -> str:
    """Return numbers with neighbours joined: `0-3, 6`."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"{run[0]}\N{EN DASH}{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def gpu_notes(gpu: GpuRow, now: float) -> list[Note]:
    """Return what there is to say about a GPU; `now` is Unix time."""
    notes: list[Note] = []
    if not gpu.up:
        level: Level = "wait" if gpu.reason == "starting" else "critical"
        notes.append(Note(level, f"not readable: {_why(gpu)}", code="unreadable"))
    # The two left out are said with more detail, above and below.
    told = [symptom for symptom in gpu.symptoms if symptom.code not in {"unreadable", "xid"}]
    notes += [Note(symptom.level, _symptom(symptom)) for symptom in told]
    for reason in gpu.throttle:
        why = _throttle(reason)
        notes.append(Note("warning" if why.weight == "warning" else "note", why.meaning, code="throttle"))
    for event in sorted(gpu.xid, key=lambda event: -event.last_timestamp_seconds):
        at = event.last_timestamp_seconds
        level = "note" if now - at >= XID_WINDOW_SECONDS else "critical" if event.critical else "warning"
        times = f" ({event.count:.0f} times)" if (event.count or 0) > 1 else ""
        notes.append(
            Note(level, f"XID {event.xid}" + (f": {event.meaning}" if event.meaning else "") + times, at, "xid")
        )
    if gpu.up and gpu.age_seconds is not None and gpu.age_seconds > _STALE_SECONDS:
        notes.append(Note("note", "last read", now - gpu.age_seconds, "stale"))
    return notes


def _symptom(symptom: Symptom) -> str:
    if symptom.code == "temperature":
        return f"temperature {symptom.value:.0f} °C, limit {symptom.limit:.0f} °C"
    return symptom.text


def _why(gpu: GpuRow) -> str:
    """Return why a GPU is not readable."""
    return GPU[gpu_code(gpu.reason)].meaning


def gpu_level(notes: Iterable[Note]) -> Level:
    """Return how bad it is."""
    return max((note.level for note in notes if note.level != "note"), key=_ORDER.index, default="ok")


def verdict(
    engines: Sequence[EngineRow],
    gpus: Sequence[GpuRow],
    promises: Sequence[PromiseRow] = (),
    alerts: AlertRows = NO_ALERTS,
) -> Headline:
    """Return the verdict on rows that have their level: a headline, and one problem for each row that has one.

    `All well` is said only where nothing is wrong, no promise burns or is not known, and no alert fires or waits.
    """
    down, dead = ([row for row in engines if row.level == "critical" and row.up is up] for up in (False, True))
    unread, ill = ([row for row in gpus if row.level == "critical" and row.up is up] for up in (False, True))
    warned = [row for row in gpus if row.level == "warning"]
    groups = (
        ("engine", "down", [f"{row.server} ({row.reason})" for row in down]),
        ("engine", "not working", [row.server for row in dead]),
        ("GPU", "not readable", [*map(_gpu_and_why, unread)]),
        ("GPU", "critical", [*map(_gpu_and_why, ill)]),
        ("GPU", "with a warning", [*map(_gpu_and_why, warned)]),
        ("engine", "not looked at yet", [row.server for row in engines if row.level == "wait"]),
        ("GPU", "being opened", [_gpu_name(row) for row in gpus if row.level == "wait"]),
    )
    said = [f"{_count(names, kind)} {state}: {_some(names)}" for kind, state, names in groups if names]
    burning = [row for row in promises if row.state == "burning"]
    if burning:
        said.append(f"{_count(burning, 'promise')} burn{'s' if len(burning) == 1 else ''}: {_where(burning)}")
    unexplained = unexplained_alerts(alerts, burning)
    if unexplained:
        verb = "fires" if len(unexplained) == 1 else "fire"
        said.append(f"{_count(unexplained, 'alert')} {verb}: {_some(_alert_names(unexplained))}")
    levels = [*(row.level for row in engines), *(row.level for row in gpus)]
    level: Level = max(levels, key=_ORDER.index) if levels else "wait"
    levels = [level, *(row.level for row in burning), *(row.level for row in unexplained)]
    level = max(levels, key=_ORDER.index)
    weighed = _weighed(engines, promises)
    if not said:
        who = [_count(engines, "engine") if engines else "no engine", _count(gpus, "GPU") if gpus else "no GPU"]
        start = "All well" if engines else "GPUs are well" if gpus else "Nothing to watch yet"
        weighed += _open(promises, alerts) if engines else []
        if weighed:
            start, level = "All up", "note"
        said = [f"{start}: {', '.join(who)}"]
    elif not burning:
        weighed = []
    problems = [
        *map(_engine_problem, (*down, *dead)),
        *map(_gpu_problem, (*unread, *ill, *warned)),
        *map(_promise_problem, burning),
        *map(_alert_problem, unexplained),
    ]
    return Headline(level, "; ".join([*said, *weighed]), totals(engines, gpus), problems)


def unexplained_alerts(alerts: AlertRows, burning: Iterable[PromiseRow]) -> list[AlertRow]:
    """Return the alerts that fire, without those of promises that we see burning ourselves."""
    ours = {(row.service, row.indicator) for row in burning}
    return [
        row
        for row in alerts.rows
        if row.state == "firing" and (row.labels.get("service"), row.labels.get("slo")) not in ours
    ]


def alert_rows(alerts: Alerts) -> AlertRows:
    """Return the alerts with what they say and how loud they are."""
    return AlertRows(
        alerts.sources,
        alerts.total,
        [
            AlertRow(
                one.name,
                one.severity,
                one.state,
                one.since,
                dict(one.labels),
                one.annotations.get("summary", ""),
                one.annotations.get("description", ""),
                one.annotations.get("runbook_url", ""),
                alert_level(one.state, one.severity),
            )
            for one in alerts.rows
        ],
    )


def alert_level(state: str, severity: str) -> Level:
    """Return how loud an alert is: one that calls somebody is critical, silenced and inhibited ones are a note."""
    if state != "firing":
        return "note"
    return "critical" if severity in {"page", "critical"} else "warning"


def _weighed(engines: Sequence[EngineRow], promises: Sequence[PromiseRow]) -> list[str]:
    """Return what weighs on engines without being anybody's failure."""
    found = [
        f"{phrase} {_some(names)}"
        for code, phrase in (("queue", "requests keep waiting at"), ("preemption", "the KV cache overflows at"))
        if (names := [row.server for row in engines if any(note.code == code for note in row.notes)])
    ]
    broken = [row for row in promises if row.state == "broken"]
    return [*found, f"less than promised: {_where(broken)}"] if broken else found


def _open(promises: Sequence[PromiseRow], alerts: AlertRows) -> list[str]:
    """Return what keeps us from saying that all is well."""
    unknown = sum(row.state == "unknown" for row in promises)
    found = [f"{unknown} of {_count(promises, 'promise')} not known"] if unknown else []
    pending = [row for row in alerts.rows if row.state == "pending"]
    found += [f"{_count(pending, 'alert')} pending: {_some(_alert_names(pending))}"] if pending else []
    return found + [f"alerts of {row.name} cannot be read" for row in alerts.sources if row.error]


def _where(promises: Sequence[PromiseRow]) -> str:
    """Return promises by the place where they hurt: `TTFT, queue time at llama and 2 more`."""
    by_place: dict[str, dict[str, None]] = {}
    for row in promises:
        by_place.setdefault(promise_place(row), {})[row.title] = None
    said = [f"{', '.join(titles)} at {place}" for place, titles in [*by_place.items()][:_NAMED]]
    rest = len(by_place) - len(said)
    return "; ".join(said) + (f"; and at {rest} more" if rest else "")


def promise_place(promise: PromiseRow) -> str:
    """Return where a promise hurts: servers, else the labels of its budget, else its service."""
    servers = promise.hurts or (promise.servers if len(promise.servers) == 1 else [])
    labels = [value for value in promise.labels.values() if value]
    return _some(servers) if servers else " ".join(labels) or promise.service


def totals(engines: Sequence[EngineRow], gpus: Sequence[GpuRow]) -> str:
    """Return what all of them do together; a part that not all could tell says so."""
    words = []
    if running := _total([row.running for row in engines]):
        waiting = _total([row.waiting for row in engines])
        words.append(f"{running[0]:,.0f} running" + (f", {waiting[0]:,.0f} waiting" if waiting else "") + running[1])
    if generated := _total([row.generation_tokens_per_second for row in engines]):
        prompt = _total([row.prompt_tokens_per_second for row in engines])
        words.append(
            (f"{prompt[0]:,.0f} tok/s in, " if prompt else "") + f"{generated[0]:,.0f} tok/s out{generated[1]}"
        )
    if power := _total([row.power_watts for row in gpus]):
        words.append((f"{power[0] / 1000:.1f} kW" if power[0] >= 1000 else f"{power[0]:.0f} W") + power[1])
    return " · ".join(words)


def _total(values: Sequence[float | None]) -> tuple[float, str] | None:
    """Return a sum with a word when it is of a part only, None where nothing is known."""
    known = [value for value in values if value is not None]
    partial = f" (from {len(known)} of {len(values)})" if len(known) < len(values) else ""
    return (sum(known), partial) if known else None


def _engine_problem(row: EngineRow) -> Problem:
    return Problem("engine", row.level, row.server, "", row.server, "; ".join(row.reasons))


def _gpu_problem(row: GpuRow) -> Problem:
    on = f" ({', '.join(row.servers)})" if row.servers else ""
    words = [note.words for note in row.notes if _ORDER.index(note.level) > 1]
    return Problem("GPU", row.level, "", row.uuid, _gpu_name(row) + on, "; ".join(words))


def _promise_problem(promise: PromiseRow) -> Problem:
    server = promise.hurts[0] if promise.hurts else ""
    who = f"{promise.title} at {promise_place(promise)}"
    return Problem("promise", promise.level, server, "", who, f"{promise.words}; promised: {promise.promise}")


def _alert_problem(alert: AlertRow) -> Problem:
    words = alert.summary or alert.description or alert.state
    return Problem("alert", alert.level, "", "", alert.name, words)


def _gpu_name(row: GpuRow) -> str:
    return f"GPU {row.gpu}"


def _gpu_and_why(row: GpuRow) -> str:
    """Return a GPU with its worst trouble."""
    worst = next((note for note in row.notes if note.level == row.level), None)
    if worst is None:
        return _gpu_name(row)
    return f"{_gpu_name(row)} ({_why(row) if worst.code == 'unreadable' else worst.words})"


def _alert_names(alerts: Iterable[AlertRow]) -> list[str]:
    """Return each name once: one alert fires by several tiers and for several models."""
    return list(dict.fromkeys(row.name for row in alerts))


def _count(rows: Sequence[object], kind: str) -> str:
    return f"{len(rows)} {kind}{'' if len(rows) == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest

"""What the live page says in words: the verdict on everything, and what there is to say about a server or a GPU."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, cast

from ...vocabulary.reasons import DRIVER, GPU, THROTTLE, GpusCode, Throttle, ThrottleCode, gpu_code, sentence
from .health import XID_WINDOW_SECONDS, Verdict

Level = Literal["note", "ok", "wait", "warning", "critical"]  # wait: not known yet; note: worth a word, no alarm
Row = Mapping[str, Any]  # of /api/vitals

_ORDER: Final[tuple[Level, ...]] = ("note", "ok", "wait", "warning", "critical")
_NAMED: Final = 2  # of several in one phrase
_STALE_SECONDS: Final = 10.0  # readings of a GPU older than this are said to be
_QUEUE_SECONDS: Final = 20.0  # requests wait at every burst; a queue that stays is worth a word

NO_ALERTS: Final[Row] = {"sources": (), "rows": (), "total": 0}

_QUEUED: Final = "requests keep waiting"
_PREEMPTED: Final = "the KV cache overflows: requests are preempted and computed again"

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


def engine_notes(engine: Row, interval: float) -> list[dict[str, Any]]:
    """Return what there is to say about a server: reasons of its verdict, and what weighs on it."""
    notes = [
        {"level": engine["level"], "words": re.sub(r"^down \(\w+\): ", "", words), "at": None}
        for words in engine["reasons"]
    ]
    waiting = engine["history"]["waiting"][-max(2, math.ceil(_QUEUE_SECONDS / interval)) :]
    if len(waiting) > 1 and all(waiting):
        notes.append({"level": "note", "words": _QUEUED, "at": None})
    if engine["preemptions_per_second"]:
        notes.append({"level": "note", "words": _PREEMPTED, "at": None})
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


def gpu_notes(gpu: Row, now: float) -> list[dict[str, Any]]:
    """Return what there is to say about a GPU: level, words, and for events the Unix time as `at`."""
    notes: list[dict[str, Any]] = []

    def note(level: Level, words: str, at: float | None = None) -> None:
        notes.append({"level": level, "words": words, "at": at})

    if not gpu["up"]:
        reason = gpu["reason"]
        note("wait" if reason == "starting" else "critical", f"not readable: {GPU[gpu_code(reason)].meaning}")
    for words in gpu["reasons"]:
        if not words.startswith(("XID", "not readable")):  # said with more detail above and below
            note(gpu["status"], re.sub(r" C\b", " °C", words))
    for reason in gpu["throttle"]:
        why = _throttle(reason)
        note("warning" if why.weight == "warning" else "note", why.meaning)
    for event in sorted(gpu["xid"], key=lambda event: -event["last_timestamp_seconds"]):
        at = event["last_timestamp_seconds"]
        level: Level = "note" if now - at >= XID_WINDOW_SECONDS else "critical" if event["critical"] else "warning"
        times = f" ({event['count']:.0f} times)" if (event["count"] or 0) > 1 else ""
        note(level, f"XID {event['xid']}" + (f": {event['meaning']}" if event["meaning"] else "") + times, at)
    age = gpu["age_seconds"]
    if gpu["up"] and age is not None and age > _STALE_SECONDS:
        note("note", "last read", now - age)
    return notes


def gpu_level(notes: Iterable[Row]) -> Level:
    """Return how bad it is."""
    return max((note["level"] for note in notes if note["level"] != "note"), key=_ORDER.index, default="ok")


def verdict(
    engines: Sequence[Row], gpus: Sequence[Row], promises: Sequence[Row] = (), alerts: Row = NO_ALERTS
) -> dict[str, Any]:
    """Return the verdict on rows that have their level: a headline, and one problem for each row that has one.

    `All well` is said only where nothing is wrong, no promise burns or is not known, and no alert fires or waits.
    """
    groups: tuple[tuple[str, str, Sequence[Row], Callable[[Row], str]], ...] = (
        ("engine", "down", _bad(engines, "critical", up=False), lambda row: f"{row['server']} ({row['reason']})"),
        ("engine", "not working", _bad(engines, "critical", up=True), _server),
        ("GPU", "not readable", _bad(gpus, "critical", up=False), _gpu_and_why),
        ("GPU", "critical", _bad(gpus, "critical", up=True), _gpu_and_why),
        ("GPU", "with a warning", _bad(gpus, "warning"), _gpu_and_why),
        ("engine", "not looked at yet", _bad(engines, "wait"), _server),
        ("GPU", "being opened", _bad(gpus, "wait"), _gpu_name),
    )
    said = [f"{_count(rows, kind)} {state}: {_names(rows, name)}" for kind, state, rows, name in groups if rows]
    burning = [row for row in promises if row["state"] == "burning"]
    if burning:
        said.append(f"{_count(burning, 'promise')} burn{'s' if len(burning) == 1 else ''}: {_where(burning)}")
    unexplained = unexplained_alerts(alerts, burning)
    if unexplained:
        verb = "fires" if len(unexplained) == 1 else "fire"
        said.append(f"{_count(unexplained, 'alert')} {verb}: {_some(_alert_names(unexplained))}")
    levels = [row["level"] for row in (*engines, *gpus)]
    level: Level = max(levels, key=_ORDER.index) if levels else "wait"
    level = max((level, *(row["level"] for row in burning), *map(alert_level, unexplained)), key=_ORDER.index)
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
    return {
        "level": level,
        "words": "; ".join([*said, *weighed]),
        "totals": totals(engines, gpus),
        "problems": [
            *(
                _problem(kind, row)
                for kind, _, rows, _ in groups
                for row in rows
                if row["level"] in {"warning", "critical"}
            ),
            *map(_promise_problem, burning),
            *map(_alert_problem, unexplained),
        ],
    }


def unexplained_alerts(alerts: Row, burning: Iterable[Row]) -> list[Row]:
    """Return the alerts that fire, without those of promises that we see burning ourselves."""
    ours = {(row["service"], row["indicator"]) for row in burning}
    return [
        row
        for row in alerts["rows"]
        if row["state"] == "firing" and (row["labels"].get("service"), row["labels"].get("slo")) not in ours
    ]


def alert_level(alert: Row) -> Level:
    """Return how loud an alert is: one that calls somebody is critical, silenced and inhibited ones are a note."""
    if alert["state"] != "firing":
        return "note"
    return "critical" if alert["severity"] in {"page", "critical"} else "warning"


def _weighed(engines: Sequence[Row], promises: Sequence[Row]) -> list[str]:
    """Return what weighs on engines without being anybody's failure."""
    found = [
        f"{phrase} {_names(rows, _server)}"
        for words, phrase in ((_QUEUED, "requests keep waiting at"), (_PREEMPTED, "the KV cache overflows at"))
        if (rows := [row for row in engines if any(note["words"] == words for note in row["notes"])])
    ]
    broken = [row for row in promises if row["state"] == "broken"]
    return [*found, f"less than promised: {_where(broken)}"] if broken else found


def _open(promises: Sequence[Row], alerts: Row) -> list[str]:
    """Return what keeps us from saying that all is well."""
    unknown = sum(row["state"] == "unknown" for row in promises)
    found = [f"{unknown} of {_count(promises, 'promise')} not known"] if unknown else []
    pending = [row for row in alerts["rows"] if row["state"] == "pending"]
    found += [f"{_count(pending, 'alert')} pending: {_some(_alert_names(pending))}"] if pending else []
    return found + [f"alerts of {row['name']} cannot be read" for row in alerts["sources"] if row["error"]]


def _where(promises: Sequence[Row]) -> str:
    """Return promises by the place where they hurt: `TTFT, queue time at llama and 2 more`."""
    by_place: dict[str, dict[str, None]] = {}
    for row in promises:
        by_place.setdefault(promise_place(row), {})[row["title"]] = None
    said = [f"{', '.join(titles)} at {place}" for place, titles in [*by_place.items()][:_NAMED]]
    rest = len(by_place) - len(said)
    return "; ".join(said) + (f"; and at {rest} more" if rest else "")


def promise_place(promise: Row) -> str:
    """Return where a promise hurts: servers, else the labels of its budget, else its service."""
    servers = promise["hurts"] or (promise["servers"] if len(promise["servers"]) == 1 else [])
    labels = [value for value in promise["labels"].values() if value]
    return _some(servers) if servers else " ".join(labels) or promise["service"]


def totals(engines: Sequence[Row], gpus: Sequence[Row]) -> str:
    """Return what all of them do together; a part that not all could tell says so."""

    def total(rows: Sequence[Row], key: str) -> tuple[float, str] | None:
        known = [row[key] for row in rows if row[key] is not None]
        partial = f" (from {len(known)} of {len(rows)})" if len(known) < len(rows) else ""
        return (sum(known), partial) if known else None

    words = []
    if running := total(engines, "running"):
        waiting = total(engines, "waiting")
        words.append(f"{running[0]:,.0f} running" + (f", {waiting[0]:,.0f} waiting" if waiting else "") + running[1])
    if generated := total(engines, "generation_tokens_per_second"):
        prompt = total(engines, "prompt_tokens_per_second")
        words.append(
            (f"{prompt[0]:,.0f} tok/s in, " if prompt else "") + f"{generated[0]:,.0f} tok/s out{generated[1]}"
        )
    if power := total(gpus, "power_watts"):
        words.append((f"{power[0] / 1000:.1f} kW" if power[0] >= 1000 else f"{power[0]:.0f} W") + power[1])
    return " · ".join(words)


def _problem(kind: str, row: Row) -> dict[str, Any]:
    if kind == "engine":
        who, words = row["server"], row["reasons"]
    else:
        on = f" ({', '.join(row['servers'])})" if row["servers"] else ""
        who, words = _gpu_name(row) + on, [one["words"] for one in row["notes"] if _ORDER.index(one["level"]) > 1]
    return {
        "kind": kind,
        "level": row["level"],
        "server": row["server"] if kind == "engine" else "",
        "uuid": row["uuid"] if kind == "GPU" else "",
        "who": who,
        "words": "; ".join(words),
    }


def _promise_problem(promise: Row) -> dict[str, Any]:
    return {
        "kind": "promise",
        "level": promise["level"],
        "server": promise["hurts"][0] if promise["hurts"] else "",
        "uuid": "",
        "who": f"{promise['title']} at {promise_place(promise)}",
        "words": f"{promise['words']}; promised: {promise['promise']}",
    }


def _alert_problem(alert: Row) -> dict[str, Any]:
    words = alert["summary"] or alert["description"] or alert["state"]
    level = alert_level(alert)
    return {"kind": "alert", "level": level, "server": "", "uuid": "", "who": alert["name"], "words": words}


def _bad(rows: Sequence[Row], level: Level, *, up: bool | None = None) -> list[Row]:
    return [row for row in rows if row["level"] == level and (up is None or row["up"] is up)]


def _server(row: Row) -> str:
    return str(row["server"])


def _gpu_name(row: Row) -> str:
    return f"GPU {row['gpu']}"


def _gpu_and_why(row: Row) -> str:
    """Return a GPU with its worst trouble."""
    told = [note for note in row["notes"] if note["level"] == row["level"]]
    why = told[0]["words"].removeprefix("not readable: ") if told else ""
    return f"{_gpu_name(row)} ({why})" if why else _gpu_name(row)


def _alert_names(alerts: Iterable[Row]) -> list[str]:
    """Return each name once: one alert fires by several tiers and for several models."""
    return list(dict.fromkeys(str(row["name"]) for row in alerts))


def _count(rows: Sequence[Row], kind: str) -> str:
    return f"{len(rows)} {kind}{'' if len(rows) == 1 else 's'}"


def _names(rows: Sequence[Row], name: Callable[[Row], str]) -> str:
    return _some([name(row) for row in rows])


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest

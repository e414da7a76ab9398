"""Alerts of a Prometheus and an Alertmanager beside us: asked on an own clock, the last answer held for the page."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from ...runtime.background import Background
from ...runtime.exchange import exchange
from ...runtime.log_once import LogOnce
from ..pages.samples import Sample

log = logging.getLogger("vllm_vitals")

State = Literal["firing", "pending", "silenced", "inhibited"]

_INTERVAL_SECONDS: Final = 5.0
_DEADLINE_SECONDS: Final = 3.0
_MOST_BYTES: Final = 4 << 20
_MOST_ALERTS: Final = 100  # shown; how many there are is told
_MOST_CHARACTERS: Final = 500  # of one label or annotation
_PROMETHEUS: Final = "/api/v1/alerts"
_ALERTMANAGER: Final = "/api/v2/alerts"
_ORDER: Final = ("firing", "pending", "silenced", "inhibited")


class UnreadableError(Exception):
    """Something answers, but not with alerts; the text is for people."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert; since is Unix time."""

    state: State
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    since: float | None

    @property
    def name(self) -> str:
        """Its name."""
        return self.labels.get("alertname", "")

    @property
    def severity(self) -> str:
        """Who hears of it."""
        return self.labels.get("severity", "")


@dataclass(frozen=True, slots=True)
class Source:
    """Who was asked; `error` says why there is no answer, empty where there is one."""

    name: str
    url: str
    error: str


@dataclass(frozen=True, slots=True)
class Alerts:
    """What was found.

    Attributes:
        sources: who was asked; none when nobody is.
        rows: the alerts of those that answered, what fires first.
        total: how many there are, those left out included.
    """

    sources: tuple[Source, ...] = ()
    rows: tuple[Alert, ...] = ()
    total: int = 0


class AlertWatch:
    """Asks in a thread of its own, since a resolver or a hung server may take its time.

    Args:
        prometheus, alertmanager: their URLs; empty for none.
        interval: seconds between two rounds.
    """

    def __init__(self, prometheus: str = "", alertmanager: str = "", interval: float = _INTERVAL_SECONDS) -> None:
        self._asked = [
            (name, url.rstrip("/")) for name, url in (("Prometheus", prometheus), ("Alertmanager", alertmanager)) if url
        ]
        self._background = Background("alerts", self._look, interval)
        # Written by the thread only.
        self.latest = Alerts(tuple(Source(name, url, "not asked yet") for name, url in self._asked))
        self._said = LogOnce()

    def start(self) -> None:
        """Start the thread; nothing to do where nobody is asked."""
        if self._asked:
            self._background.start()

    def stop(self) -> None:
        """Stop the thread, waiting for one request at most."""
        self._background.stop(_DEADLINE_SECONDS)

    def samples(self) -> list[Sample]:
        """Return none: alerts are for the live page; Prometheus has them already."""
        return []

    def _look(self) -> None:
        self.latest = self._ask()

    def _ask(self) -> Alerts:
        sources: list[Source] = []
        found: dict[str, Sequence[Alert]] = {}
        for name, url in self._asked:
            error = ""
            try:
                found[name] = _read_prometheus(url) if name == "Prometheus" else _read_alertmanager(url)
            except (OSError, ValueError, UnreadableError) as problem:
                error = _words(problem)
            if self._said.is_news(name, error) if error else self._said.forget(name):
                log.warning("alerts of %s at %s: %s", name, url, error or "answers again")
            sources.append(Source(name, url, error))
        rows = joined(found.get("Prometheus", ()), found.get("Alertmanager", ()))
        return Alerts(tuple(sources), tuple(rows[:_MOST_ALERTS]), len(rows))


def joined(evaluated: Iterable[Alert], held: Iterable[Alert]) -> list[Alert]:
    """Return Prometheus' alerts with what Alertmanager does about them, and those that only Alertmanager holds."""
    by_name: dict[str, list[Alert]] = defaultdict(list)
    for alert in held:
        by_name[alert.name].append(alert)
    rows = []
    for alert in evaluated:
        same = next((one for one in by_name[alert.name] if alert.labels.items() <= one.labels.items()), None)
        if same is not None and alert.state == "firing":
            by_name[alert.name].remove(same)  # it has the labels of Prometheus' own settings, too
            rows.append(same)
        else:
            rows.append(alert)
    rows += [alert for some in by_name.values() for alert in some]
    return sorted(rows, key=_rank)


def _rank(alert: Alert) -> tuple[int, bool, str, float]:
    return _ORDER.index(alert.state), alert.severity != "page", alert.name, alert.since or 0.0


def _read_prometheus(url: str) -> list[Alert]:
    told = _json(url + _PROMETHEUS)
    data = told.get("data") if isinstance(told, dict) else None
    rows = data.get("alerts") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise UnreadableError("does not answer as Prometheus does")
    return [
        Alert(row["state"], _texts(row.get("labels")), _texts(row.get("annotations")), _unix(row.get("activeAt")))
        for row in rows
        if isinstance(row, dict) and row.get("state") in {"firing", "pending"}
    ]


def _read_alertmanager(url: str) -> list[Alert]:
    rows = _json(url + _ALERTMANAGER)
    if not isinstance(rows, list):
        raise UnreadableError("does not answer as Alertmanager does")
    return [
        Alert(_held(row), _texts(row.get("labels")), _texts(row.get("annotations")), _unix(row.get("startsAt")))
        for row in rows
        if isinstance(row, dict)
    ]


def _held(row: Mapping[str, Any]) -> State:
    status = row.get("status")
    if not isinstance(status, dict) or status.get("state") != "suppressed":
        return "firing"  # `unprocessed` has not been sent yet, and fires all the same
    return "silenced" if status.get("silencedBy") else "inhibited"


def _json(url: str) -> Any:
    answer = exchange(url, headers={"Accept": "application/json"}, deadline=_DEADLINE_SECONDS, limit=_MOST_BYTES)
    if answer.status != 200:
        raise UnreadableError(f"answers with {answer.status}")
    if len(answer.body) >= _MOST_BYTES:
        raise UnreadableError(f"its answer has more than {_MOST_BYTES >> 20} MiB")
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise UnreadableError("its answer is no JSON") from None


def _texts(told: Any) -> dict[str, str]:
    if not isinstance(told, dict):
        return {}
    return {str(name): str(text)[:_MOST_CHARACTERS] for name, text in told.items()}


def _unix(told: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(told)).timestamp()
    except ValueError:
        return None


def _words(problem: Exception) -> str:
    if isinstance(problem, TimeoutError):
        return f"no answer within {_DEADLINE_SECONDS:.0f} s"
    if isinstance(problem, ConnectionRefusedError):
        return "nobody listens there"
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__

"""Counts promises on the sampler's clock and keeps how each of them stands, for the live page."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..engines.engine import Engine
from ..pages.request_pages import RequestPage
from .events import Group
from .promised import Promised, Promises
from .record import NOTHING, Count, PromiseRecord
from .verdict import FIGURE_SECONDS, Level, Standing, State, hurts, stands


@dataclass(frozen=True, slots=True)
class PromiseRow:
    """How one promise stands for one budget, as /api/vitals tells it.

    Attributes:
        good_ratio, events: of the last minutes.
        since: Unix time at which the state began.
        hurts: the servers where it is missed.
        place: where it hurts, in words; the page fills it in.
    """

    service: str
    indicator: str
    title: str
    promise: str
    target_ratio: float
    labels: Mapping[str, str]
    servers: Sequence[str]
    state: State
    level: Level
    severity: str
    burn_tier: str
    good_ratio: float | None
    events: float
    since: float | None
    hurts: Sequence[str]
    words: str
    place: str = ""


class PromiseWatch:
    """Counts and judges all promises; only the sampler's clock calls `look`.

    Args:
        promises: what is in force.
        interval: seconds between two looks.

    Attributes:
        origin: where the promises come from.
        rows: how each of them stands, as /api/vitals tells it.
    """

    def __init__(self, promises: Promises, interval: float) -> None:
        self.origin = promises.origin
        self._promises = promises
        self._interval = interval
        self._record = PromiseRecord(promises)
        self._restarts: dict[str, int] = {}  # of each server, as of the last look
        self._due = 0.0
        self._since: dict[tuple[int, Group], tuple[State, float]] = {}
        self.rows: list[PromiseRow] = [
            _row(promised, (), (), Standing("unknown", None, NOTHING, "not looked at yet"))
            for promised in promises.rows
        ]

    @property
    def is_due(self) -> bool:
        """Whether the time for another look has come."""
        return time.monotonic() >= self._due

    async def look(self, engines: Sequence[Engine], timeout: float) -> None:
        """Count what the engines told last and judge, if the time has come; `timeout` is for the plugins' pages."""
        if not self.is_due:
            return
        now = time.monotonic()
        self._due = now + self._interval - 0.1  # rounds come a little early or late
        requests: Sequence[RequestPage | None] = [None] * len(engines)
        if self._record.wants_requests:
            requests = await asyncio.gather(*(each.fetch_requests(timeout, openmetrics=False) for each in engines))
        for engine, asked in zip(engines, requests, strict=True):
            if (page := engine.latest.page) is None:
                continue
            restarts = engine.ring.restarts
            anew = restarts != self._restarts.get(engine.server, restarts)
            self._restarts[engine.server] = restarts
            self._record.take(engine.server, page, asked, anew=anew)
        servers = [engine.server for engine in engines]
        self._restarts = {server: count for server, count in self._restarts.items() if server in servers}
        self._record.mark(now, servers)
        self._judge(time.time())

    def _judge(self, now: float) -> None:
        """Judge every promise by what was counted up to the last mark; `now` is Unix time."""
        rows: list[PromiseRow] = []
        since: dict[tuple[int, Group], tuple[State, float]] = {}
        for place, promised in enumerate(self._promises.rows):
            groups = self._record.groups(place)
            for group, servers in groups.items():
                standing = self._standing(place, group, servers)
                hurting: list[str] = []
                if standing.state in {"burning", "broken"}:
                    window = standing.tier.short if standing.tier else FIGURE_SECONDS
                    each = {server: self._record.within(place, group, window, server) for server in servers}
                    hurting = hurts(promised, each)
                state, at = self._since.get((place, group), (None, now))
                since[place, group] = (standing.state, at if state == standing.state else now)
                rows.append(_row(promised, group, servers, standing, hurting, since[place, group][1]))
            if not groups:
                rows.append(_row(promised, (), (), Standing("unknown", None, NOTHING, self._nobody(place))))
        self._since, self.rows = since, rows

    def _standing(self, place: int, group: Group, servers: Sequence[str]) -> Standing:
        def within(window: float) -> Count:
            return self._record.within(place, group, window)

        standing = stands(self._promises.rows[place], within, self._record.seconds)
        lacking = self._lacking(place, servers)
        if not lacking:
            return standing
        words = lacking if standing.recent.total <= 0 else f"{standing.words}; {lacking}".removeprefix("; ")
        return replace(standing, words=words)

    def _nobody(self, place: int) -> str:
        """Return why a promise has no budget at all."""
        servers = self._record.servers
        if not servers:
            return "no engine was read yet"
        return self._lacking(place, servers) or "its selector means none of these engines"

    def _lacking(self, place: int, servers: Sequence[str]) -> str:
        """Return why these servers have nothing that could be counted, empty where they have."""
        told = self._record.lacks(place, servers)
        if len({*told.values()}) == 1:
            words = next(iter(told.values()))
            return words if len(told) == len(servers) else f"{', '.join(told)}: {words}"
        return "; ".join(f"{server}: {words}" for server, words in told.items())


def _row(
    promised: Promised,
    group: Group,
    servers: Sequence[str],
    standing: Standing,
    hurting: Sequence[str] = (),
    since: float = 0.0,
) -> PromiseRow:
    recent, tier = standing.recent, standing.tier
    return PromiseRow(
        service=promised.service,
        indicator=promised.indicator,
        title=promised.title,
        promise=promised.text,
        target_ratio=promised.target,
        labels=dict(group),
        servers=list(servers),
        state=standing.state,
        level=standing.level,
        severity=tier.severity if tier else "",
        burn_tier=tier.name if tier else "",
        good_ratio=None if recent.ratio is None else 1 - recent.ratio,
        events=recent.total,
        since=since or None,
        hurts=list(hurting),
        words=standing.words,
    )

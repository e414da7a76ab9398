"""What became of every promise in the last days, in bounded memory: counts at moments that thin out with age.

All counts lie on one row of moments, so a window is two look-ups. Counters that began anew are added up, as increase()
does it. A promise's group is a budget of its own; below it each server is remembered, to say where it hurts.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from ..pages.relabel import ServerPage
from ..pages.request_pages import RequestPage
from .events import Counted, Events, Group, Series, count
from .promised import AtBest, Good, Promises

# Moments younger than `age` seconds are so far apart, in seconds.
_SPACING: Final = ((600.0, 15.0), (7200.0, 60.0), (8 * 3600.0, 300.0), (float("inf"), 1800.0))
_THIN_EVERY: Final = 20  # marks
_MOST_ROWS: Final = 4096  # promises x servers x groups; nobody vouches for the labels of a page

Budget = tuple[int, Group]  # place of the promise, and whose budget of it


class Count(NamedTuple):
    """Events of a window."""

    total: float
    bad: float

    @property
    def ratio(self) -> float | None:
        """Share of bad events, None without events."""
        return self.bad / self.total if self.total > 0 else None


NOTHING: Final = Count(0.0, 0.0)


class _Row:
    """One key: what was counted since we look, now and at each moment."""

    __slots__ = ("bad", "bads", "total", "totals")

    def __init__(self, moments: int) -> None:
        self.total = self.bad = 0.0
        self.totals = array("d", bytes(8 * moments))
        self.bads = array("d", bytes(8 * moments))

    def add(self, now: Events, before: Events | None, *, born: bool) -> None:
        """Add what a series counted since `before`; without that all of it, if it was `born` since we look."""
        total, good = now.total, now.good
        if before is None:
            if not born:
                return  # what was before we looked is nobody's business
        elif total >= before.total and good >= before.good:
            total, good = total - before.total, good - before.good
        self.total += total
        self.bad += total - good

    def join(self, other: "_Row") -> None:
        """Add all that another row has counted."""
        self.total += other.total
        self.bad += other.bad
        self.totals = array("d", map(float.__add__, self.totals, other.totals))
        self.bads = array("d", map(float.__add__, self.bads, other.bads))


class PromiseRecord:
    """Counts of all promises. Only the sampler's clock calls `take` and `mark`.

    Args:
        promises: what is counted.
    """

    def __init__(self, promises: Promises) -> None:
        self._promises = promises
        self._longest = max((tier.long for row in promises.rows for tier in row.tiers), default=3600.0)
        self._moments = array("d")
        self._budgets: dict[Budget, dict[str, _Row]] = {}  # by server; an empty name stands for those that are gone
        self._rows = 0
        self._before: dict[str, dict[tuple[int, Series], Events]] = {}
        self._marks = 0
        self._lacks: dict[tuple[int, str], Counted] = {}  # (promise, server) -> why it tells nothing
        self.left_out = 0  # series beyond the bound
        self.wants_requests = any(isinstance(row.events, Good) for row in promises.rows)

    def take(self, server: str, page: ServerPage, requests: RequestPage | None, *, anew: bool) -> None:
        """Add what a server counted since the last call; `anew`: its counters began again in between."""
        known = server in self._before
        before = self._before.setdefault(server, {})
        if anew:
            before.clear()
        labels = {**self._promises.target_labels, "server": server}
        for place, promised in enumerate(self._promises.rows):
            counted = count(promised, labels, page, requests)
            self._lacks[place, server] = counted._replace(events=())
            for each in counted.events:
                row = self._row((place, each.group), server)
                if row is None:
                    self.left_out += 1
                    continue
                row.add(each, before.get((place, each.series)), born=known)
                before[place, each.series] = each  # one that a page leaves out once is not born again by the next

    def _row(self, budget: Budget, server: str) -> _Row | None:
        servers = self._budgets.get(budget, {})
        row = servers.get(server)
        if row is None and self._rows < _MOST_ROWS:
            row = servers[server] = _Row(len(self._moments))
            self._budgets[budget] = servers
            self._rows += 1
        return row

    def mark(self, at: float, servers: Iterable[str]) -> None:
        """Remember the counts as those of this moment, in monotonic seconds; forget servers that left the list."""
        self._forget(frozenset(servers))
        self._moments.append(at)
        for row in self._each():
            row.totals.append(row.total)
            row.bads.append(row.bad)
        self._marks += 1
        if self._marks % _THIN_EVERY == 0:
            self._thin(at)

    def _each(self) -> Iterator[_Row]:
        return (row for servers in self._budgets.values() for row in servers.values())

    def _forget(self, servers: frozenset[str]) -> None:
        """Add up what servers counted that are gone: their requests stay part of the budget."""
        if self._before.keys() <= servers:
            return
        self._before = {server: events for server, events in self._before.items() if server in servers}
        self._lacks = {key: counted for key, counted in self._lacks.items() if key[1] in servers}
        for rows in self._budgets.values():
            for gone in [rows.pop(server) for server in [*rows] if server and server not in servers]:
                if "" in rows:
                    rows[""].join(gone)
                    self._rows -= 1
                else:
                    rows[""] = gone

    def _thin(self, now: float) -> None:
        keep = kept(self._moments, now, self._longest)
        if len(keep) == len(self._moments):
            return
        self._moments = array("d", [self._moments[i] for i in keep])
        for row in self._each():
            row.totals = array("d", [row.totals[i] for i in keep])
            row.bads = array("d", [row.bads[i] for i in keep])
        for budget, rows in [*self._budgets.items()]:
            if "" in rows and rows[""].totals[0] == rows[""].total:  # gone for longer than anybody looks back
                del rows[""]
                self._rows -= 1
            if not rows:
                del self._budgets[budget]

    def groups(self, place: int) -> dict[Group, tuple[str, ...]]:
        """Return the groups of a promise that were seen, each with its servers."""
        events = self._promises.rows[place].events
        of = events if isinstance(events, AtBest) else (place,)
        found: dict[Group, dict[str, None]] = {}
        for (index, group), rows in self._budgets.items():
            if index in of:
                found.setdefault(group, {}).update((server, None) for server in rows if server)
        for (index, server), counted in self._lacks.items():
            if index in of:
                for group in counted.groups:
                    found.setdefault(group, {})[server] = None
        return {group: tuple(servers) for group, servers in found.items()}

    def lacks(self, place: int, servers: Iterable[str]) -> dict[str, str]:
        """Return server -> why it tells nothing of a promise."""
        events = self._promises.rows[place].events
        of = events if isinstance(events, AtBest) else (place,)
        found = {(index, server): self._lacks.get((index, server)) for server in servers for index in of}
        return {server: counted.lacks for (_, server), counted in found.items() if counted and counted.lacks}

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers that were read."""
        return tuple(self._before)

    def within(self, place: int, group: Group, window: float, server: str | None = None) -> Count:
        """Return the events of a window up to the last mark, as far back as is known; of one server or of all."""
        events = self._promises.rows[place].events
        if isinstance(events, AtBest):
            both = [self.within(other, group, window, server) for other in events]
            if not all(one.total > 0 for one in both):
                return NOTHING
            total = max(one.total for one in both)
            return Count(total, total * max(one.bad / one.total for one in both))
        rows = self._budgets.get((place, group), {})
        some = rows.values() if server is None else [rows[server]] if server in rows else []
        if not self._moments:
            return NOTHING
        first = max(0, bisect_right(self._moments, self._moments[-1] - window) - 1)
        return Count(
            sum(row.totals[-1] - row.totals[first] for row in some), sum(row.bads[-1] - row.bads[first] for row in some)
        )

    @property
    def seconds(self) -> float:
        """How far back counts reach."""
        return self._moments[-1] - self._moments[0] if self._moments else 0.0


def kept(moments: Sequence[float], now: float, longest: float) -> list[int]:
    """Return the places of moments that stay: as far apart as their age asks for, the oldest just before `longest`."""
    oldest = max(0, bisect_right(moments, now - longest) - 1)
    keep: list[int] = []
    for place in range(oldest, len(moments)):
        age = now - moments[place]
        apart = next(apart for young, apart in _SPACING if age <= young)
        following = moments[place + 1] if place + 1 < len(moments) else float("inf")
        # Left out where the moments on both sides are near enough to each other.
        if keep and following - moments[keep[-1]] <= apart:
            continue
        keep.append(place)
    return keep

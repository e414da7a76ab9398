"""Everything that the sidecar puts on the page: started, stopped, guarded, counted and timed in one place."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..runtime.log_once import LogOnce
from .pages.samples import Rendered, Sample, label_pairs, render

log = logging.getLogger("vllm_vitals")


class Part(Protocol):
    """What has samples for the page; each of the three returns soon, whatever hangs behind it."""

    def start(self) -> None:
        """Begin to read on a clock of its own; nothing to do for a part without one."""
        ...

    def stop(self) -> None:
        """End that within seconds; also called when never started."""
        ...

    def samples(self) -> Sequence[Sample] | Rendered:
        """Return what it knows now."""
        ...


@dataclass(frozen=True, slots=True)
class Counted:
    """A part without a clock of its own: samples of what somebody else counts."""

    samples: Callable[[], Sequence[Sample]]

    def start(self) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Parts:
    """The parts in the order of their names' arrival.

    A part that fails loses its own samples only: it is counted, and logged the first time.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = dict(parts)
        self._failures: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._said = LogOnce()

    def start(self) -> None:
        """Start every part; one that does not start is counted, and the others start."""
        for name, part in self._parts.items():
            with self._guarded(name):
                part.start()

    async def stop(self) -> None:
        """Stop every part, side by side."""
        stops = (asyncio.to_thread(part.stop) for part in self._parts.values())
        await asyncio.gather(*stops, return_exceptions=True)

    def replace(self, name: str, part: Part) -> None:
        """Stop the part of this name and start another in its place."""
        self._parts[name].stop()
        self._parts[name] = part
        part.start()

    def lines(self) -> list[Mapping[str, bytes]]:
        """Return the lines of every part, and what they cost and how often they failed."""
        found: list[Mapping[str, bytes]] = []
        for name, part in self._parts.items():
            with self.watched(name):
                told = part.samples()
                found += told.families if isinstance(told, Rendered) else (render(told),)
        return [*found, render(self._own_samples())]

    @contextlib.contextmanager
    def watched(self, name: str) -> Iterator[None]:
        """Guard, count and time what is done within, under a part's name; nothing that it raises gets out."""
        started = time.perf_counter()
        with self._guarded(name):
            yield
        self._seconds[name] = time.perf_counter() - started

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._failures[name] += 1
            if self._said.is_news(name):
                log.exception("the part %s failed; the rest of the page stays", name)

    def _own_samples(self) -> list[Sample]:
        failures, seconds = self._failures.copy(), self._seconds.copy()
        return [
            *(Sample("vllm_vitals_part_failures_total", label_pairs(part=name), n) for name, n in failures.items()),
            *(
                Sample("vllm_vitals_part_duration_seconds", label_pairs(part=name), round(spent, 6))
                for name, spent in seconds.items()
            ),
        ]

"""CPU time and memory of each engine's processes by role: a saturated API server core is a common hidden bottleneck."""

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..pages.samples import Sample, label_pairs
from .process_tree import PROC

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Reading(NamedTuple):
    start: int  # clock ticks after boot
    cpu: float  # seconds, user and system
    resident: int  # bytes


@dataclass(slots=True)
class _Known:
    start: int
    cpu: float


class EngineProcesses:
    """Accumulates CPU time per (server, role), so that the counters do not fall when a process ends."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._totals: dict[tuple[str, str], float] = {}
        self._known: dict[tuple[str, int], _Known] = {}
        self._collected_at: float | None = None
        self._walk: object = None
        self._samples: list[Sample] = []

    def collect(self, pids: Mapping[str, Mapping[int, str]]) -> None:
        """Read the processes once, one small file each; call it every few seconds.

        Args:
            pids: server -> pid -> role, as Placement.pids gives it. A server that is left out loses its counters.
        """
        now = time.monotonic()
        elapsed = now - self._collected_at if self._collected_at is not None else 0.0
        known: dict[tuple[str, int], _Known] = {}
        resident: dict[tuple[str, str], int] = defaultdict(int)
        count: dict[tuple[str, str], int] = defaultdict(int)
        busiest: dict[tuple[str, str], float] = {}
        for server, members in pids.items():
            is_new_server = not any(name == server for name, _ in self._totals)
            for pid, role in members.items():
                reading = _read(self._proc, pid)
                if reading is None:
                    continue
                series = (server, role)
                before = self._known.get((server, pid))
                if before is not None and before.start != reading.start and pids is self._walk:
                    known[server, pid] = before
                    continue  # the number went to a stranger; the next walk says who the engine's processes are now
                known[server, pid] = _Known(reading.start, reading.cpu)
                resident[series] += reading.resident
                count[series] += 1
                if before is not None and before.start == reading.start:
                    spent = max(reading.cpu - before.cpu, 0.0)
                    if elapsed > 0:
                        busiest[series] = max(busiest.get(series, 0.0), spent / elapsed)
                elif is_new_server or self._is_young(reading, now):
                    spent = reading.cpu
                else:
                    spent = 0.0  # found late: its whole life in one step would look like a burst
                self._totals[series] = self._totals.get(series, 0.0) + spent
        self._totals = {key: total for key, total in self._totals.items() if key[0] in pids}
        self._known = known
        self._walk = pids
        self._collected_at = now
        self._samples = _rendered(self._totals, resident, busiest, count)

    def samples(self) -> list[Sample]:
        """Return what the last `collect` read."""
        return self._samples

    def _is_young(self, reading: _Reading, now: float) -> bool:
        """Return whether a process started after the previous collection."""
        started = reading.start / _TICKS  # since boot, as CLOCK_BOOTTIME counts
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
        return self._collected_at is not None and age <= now - self._collected_at + 1 / _TICKS


def _rendered(
    totals: Mapping[tuple[str, str], float],
    resident: Mapping[tuple[str, str], int],
    busiest: Mapping[tuple[str, str], float],
    count: Mapping[tuple[str, str], int],
) -> list[Sample]:
    families: tuple[tuple[str, Mapping[tuple[str, str], float]], ...] = (
        ("vllm_vitals_engine_process_cpu_seconds_total", totals),
        ("vllm_vitals_engine_process_resident_memory_bytes", resident),
        ("vllm_vitals_engine_process_max_cpu_ratio", busiest),
        ("vllm_vitals_engine_processes", count),
    )
    return [
        Sample(family, label_pairs(server=server, role=role), value)
        for family, values in families
        for (server, role), value in sorted(values.items())
    ]


def _read(proc: Path, pid: int) -> _Reading | None:
    try:
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - read every few seconds
            fields = file.read(4096).rpartition(b")")[2].split()
        if fields[0] == b"Z":
            return None
        cpu = (int(fields[11]) + int(fields[12])) / _TICKS
        return _Reading(int(fields[19]), cpu, int(fields[21]) * _PAGE)
    except (OSError, IndexError, ValueError):  # gone
        return None

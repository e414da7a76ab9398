"""CPU of vLLM's API server process per request, with the plugin in its variants, without, and with vLLM's own tracing.

.venv/bin/python benchmarks/tracing_server.py [ROUNDS [REQUESTS [NUMBER...]]]     NUMBER: of a variant, as listed below

All servers are up at once; a round sends a slice of the same requests to each, in another order each time, and what
counts is the ratio to the server without the plugin in the same round. A second server without the plugin shows what
such a ratio says where there is nothing to see. CPU time is the kernel's clock of the process, in nanoseconds: all its
threads, but neither the child of `export: process` nor the collector. The model costs next to nothing, so the API
server's own share of a request is as large as it gets. A server takes 2 GB, so with less than 24 GB name some variants.
"""

import concurrent.futures
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measured import ROOT, interval, table
from support.calls import chat, completion, post
from support.fixtures import CACHE
from support.traced_vllm import TracedVllm
from support.vllm_server import VllmServer

RECEIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from support.otlp_receiver import OtlpReceiver
with OtlpReceiver() as receiver:
    print(receiver.grpc_url, flush=True)
    while sys.stdin.readline():
        receiver.clear()
"""


BARE = "without the plugin"
DELAY = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # ms: what a slice causes is sent before the next one begins
SETTLE_SECONDS = 0.4  # the drain thread looks ten times a second


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


def starts(collector: Collector) -> dict[str, Callable[[], VllmServer]]:
    """Return what starts each variant."""
    own = DELAY | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    process = own | {"VLLM_VITALS_TRACING_EXPORT": "process"}
    off = {"OTEL_TRACES_SAMPLER": "always_off"}
    one = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
    only_traces = Path(tempfile.mkdtemp(prefix="vitals-only-")) / "vitals.yaml"
    only_traces.write_text("tracing:\n  only_traces: true\n")
    only = {"VLLM_VITALS_CONFIG": str(only_traces)}

    def traced(environment: dict[str, str], *flags: str) -> Callable[[], VllmServer]:
        return lambda: TracedVllm(CACHE, *flags, environment=environment)

    return {
        BARE: lambda: VllmServer(CACHE),
        "without the plugin, once more": lambda: VllmServer(CACHE),
        "own, unsampled": traced(own | off),
        "own, unsampled, only_traces": traced(own | off | only),
        "own, 1 %": traced(own | one),
        "own, 100 %, export: thread": traced(own),
        "own, 100 %, export: process": traced(process),
        "vLLM's own tracing, no plugin": lambda: VllmServer(
            CACHE, "--otlp-traces-endpoint", collector.url, environment=DELAY
        ),
        "alongside, 100 %": traced(DELAY, "--otlp-traces-endpoint", collector.url),
    }


def send(server: VllmServer, number: int) -> int:
    """Send one request: every other one streams."""
    if number % 2:
        return post(server.url, "/v1/chat/completions", chat(stream=True)).status
    return post(server.url, "/v1/completions", completion(prompt=f"Request {number}")).status


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, threads that have ended included: CPUCLOCK_SCHED of another process."""
    return time.clock_gettime((~pid << 3) | 2)


def cpu_per_request(server: VllmServer, pool: concurrent.futures.Executor, requests: int) -> float:
    """Return CPU milliseconds of the API server process."""
    before = cpu_seconds(server.process.pid)
    assert set(pool.map(lambda number: send(server, number), range(requests))) == {200}
    time.sleep(SETTLE_SECONDS)  # what the plugin does behind the requests belongs to them
    return (cpu_seconds(server.process.pid) - before) / requests * 1000


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    requests = int(sys.argv[2]) if len(sys.argv) > 2 else 48
    collector = Collector()
    wanted = {0, *map(int, sys.argv[3:])}
    running: dict[str, VllmServer] = {}
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for number, (name, start) in enumerate(starts(collector).items()):  # each start needs the whole machine
                if wanted != {0} and number not in wanted:
                    continue
                print(f"starting: {name}", file=sys.stderr)
                running[name] = start()
                running[name].wait_until_ready()
            found: dict[str, list[float]] = {name: [] for name in running}
            for server in running.values():  # vLLM freezes and warms up what it has on the way
                cpu_per_request(server, pool, 4 * requests)
            for number in range(rounds):
                print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr)
                for name in random.sample([*running], len(running)):
                    found[name].append(cpu_per_request(running[name], pool, requests))
                collector.clear()
        print(file=sys.stderr)
    finally:
        for server in running.values():
            server.stop()
        collector.close()
    rows = []
    for name, costs in found.items():
        ratios = [cost / base for cost, base in zip(costs, found[BARE], strict=True)]
        added = [(cost - base) * 1000 for cost, base in zip(costs, found[BARE], strict=True)]
        row = (name, f"{statistics.median(costs):.2f}", f"{statistics.median(ratios):.3f}")
        low, high = interval(ratios)
        rows.append((*row, f"{low:.3f} to {high:.3f}", f"{statistics.median(added):.0f}"))
    table(("variant", "CPU ms per request", "median of paired ratios", "95 % of it", "added, us"), rows)


if __name__ == "__main__":
    assert Path(CACHE / "tiny-model").exists(), "run ./vitals test once"
    main()

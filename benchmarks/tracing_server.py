"""CPU of vLLM's API server process per request, with the plugin in its variants, without, and with vLLM's own tracing.

.venv/bin/python benchmarks/tracing_server.py [ROUNDS [REQUESTS]]

All servers are up at once; each round sends the same requests to each in another order, and what counts is the ratio
to the server without the plugin in the same round. The model costs next to nothing, so the API server's own share of a
request is as large as it gets. The child of `export: process` and the collector are other processes and not counted.
"""

import concurrent.futures
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from measured import ROOT, table
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


def servers(collector: Collector) -> dict[str, VllmServer]:
    """Start all variants."""
    own = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    one = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
    return {
        "without the plugin": VllmServer(CACHE),
        "own, unsampled": TracedVllm(CACHE, environment=own | {"OTEL_TRACES_SAMPLER": "always_off"}),
        "own, 1 %": TracedVllm(CACHE, environment=own | one),
        "own, 100 %, export: thread": TracedVllm(CACHE, environment=own),
        "own, 100 %, export: process": TracedVllm(CACHE, environment=own | {"VLLM_VITALS_TRACING_EXPORT": "process"}),
        "vLLM's own tracing, no plugin": VllmServer(CACHE, "--otlp-traces-endpoint", collector.url),
        "alongside, 100 %": TracedVllm(CACHE, "--otlp-traces-endpoint", collector.url),
    }


def send(server: VllmServer, number: int) -> int:
    """Send one request: every other one streams."""
    if number % 2:
        return post(server.url, "/v1/chat/completions", chat(stream=True)).status
    return post(server.url, "/v1/completions", completion(prompt=f"Request {number}")).status


def cpu_per_request(server: VllmServer, requests: int) -> float:
    """Return CPU milliseconds of the API server process."""
    process = psutil.Process(server.process.pid)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        before = sum(process.cpu_times()[:2])
        assert set(pool.map(lambda number: send(server, number), range(requests))) == {200}
    time.sleep(1.2)  # what the plugin does behind the requests belongs to them
    return (sum(process.cpu_times()[:2]) - before) / requests * 1000


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    requests = int(sys.argv[2]) if len(sys.argv) > 2 else 128
    collector = Collector()
    running = servers(collector)
    try:
        for name, server in running.items():
            print(f"starting: {name}", file=sys.stderr)
            server.wait_until_ready()
            cpu_per_request(server, 32)
        found: dict[str, list[float]] = {name: [] for name in running}
        for number in range(rounds):
            names = random.sample([*running], len(running))
            for name in names:
                print(f"\rround {number + 1}/{rounds}: {name:<40}", end="", file=sys.stderr)
                found[name].append(cpu_per_request(running[name], requests))
            collector.clear()
        print(file=sys.stderr)
    finally:
        for server in running.values():
            server.stop()
        collector.close()
    bare = found["without the plugin"]
    rows = []
    for name, costs in found.items():
        ratios = sorted(cost / base for cost, base in zip(costs, bare, strict=True))
        spread = f"{ratios[len(ratios) // 4]:.2f} to {ratios[-1 - len(ratios) // 4]:.2f}"
        row = (name, f"{statistics.median(costs):.2f}", f"{statistics.median(ratios):.3f}", spread)
        rows.append((*row, f"{sum(costs) / sum(bare):.3f}"))
    table(("variant", "CPU ms per request", "median of paired ratios", "middle half", "ratio of sums"), rows)


if __name__ == "__main__":
    assert Path(CACHE / "tiny-model").exists(), "run ./vitals test once"
    main()

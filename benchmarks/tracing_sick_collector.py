"""A vLLM whose collector hangs for minutes, beside one without the plugin: throughput, memory, what was dropped.

.venv/bin/python benchmarks/tracing_sick_collector.py [MINUTES]

Both servers get the same requests in turns of ten seconds, 4 at a time, so that the machine's moods meet both. Every
request is sampled; the queue of spans is as small as two turns fill, so that most of the time it drops.
"""

import concurrent.futures
import statistics
import sys
import time

import psutil
from measured import table
from support.exposition import values
from support.fixtures import CACHE
from support.otlp_receiver import HANG, OtlpReceiver
from support.traced_vllm import TracedVllm
from support.vllm_server import VllmServer
from tracing_server import send

TURN_SECONDS = 10.0
QUEUE = 2048  # spans


def turn(server: VllmServer) -> float:
    """Send requests for a while; returns how many were answered per second."""
    end = time.monotonic() + TURN_SECONDS
    begun = time.monotonic()

    def worker(number: int) -> int:
        done = 0
        while time.monotonic() < end:
            assert send(server, number + done) == 200
            done += 1
        return done

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = sum(pool.map(worker, range(4)))
    return done / (time.monotonic() - begun)


def resident(server: VllmServer) -> float:
    """Return MB of the API server process."""
    return psutil.Process(server.process.pid).memory_info().rss / 1e6


def main() -> None:
    turns = int(float(sys.argv[1] if len(sys.argv) > 1 else 6) * 60 / TURN_SECONDS / 2)
    with OtlpReceiver() as receiver:
        receiver.answers[:] = [HANG]
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_url, "OTEL_BSP_MAX_QUEUE_SIZE": str(QUEUE)}
        running = {
            "without the plugin": VllmServer(CACHE),
            "with it, the collector hangs": TracedVllm(CACHE, environment=environment),
        }
        try:
            for server in running.values():
                server.wait_until_ready()
                turn(server)
            rates: dict[str, list[float]] = {name: [] for name in running}
            memory: dict[str, list[float]] = {name: [resident(server)] for name, server in running.items()}
            for number in range(turns):
                print(f"\rturn {number + 1}/{turns}", end="", file=sys.stderr)
                for name, server in running.items():
                    rates[name].append(turn(server))
                    memory[name].append(resident(server))
            print(file=sys.stderr)
            page = running["with it, the collector hangs"].page()
        finally:
            for server in running.values():
                server.stop()
    bare = rates["without the plugin"]
    rows = []
    for name, found in rates.items():
        half = len(memory[name]) // 2
        row = (
            name, f"{statistics.median(found):.1f}",
            f"{statistics.median(a / b for a, b in zip(found, bare, strict=True)):.3f}",
            f"{memory[name][0]:.0f}", f"{memory[name][half]:.0f}", f"{memory[name][-1]:.0f}",
        )  # fmt: skip
        rows.append(row)
    table(("server", "requests/s (median)", "paired ratio", "RSS MB: begin", "middle", "end"), rows)
    print(f"\n{sum(map(len, rates.values())) * TURN_SECONDS / 60:.0f} minutes, half of them for each server; spans:")
    for result in ("emitted", "dropped", "failed"):
        print(f"  {result:8} {sum(values(page, 'vllm_vitals_tracing_spans_total', result=result)):.0f}")
    print(f"  failed calls {sum(values(page, 'vllm_vitals_tracing_export_failures_total')):.0f}")


if __name__ == "__main__":
    main()

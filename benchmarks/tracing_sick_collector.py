"""A vLLM whose collector hangs for minutes, beside one without the plugin: throughput, memory, what was dropped.

.venv/bin/python benchmarks/tracing_sick_collector.py [MINUTES]

All servers get the same requests in turns of ten seconds, 4 at a time, in another order each round, so that the
moods of the machine meet all; a second turn of the one without the plugin shows what a ratio says where nothing is
to see. Every request is sampled; the queue of spans is as small as two turns fill, so that most of the time it drops.
"""

import concurrent.futures
import random
import statistics
import sys
import time

import psutil
from measured import estimate, table
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


BARE, AGAIN = "without the plugin", "without the plugin, once more (control)"


def main() -> None:
    minutes = float(sys.argv[1] if len(sys.argv) > 1 else 10)
    with OtlpReceiver() as receiver:
        receiver.answers[:] = [HANG]
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_url, "OTEL_BSP_MAX_QUEUE_SIZE": str(QUEUE)}
        plain = VllmServer(CACHE)
        running = {BARE: plain, AGAIN: plain}
        for export in ("thread", "process"):
            hanging = {**environment, "VLLM_VITALS_TRACING_EXPORT": export}
            running[f"export: {export}, the collector hangs"] = TracedVllm(CACHE, environment=hanging)
        rounds = int(minutes * 60 / TURN_SECONDS / len(running))
        try:
            for server in running.values():
                server.wait_until_ready()
                turn(server)
            rates: dict[str, list[float]] = {name: [] for name in running}
            memory: dict[str, list[float]] = {name: [resident(server)] for name, server in running.items()}
            for number in range(rounds):
                print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr)
                for name in random.sample([*running], len(running)):
                    rates[name].append(turn(running[name]))
                    memory[name].append(resident(running[name]))
            print(file=sys.stderr)
            pages = {name: server.page() for name, server in running.items() if server is not plain}
        finally:
            for server in running.values():
                server.stop()
    rows = []
    for name, found in rates.items():
        pairs = list(zip(found, rates[BARE], strict=True))
        ratio = estimate(lambda pairs: statistics.median(own / base for own, base in pairs), pairs)
        held = (memory[name][0], memory[name][len(memory[name]) // 2], memory[name][-1])
        rows.append(
            (name, f"{statistics.median(found):.1f}", "{:.3f} ({:.3f} to {:.3f})".format(*ratio), *map(round, held))
        )
    table(("server", "requests/s (median)", "paired ratio", "RSS MB: begin", "middle", "end"), rows)
    for name, page in pages.items():
        told = {
            result: int(sum(values(page, "vllm_vitals_tracing_spans_total", result=result)))
            for result in ("emitted", "dropped", "failed")
        }
        failed = sum(values(page, "vllm_vitals_tracing_export_failures_total"))
        print(
            f"\n{name}: {rounds * TURN_SECONDS / 60:.0f} minutes of requests, spans {told}, {failed:.0f} failed calls"
        )


if __name__ == "__main__":
    main()

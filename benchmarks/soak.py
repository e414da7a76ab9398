"""Twenty thousand scrapes: memory, threads and descriptors of the exporter must not grow.

    python benchmarks/soak.py [--scrapes 20000]

Eight fake GPUs, host metrics, one engine whose page is real; scrapes over kept-alive and over fresh connections, and
the live page's data in between. Exit code 1 when the last fifth is above the second by more than noise.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

from measured import PAGE, Scraper, Usage, serve_page, table, usage

from fake_nvml.build import library  # isort: skip  measured puts tests/ on the path
from fake_nvml.state import FakeNvml  # isort: skip
from support.http import free_port  # isort: skip
from support.programs import VITALS, Program  # isort: skip

LOOKS = 20
RSS_NOISE = 1.0  # MiB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scrapes", type=int, default=20_000)
    total = parser.parse_args().scrapes
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        state = FakeNvml(folder / "nvml.state")
        state.gpus(8)
        env = {
            "PATH": "/usr/bin:/bin",
            "LD_LIBRARY_PATH": str(library(old_driver=False).parent),
            "FAKE_NVML_STATE": str(state.path),
        }
        port = free_port()
        command = [VITALS, "exporter", "--listen", f"127.0.0.1:{port}", "--engine", serve_page(PAGE.read_bytes())]
        exporter = Program(command, folder / "exporter.log", env, cwd=folder)
        stack.callback(exporter.stop)
        url = f"http://127.0.0.1:{port}"
        exporter.ready(f"{url}/readyz")
        looks: list[tuple[int, Usage]] = []
        kept = Scraper(f"{url}/metrics")
        for n in range(1, total + 1):
            if n % 4 == 0:
                Scraper(f"{url}/metrics")()
            else:
                kept()
            if n % 50 == 0:
                Scraper(f"{url}/api/vitals")()
            if n % (total // LOOKS) == 0:
                looks.append((n, usage(exporter.process.pid)))
                print(f"{n:,} of {total:,}: {looks[-1][1]}", file=sys.stderr)
    table(
        ("scrapes", "RSS, MiB", "threads", "descriptors"),
        [(f"{n:,}", f"{u.rss:.1f}", u.threads, u.fds) for n, u in looks],
    )
    # the rings of the live page fill in their first ten minutes: compare from the second fifth on
    early, late = looks[LOOKS // 5 : 2 * LOOKS // 5], looks[-LOOKS // 5 :]
    growth = statistics.mean(u.rss for _, u in late) - statistics.mean(u.rss for _, u in early)
    more_threads = max(u.threads for _, u in late) > max(u.threads for _, u in early)
    more_fds = max(u.fds for _, u in late) > max(u.fds for _, u in early) + 2
    grew = {True: "grew", False: "stayed"}
    print(f"\ngrowth: {growth:+.2f} MiB, threads {grew[more_threads]}, descriptors {grew[more_fds]}")
    return int(growth > RSS_NOISE or more_threads or more_fds)


if __name__ == "__main__":
    sys.exit(main())

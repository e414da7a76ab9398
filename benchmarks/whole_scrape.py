"""A whole scrape of eight GPUs and one engine against nvitop-exporter on the same fake driver, in one run, in turns.

    python benchmarks/whole_scrape.py [--nvitop FOLDER]     FOLDER: virtual environment that holds nvitop-exporter 1.7

Both run on the same compiled fake libnvidia-ml.so.1 behind the real pynvml; the driver's own time is not included.
CPU per scrape is what a process used during the scrapes, less what it uses in the background in the same time. That is
measured after two minutes: no process of this benchmark is on the fake GPUs, so placement looks again and again, with
growing pauses, which it does not do for an engine that it found.
"""

import argparse
import contextlib
import gzip
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measured import PAGE, Scraper, serve_page, table, usage

from fake_nvml.build import library  # isort: skip  measured puts tests/ on the path
from fake_nvml.state import FakeNvml  # isort: skip
from support.http import free_port  # isort: skip
from support.programs import VITALS, Program  # isort: skip
from support.waiting import wait_for  # isort: skip

ROUNDS = 5
SCRAPES = 100
SETTLE_SECONDS = 120
IDLE_SECONDS = 40


def nvitop_python(folder: Path) -> Path:
    """Return the interpreter of an environment with nvitop-exporter, made when it is not there."""
    python = folder / "bin/python"
    if not (folder / "bin/nvitop-exporter").exists():
        print(f"installing nvitop-exporter into {folder} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "--quiet", "install", "nvitop-exporter==1.7.*"], check=True)
    return python


def background(pid: int) -> float:
    """Return the share of a core that an idle process uses."""
    before, started = usage(pid).cpu, time.monotonic()
    time.sleep(IDLE_SECONDS)
    return (usage(pid).cpu - before) / (time.monotonic() - started)


def cpu_per_scrape(pid: int, scrape: Scraper, idle: float) -> tuple[float, float]:
    """Return (CPU ms, wall ms) per scrape."""
    before, started = usage(pid).cpu, time.monotonic()
    for _ in range(SCRAPES):
        scrape()
    elapsed = time.monotonic() - started
    return (usage(pid).cpu - before - idle * elapsed) / SCRAPES * 1e3, elapsed / SCRAPES * 1e3


def samples(scrape: Scraper) -> int:
    """Return how many samples a page has."""
    body = scrape()
    text = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
    return len(re.findall(rb"(?m)^[^#\n]", text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvitop", type=Path, default=Path("~/.cache/vllm-vitals/nvitop").expanduser())
    options = parser.parse_args()
    python = nvitop_python(options.nvitop)

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        state = FakeNvml(folder / "nvml.state")
        state.gpus(8)
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": name,
            "LD_LIBRARY_PATH": str(library(old_driver=False).parent),
            "FAKE_NVML_STATE": str(state.path),
        }
        ports = free_port(), free_port()
        engine = f"{{name: vllm, url: '{serve_page(PAGE.read_bytes())}', gpus: [0, 1, 2, 3, 4, 5, 6, 7]}}"
        (folder / "vitals.yaml").write_text(f"engines: [{engine}]\n")
        ours = Program([VITALS, "exporter", "--listen", f"127.0.0.1:{ports[0]}"], folder / "ours.log", env, cwd=folder)
        stack.callback(ours.stop)
        theirs = Program(
            [python, "-m", "nvitop_exporter", "--bind-address", "127.0.0.1", "--port", ports[1]], folder / "n.log", env
        )
        stack.callback(theirs.stop)
        programs = {
            "vllm-vitals": (ours.process.pid, Scraper(f"http://127.0.0.1:{ports[0]}/metrics")),
            "nvitop-exporter 1.7": (theirs.process.pid, Scraper(f"http://127.0.0.1:{ports[1]}/metrics")),
        }
        for program, (_, scrape) in programs.items():
            wait_for(lambda scrape=scrape: samples(scrape) > 300, f"{program}'s page", seconds=60)
        for _ in range(20):
            for _, scrape in programs.values():
                scrape()
        time.sleep(SETTLE_SECONDS)
        idle = {program: background(pid) for program, (pid, _) in programs.items()}
        figures: dict[str, list[tuple[float, float]]] = {program: [] for program in programs}
        for _ in range(ROUNDS):
            for program, (pid, scrape) in programs.items():
                figures[program].append(cpu_per_scrape(pid, scrape, idle[program]))
        rows = []
        for program, (pid, scrape) in programs.items():
            cpu = statistics.median(cpu for cpu, _ in figures[program])
            wall = statistics.median(wall for _, wall in figures[program])
            rss = usage(pid).rss
            rows.append((program, samples(scrape), f"{cpu:.2f}", f"{wall:.1f}", f"{idle[program]:.2%}", f"{rss:.1f}"))
        table(("exporter", "samples", "CPU per scrape, ms", "wall, ms", "background, of a core", "RSS, MiB"), rows)
        pairs = zip(figures["vllm-vitals"], figures["nvitop-exporter 1.7"], strict=True)
        print(f"\nCPU per scrape, median of paired ratios: {statistics.median(a[0] / b[0] for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()

"""CPU of the GPU part over the fake NVML library: one cycle of one GPU, and eight GPUs at 1 s in the background."""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_FAKE = Path(__file__).parent.parent / "tests" / "fake_nvml"
_CYCLES = 2000
_ROUNDS = 20


def cpu_in_turn(*calls: Callable[[], object], times: int = _CYCLES) -> list[float]:
    """Return microseconds of CPU per call, best of twenty rounds.

    Each round has all of them: measured one behind the other, a part cost more than its whole, whose turn was a calmer
    minute of the machine.
    """
    best = [float("inf")] * len(calls)
    for _ in range(_ROUNDS):
        for place, call in enumerate(calls):
            start = time.process_time()
            for _ in range(times // _ROUNDS):
                call()
            best[place] = min(best[place], (time.process_time() - start) / (times // _ROUNDS))
    return [one * 1e6 for one in best]


def measure(seconds: float, gpus: int) -> None:
    from vllm_vitals.exporter.gpus.monitor import GpuMonitor  # noqa: PLC0415
    from vllm_vitals.exporter.gpus.nvml.source import NvmlSource  # noqa: PLC0415
    from vllm_vitals.exporter.gpus.worker import GpuRecord, GpuWorker  # noqa: PLC0415 (the child process only)
    from vllm_vitals.exporter.pages.samples import page  # noqa: PLC0415

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = NvmlSource()
    device = source.open()[0]
    device.read(slow=True)
    record = GpuRecord(device)
    worker = GpuWorker(
        record,
        device,
        interval=1.0,
        slow_interval=1e9,
        phase=0.0,
        families_off=frozenset(),
        on_error=lambda _: None,
    )
    now = time.monotonic()
    worker._cycle(now)
    cycles = {
        "driver calls and samples, fast cycle": lambda: device.read(slow=False),
        "driver calls and samples, slow cycle": lambda: device.read(slow=True),
        "whole fast cycle": lambda: worker._cycle(now),
    }
    rows = [
        *((name, figure, "us") for name, figure in zip(cycles, cpu_in_turn(*cycles.values()), strict=True)),
        ("samples of one GPU", len(record.snapshot.samples), ""),
    ]
    source.close()

    monitor = GpuMonitor(NvmlSource())
    monitor.start()
    deadline = time.monotonic() + 10
    while len(monitor.snapshots()) < gpus or not all(one.up for one in monitor.snapshots()):
        if time.monotonic() > deadline:
            sys.exit("the GPUs did not come up")
        time.sleep(0.01)
    start, cpu = time.monotonic(), time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - cpu) / (time.monotonic() - start)
    rows.append((f"background, {gpus} GPUs at 1 s, share of one core", 100 * share, "%"))
    rendered, looked = cpu_in_turn(lambda: page(monitor.lines(time.monotonic())), monitor.snapshots, times=500)
    rows += [("lines for the page", rendered, "us"), ("snapshots()", looked, "us")]
    rows.append(("bytes on the page", len(page(monitor.lines(time.monotonic()))), ""))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    rows.append(("memory of NVML part, pynvml and fake", grown, "MiB"))
    monitor.stop()
    for name, value, unit in rows:
        print(f"{name:<48} {value:>10.2f} {unit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to watch the background")
    parser.add_argument("--gpus", type=int, default=8)
    options = parser.parse_args()
    if "FAKE_NVML_STATE" in os.environ:
        measure(options.seconds, options.gpus)
        return
    library = subprocess.run([sys.executable, _FAKE / "build.py"], check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "nvml.state"
        subprocess.run(
            [sys.executable, _FAKE / "state.py", state, "--gpus", str(options.gpus), "--processes"], check=True
        )
        # the loader reads LD_LIBRARY_PATH when a process starts, so the measured part is a process of its own
        environment = {
            **os.environ,
            "FAKE_NVML_STATE": str(state),
            "LD_LIBRARY_PATH": str(Path(library.stdout.strip()).parent),
        }
        subprocess.run([sys.executable, __file__, *sys.argv[1:]], check=True, env=environment)


if __name__ == "__main__":
    main()

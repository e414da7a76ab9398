"""The state file of the fake NVML library: what a test scripts, written so that no reader sees half of it."""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ALL = "*"
NO_GPU = "-"  # for functions that name no GPU, such as nvmlInitWithFlags
_XIDS_KEPT = 64

# A real H100 SXM under load, as public captures show it; the library's own defaults are the same.
H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "util": 100,
    "mem_util": 11,
    "mem_total": 85_520_809_984,
    "mem_reserved": 502_267_904,
    "mem_used": 75_000_000_000,
    "power_mw": 631_950,
    "power_avg_mw": 630_120,
    "temp": 59,
    "mem_temp": 54,
    "clock_sm": 1980,
    "clock_graphics": 1980,
    "clock_mem": 2619,
}


class FakeNvml:
    """Writes the state file after every change, or once at the end of a `with state.batch()` block."""

    def __init__(self, path: str | os.PathLike[str], gpus: int = 8):
        self.path = Path(path)
        self._gpus = gpus
        self._generation = 1
        self._system: dict[str, str] = {}
        self._values: dict[tuple[str, str], str] = {}
        self._fields: dict[tuple[str, int, str], str] = {}
        self._behaviour: dict[tuple[str, str, str], int] = {}
        self._processes: dict[int, list[str]] = {}
        self._mig: dict[int, list[str]] = {}
        self._samples: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._xids: list[str] = []
        self._sequence = 0
        self._batched = False
        for key, value in H100.items():
            self._values[ALL, key] = str(value)
        self._write()

    @contextlib.contextmanager
    def batch(self) -> Iterator["FakeNvml"]:
        """Make several changes appear at once."""
        self._batched = True
        try:
            yield self
        finally:
            self._batched = False
            self._write()

    def gpus(self, count: int) -> None:
        self._gpus = count
        self._write()

    def system(self, key: str, value: str | int) -> None:
        """Set driver_version, nvml_version or cuda_version (13000 is 13.0)."""
        self._system[key] = str(value)
        self._write()

    def set(self, gpu: int | str, key: str, value: str | int) -> None:
        """Set one number or string of a GPU; the keys stand in fake_nvml.c."""
        self._values[str(gpu), key] = str(value)
        self._write()

    def field(
        self, gpu: int | str, field: int, value: float, *, kind: int = 3, code: int = 0, scope: int | None = None
    ) -> None:
        """Script the answer to one field id; kind as in NVML: 0 double, 1 u32, 3 u64, 4 i64, 5 i32, 6 u16.

        Without a scope it is the answer in every scope that has none of its own. Code -1 leaves the entry untouched.
        """
        self._fields[str(gpu), field, "" if scope is None else str(scope)] = f"{code} {kind} {value}"
        self._write()

    def error(self, function: str, gpu: int | str, code: int) -> None:
        """Let a function answer this code; 0 ends it."""
        self._behave("error", function, gpu, code)

    def delay(self, function: str, gpu: int | str, seconds: float) -> None:
        self._behave("delay", function, gpu, round(seconds * 1e6))

    def hang(self, function: str, gpu: int | str) -> None:
        """Let a function hang until `release`."""
        self._behave("hang", function, gpu, 1)

    def release(self) -> None:
        """End every hang and delay."""
        for key in [key for key in self._behaviour if key[0] != "error"]:
            del self._behaviour[key]
        self._write()

    def lose(self, gpu: int, code: int = 15) -> None:
        """Let every function of this GPU that the collector polls answer GPU_IS_LOST (or another code)."""
        with self.batch():
            for function in POLLED:
                self.error(function, gpu, code)

    def find(self, gpu: int) -> None:
        """Undo `lose`."""
        with self.batch():
            for function in POLLED:
                self.error(function, gpu, 0)

    def processes(
        self, gpu: int, processes: Sequence[tuple[int, int | None] | tuple[int, int | None, int, int]]
    ) -> None:
        """Script the compute processes: (pid, bytes) or (pid, bytes, GPU instance, compute instance)."""
        self._processes[gpu] = [" ".join("-" if part is None else str(part) for part in one) for one in processes]
        self._write()

    def mig(
        self, gpu: int, devices: Sequence[tuple[int, int, str, int, int, str]], gpm: Sequence[int] = (50, 25, 20, 30)
    ):
        """Turn MIG on: (GPU instance, compute instance, UUID, bytes, bytes used, profile) each; empty turns it off."""
        self._mig[gpu] = [
            f"{index} {gi} {ci} {uuid} {total} {used} {profile} {' '.join(map(str, gpm))}"
            for index, (gi, ci, uuid, total, used, profile) in enumerate(devices)
        ]
        self.set(gpu, "mig", int(bool(devices)))

    def samples(self, gpu: int, kind: int, samples: Sequence[tuple[int, int]]) -> None:
        """Replace the endless sample buffer by (microseconds, value) pairs; empty brings it back."""
        self._samples[gpu, kind] = list(samples)
        self._write()

    def xid(self, gpu: int, code: int) -> None:
        """Deliver one XID event."""
        self._sequence += 1
        self._xids = [*self._xids[-_XIDS_KEPT + 1 :], f"{self._sequence} {gpu} {code}"]
        self._write()

    def reload_driver(self) -> None:
        """Answer UNINITIALIZED until NVML is initialised again; counters start from zero."""
        self._generation += 1
        self._write()

    def _behave(self, what: str, function: str, gpu: int | str, amount: int) -> None:
        if amount:
            self._behaviour[what, function, str(gpu)] = amount
        else:
            self._behaviour.pop((what, function, str(gpu)), None)
        self._write()

    def _lines(self) -> Iterator[str]:
        yield f"gpus {self._gpus}"
        yield f"generation {self._generation}"
        for key, text in self._system.items():
            yield f"set {key} {text}"
        for (gpu, key), text in self._values.items():
            yield f"gpu {gpu} {key} {text}"
        for (gpu, field, scope), text in sorted(self._fields.items(), key=lambda one: bool(one[0][2])):  # last wins
            yield f"field {gpu} {field} {text} {scope}"
        for (what, function, gpu), amount in self._behaviour.items():
            yield f"{what} {function} {gpu} {amount}"
        for gpu_index, processes in self._processes.items():
            yield from (f"process {gpu_index} {process}" for process in processes)
        for gpu_index, devices in self._mig.items():
            yield from (f"mig {gpu_index} {device}" for device in devices)
        for (gpu_index, kind), samples in self._samples.items():
            yield from (f"sample {gpu_index} {kind} {timestamp} {value}" for timestamp, value in samples)
        yield from (f"xid {xid}" for xid in self._xids)

    def _write(self) -> None:
        if self._batched:
            return
        handle, fresh = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write("\n".join(self._lines()) + "\n")
        Path(fresh).replace(self.path)


# Functions of one GPU that a collector calls; a lost GPU answers all of them with the same code.
POLLED = (
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetSamples",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetComputeRunningProcesses_v3",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a state file of GPUs under load for the fake NVML library.")
    parser.add_argument("path")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--processes", action="store_true", help="one compute process per GPU")
    options = parser.parse_args()
    state = FakeNvml(options.path, options.gpus)
    if options.processes:
        with state.batch():
            for gpu in range(options.gpus):
                state.processes(gpu, [(1000 + gpu, 70_000_000_000)])


if __name__ == "__main__":
    main()

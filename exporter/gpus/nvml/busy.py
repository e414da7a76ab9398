"""Busy time of one GPU, integrated from the driver's own utilisation samples."""

import ctypes
import struct
from collections.abc import Callable, Iterable
from typing import Final

from ...pages.samples import Sample
from . import codes
from .fields import union_value

FAMILY: Final = "nvidia_gpu_busy_seconds_total"
_GPU_UTILIZATION = 1  # NVML_GPU_UTILIZATION_SAMPLES, per cent
_MICROSECONDS = 1_000_000
_LONGEST_STEP = 1_000_000  # the driver samples six times a second; what lies longer between two samples is unknown
_QUIET_CYCLES = 30  # then start over: the driver's clock may have been set back behind the last sample
_LEAST_CAPACITY = 256
_SAMPLE: Final = struct.Struct("<QQ")


class BusyTime:
    """Sum over consecutive samples i of value_i / 100 * min(t_i - t_(i-1), 1 s).

    A sample stands for the time since the one before it. The first samples only say where to begin.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.last_seen = 0  # microseconds, the driver's clock

    def add(self, samples: Iterable[tuple[int, float]]) -> None:
        """Add (timestamp in microseconds, per cent) pairs."""
        ordered = sorted(samples)
        if not self.last_seen:
            self.last_seen = ordered[-1][0] if ordered else 0
            return
        for timestamp, percent in ordered:
            step = timestamp - self.last_seen
            if step > 0:  # else seen already, or padding with timestamp 0
                self.seconds += percent / 100 * min(step, _LONGEST_STEP) / _MICROSECONDS
                self.last_seen = timestamp

    def restart(self) -> None:
        """Forget where the last sample was, not the sum."""
        self.last_seen = 0


class BusyReader:
    """Asks the driver for the samples since the last cycle, with one buffer for all cycles."""

    def __init__(self, function: Callable[..., int], handle: object, busy: BusyTime) -> None:
        self._function = function
        self._handle = handle
        self._busy = busy
        self._quiet = 0
        self._last = ctypes.c_ulonglong()
        self._kind = ctypes.c_uint()
        self._count = ctypes.c_uint()
        self._type = ctypes.c_uint(_GPU_UTILIZATION)
        self._pointers = (ctypes.byref(self._kind), ctypes.byref(self._count))
        self._capacity = 0
        self._buffer = (ctypes.c_uint64 * 0)()

    def __call__(self, samples: list[Sample]) -> int:
        """Append the sample and return NVML's code; NOT_FOUND, which means nothing new, is success."""
        if not self._capacity and (code := self._allocate()):
            return self._done(samples, code)
        self._last.value = self._busy.last_seen
        self._count.value = self._capacity
        code = self._function(self._handle, self._type, self._last, *self._pointers, self._buffer)
        if code == codes.SUCCESS:
            self._quiet = 0
            kind = self._kind.value
            end = min(self._count.value, self._capacity) * _SAMPLE.size
            found = _SAMPLE.iter_unpack(memoryview(self._buffer).cast("B")[:end])
            self._busy.add([(timestamp, union_value(kind, raw)) for timestamp, raw in found])
        return self._done(samples, code)

    def _allocate(self) -> int:
        """Ask how many samples the driver keeps, so that one call always brings the newest, too."""
        self._last.value = 0
        code = self._function(self._handle, self._type, self._last, *self._pointers, None)
        if code == codes.SUCCESS:
            self._capacity = max(_LEAST_CAPACITY, 2 * self._count.value)
            self._buffer = (ctypes.c_uint64 * (2 * self._capacity))()
        return code

    def _done(self, samples: list[Sample], code: int) -> int:
        if code == codes.NOT_FOUND:
            self._quiet += 1
            if self._quiet >= _QUIET_CYCLES:
                self._quiet = 0
                self._busy.restart()
            code = codes.SUCCESS
        if code == codes.SUCCESS:
            samples.append(Sample(FAMILY, "", round(self._busy.seconds, 6)))
        return code

"""Compute processes of a GPU or a MIG device."""

import ctypes
import struct
from typing import Final

from ..types import GpuProcess
from . import codes
from .library import NvmlLibrary

_FIRST_CAPACITY = 32
_MOST = 4096
_NOT_AVAILABLE = 2**64 - 1  # the driver does not say how many bytes
_NAMES: Final = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")
_PROCESS: Final = struct.Struct("<I4xQ8x")  # nvmlProcessInfo_v2_t: pid, bytes, GPU instance, compute instance


def _has_wide_processes(library: NvmlLibrary) -> bool:
    """Return whether version 3 has 8 bytes more per process here, which would shift every entry and overrun the buffer.

    Drivers 535.43 to 535.86 added the protected memory of confidential computing without a new version number; later
    ones moved it to nvmlDeviceGetRunningProcessDetailList (nvitop, pull request 79).
    """
    return (
        library.function("nvmlDeviceGetConfComputeMemSizeInfo") is not None
        and library.function("nvmlDeviceGetRunningProcessDetailList") is None
    )


class ProcessList:
    """Lists processes into one buffer that grows when it has to."""

    def __init__(self, library: NvmlLibrary) -> None:
        # version 2 has the same struct and is all that older drivers have
        self._function = library.function(*(_NAMES[1:] if _has_wide_processes(library) else _NAMES))
        self._count = ctypes.c_uint()
        self._argument = ctypes.byref(self._count)
        self._allocate(_FIRST_CAPACITY)

    def read(self, handle: object, mig_uuid: str = "") -> tuple[int, list[GpuProcess]]:
        """Return NVML's code and the processes."""
        if self._function is None:
            return codes.FUNCTION_NOT_FOUND, []
        while True:
            self._count.value = self._capacity
            code = self._function(handle, self._argument, self._buffer)
            if code != codes.INSUFFICIENT_SIZE or self._capacity >= _MOST:
                break
            self._allocate(min(_MOST, max(2 * self._count.value, 2 * self._capacity)))
        if code:
            return code, []
        end = min(self._count.value, self._capacity) * _PROCESS.size
        return code, [
            GpuProcess(pid, None if used == _NOT_AVAILABLE else used, mig_uuid)
            for pid, used in _PROCESS.iter_unpack(memoryview(self._buffer).cast("B")[:end])
        ]

    def _allocate(self, capacity: int) -> None:
        self._capacity = capacity
        self._buffer = (ctypes.c_uint64 * (capacity * _PROCESS.size // 8))()

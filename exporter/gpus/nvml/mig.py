"""The MIG devices of one GPU."""

import ctypes
from typing import Final, NamedTuple

from ...pages.samples import Sample, label_pairs
from . import codes
from .library import NvmlLibrary

_UUID_BYTES = 96
_NAME_BYTES = 96
_MOST = 64


class MigDevice(NamedTuple):
    """One MIG device; profile such as 1g.10gb."""

    handle: ctypes.c_void_p
    uuid: str
    gpu_instance: int
    compute_instance: int
    profile: str

    @property
    def labels(self) -> str:
        """Own label of the families that are per MIG device."""
        return label_pairs(mig_uuid=self.uuid)

    @property
    def info(self) -> Sample:
        """The constant that names the device."""
        return Sample(
            "nvidia_gpu_mig_info",
            label_pairs(
                mig_uuid=self.uuid,
                gpu_instance=str(self.gpu_instance),
                compute_instance=str(self.compute_instance),
                profile=self.profile,
            ),
            1,
        )


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64))


MODE_UNKNOWN: Final = ""
MODE_ENABLED: Final = "enabled"
MODE_DISABLED: Final = "disabled"


class MigLayout:
    """Asks for the mode and the devices; both can change while we run."""

    def __init__(self, library: NvmlLibrary, handle: object) -> None:
        self._handle = handle
        self._mode = library.function("nvmlDeviceGetMigMode")
        self._count = library.function("nvmlDeviceGetMaxMigDeviceCount")
        self._by_index = library.function("nvmlDeviceGetMigDeviceHandleByIndex")
        self._uuid = library.function("nvmlDeviceGetUUID")
        self._name = library.function("nvmlDeviceGetName")
        self._gpu_instance = library.function("nvmlDeviceGetGpuInstanceId")
        self._compute_instance = library.function("nvmlDeviceGetComputeInstanceId")
        self._memory = library.function("nvmlDeviceGetMemoryInfo")

    def mode(self) -> tuple[int, str]:
        """Return NVML's code and the mode that is in force."""
        if self._mode is None:
            return codes.FUNCTION_NOT_FOUND, MODE_UNKNOWN
        current, pending = ctypes.c_uint(), ctypes.c_uint()
        code = self._mode(self._handle, ctypes.byref(current), ctypes.byref(pending))
        return code, MODE_UNKNOWN if code else MODE_ENABLED if current.value else MODE_DISABLED

    def devices(self) -> tuple[MigDevice, ...]:
        """Return the devices that exist now; indexes may have holes."""
        if self._count is None or self._by_index is None:
            return ()
        count = ctypes.c_uint()
        if self._count(self._handle, ctypes.byref(count)):
            return ()
        found = []
        for index in range(min(count.value, _MOST)):
            handle = ctypes.c_void_p()
            if self._by_index(self._handle, ctypes.c_uint(index), ctypes.byref(handle)) == codes.SUCCESS:
                device = self._describe(handle)
                if device is not None:
                    found.append(device)
        return tuple(found)

    def memory(self, device: MigDevice, samples: list[Sample]) -> int:
        """Append the memory of one device and return NVML's code."""
        if self._memory is None:
            return codes.FUNCTION_NOT_FOUND
        out = _Memory()
        code = self._memory(device.handle, ctypes.byref(out))
        if not code:
            samples.append(Sample("nvidia_gpu_mig_memory_total_bytes", device.labels, out.total))
            samples.append(Sample("nvidia_gpu_mig_memory_used_bytes", device.labels, out.used))
        return code

    def _describe(self, handle: ctypes.c_void_p) -> MigDevice | None:
        if not (self._uuid and self._gpu_instance and self._compute_instance):
            return None
        uuid = ctypes.create_string_buffer(_UUID_BYTES)
        gpu_instance, compute_instance = ctypes.c_uint(), ctypes.c_uint()
        if (
            self._uuid(handle, uuid, ctypes.c_uint(_UUID_BYTES))
            or self._gpu_instance(handle, ctypes.byref(gpu_instance))
            or self._compute_instance(handle, ctypes.byref(compute_instance))
        ):
            return None
        name = ctypes.create_string_buffer(_NAME_BYTES)
        profile = ""
        if self._name and not self._name(handle, name, ctypes.c_uint(_NAME_BYTES)):
            # "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
            profile = name.value.decode(errors="replace").rpartition("MIG ")[2]
        text = uuid.value.decode(errors="replace")
        return MigDevice(handle, text, gpu_instance.value, compute_instance.value, profile)

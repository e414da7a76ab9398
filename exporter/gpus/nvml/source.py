"""NVML as a source of GPUs, over pynvml (the nvidia-ml-py distribution)."""

import ctypes
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Lock, Thread
from types import ModuleType
from typing import Any

from ....runtime.log_once import LogOnce
from ....vocabulary.reasons import DriverCode
from ...pages.samples import Sample
from ..types import GpuDevice, GpuError, GpuProcess, XidEvent
from . import codes
from .busy import BusyTime
from .device import Identity, NvmlDevice
from .library import NvmlLibrary

_XID_EVENT = 0x8
_IDENTIFY_SECONDS = 5.0
_MOST_EVENTS = 64  # per wait; the rest comes with the next one
_log = logging.getLogger("vllm_vitals")


class _EventData(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_void_p),
        ("kind", ctypes.c_ulonglong),
        ("data", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _Events:
    """The event set of one opening."""

    def __init__(self, library: NvmlLibrary) -> None:
        self.set: Any = None
        self.uuids: dict[int | None, str] = {}
        self.wait = library.function("nvmlEventSetWait_v2")
        self.data = _EventData()


class UnreadableGpu:
    """Stands for a GPU that NVML counts but that could not be asked who it is, so that it is not missed silently."""

    uuid = ""
    name = ""
    pci_bus_id = ""
    reports_xid = False

    def __init__(self, index: int, reason: DriverCode, pending: Thread | None = None) -> None:
        self.index = index
        self._reason: DriverCode = reason
        self._pending = pending

    def read(self, slow: bool) -> Sequence[Sample]:  # noqa: ARG002 (the protocol's signature)
        """Raise why; "starting" as soon as the GPU answers, which asks for NVML to be opened again."""
        if self._pending is not None and not self._pending.is_alive():
            raise GpuError("starting")
        raise GpuError(self._reason)

    def processes(self) -> Sequence[GpuProcess]:
        """Return none."""
        return ()


class NvmlSource:
    """Opens NVML once for all GPUs."""

    def __init__(self) -> None:
        self._off: frozenset[str] = frozenset()
        self._busy: dict[str, BusyTime] = {}
        self._said = LogOnce()
        self._versions: dict[str, str] = {}
        self._devices: list[NvmlDevice] = []
        self._identifying: dict[int, Thread] = {}
        self._events: _Events | None = None
        self._events_lock = Lock()
        self._nvml: Any = None

    def switch_off(self, groups: frozenset[str]) -> None:
        """Make no driver call for these groups (groups.FAMILY_GROUPS) from the next opening on."""
        self._off = groups

    def open(self) -> Sequence[GpuDevice]:
        """Return the GPUs in index order. Raises GpuError."""
        nvml = self._nvml = _pynvml()
        try:
            nvml.nvmlInit()
            try:
                return self._open(nvml)
            except BaseException:
                self._shutdown()
                raise
        except nvml.NVMLError as error:
            raise GpuError(codes.OPEN_REASONS.get(error.value, "failed"), f"NVML: {error}") from error
        except nvml.NVMLLibraryMismatchError as error:
            raise GpuError("version_mismatch", f"NVML: {error}") from error

    def close(self) -> None:
        """Free what was allocated and shut NVML down."""
        for device in self._devices:
            device.close()
        self._devices = []
        # a wait that hangs keeps its event set: leaked rather than pulled away under it
        if self._events_lock.acquire(timeout=1.0):
            events, self._events = self._events, None
            self._events_lock.release()
            if events is not None and events.set is not None:
                freed, events.set = events.set, None  # a GPU that is identified late must not register with it
                self._quietly(self._nvml.nvmlEventSetFree, freed)
        else:
            self._events = None
        self._shutdown()

    def versions(self) -> Mapping[str, str]:
        """Return driver_version, nvml_version and cuda_version; empty where the driver does not say."""
        return dict(self._versions)

    def events(self, timeout: float) -> Sequence[XidEvent]:
        """Wait at most `timeout` seconds for XID events. Raises GpuError."""
        with self._events_lock:
            events = self._events
            if events is None or events.set is None or events.wait is None:
                return ()
            found: list[XidEvent] = []
            milliseconds = ctypes.c_uint(max(1, int(timeout * 1000)))
            while len(found) < _MOST_EVENTS:
                code = events.wait(events.set, ctypes.byref(events.data), milliseconds)
                if code == codes.SUCCESS:
                    uuid = events.uuids.get(events.data.device)
                    if events.data.kind == _XID_EVENT and uuid is not None:
                        found.append(XidEvent(uuid, events.data.data, time.time()))
                    milliseconds = ctypes.c_uint(0)  # take what else is there, without waiting again
                    continue
                # a lost GPU is its own thread's business; the set goes on for the others
                if code in codes.FATAL and codes.FATAL[code] != "lost" and not found:
                    raise GpuError(codes.FATAL[code], "XID events")
                break
            return found

    # --- Opening -----------------------------------------------------------------------------------------------------

    def _open(self, nvml: Any) -> Sequence[GpuDevice]:
        library = NvmlLibrary(nvml.nvmlLib)
        count = nvml.nvmlDeviceGetCount()
        if not count:
            raise GpuError("no_gpus", "NVML counts no GPU")
        self._versions = {
            "driver_version": self._text(nvml.nvmlSystemGetDriverVersion),
            "nvml_version": self._text(nvml.nvmlSystemGetNVMLVersion),
            "cuda_version": self._cuda_version(nvml),
        }
        events = _Events(library)
        if "xid" not in self._off:
            events.set = self._quietly(nvml.nvmlEventSetCreate)
        devices = self._identify_all(library, count, events)
        self._devices = [device for device in devices if isinstance(device, NvmlDevice)]
        self._events = events
        return devices

    def _identify_all(self, library: NvmlLibrary, count: int, events: _Events) -> list[GpuDevice]:
        """Ask all GPUs side by side who they are: one that hangs must not keep the others from being opened."""
        found: dict[int, GpuDevice] = {}
        threads = {}
        for index in range(count):
            stuck = self._identifying.get(index)
            if stuck is not None and stuck.is_alive():
                continue  # since an earlier opening
            threads[index] = Thread(
                target=self._identify_into,
                args=(found, library, index, events),
                name=f"gpu-{index}-identify",
                daemon=True,
            )
            threads[index].start()
        deadline = time.monotonic() + _IDENTIFY_SECONDS
        for thread in threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._identifying |= threads
        devices = dict(found)  # a thread that is late must not change what we hand out
        return [devices.get(index) or UnreadableGpu(index, "hang", self._identifying[index]) for index in range(count)]

    def _identify_into(self, found: dict[int, GpuDevice], library: NvmlLibrary, index: int, events: _Events) -> None:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _decoded(nvml.nvmlDeviceGetUUID(handle))
            identity = Identity(
                index=index,
                uuid=uuid,
                name=self._text(nvml.nvmlDeviceGetName, handle),
                pci_bus_id=self._pci_bus_id(handle),
                serial=self._text(nvml.nvmlDeviceGetSerial, handle),
                vbios=self._text(nvml.nvmlDeviceGetVbiosVersion, handle),
                compute_capability=self._quietly(nvml.nvmlDeviceGetCudaComputeCapability, handle) or (0, 0),
                reports_xid=self._register(handle, uuid, events),
            )
            busy = self._busy.setdefault(uuid, BusyTime())
            found[index] = NvmlDevice(library, handle, identity, busy, self._off, self._said)
        except nvml.NVMLError as error:
            found[index] = UnreadableGpu(index, codes.OPEN_REASONS.get(error.value, "failed"))
        except Exception:
            _log.exception("GPU %d cannot be identified", index)
            found[index] = UnreadableGpu(index, "failed")

    def _register(self, handle: Any, uuid: str, events: _Events) -> bool:
        nvml = self._nvml
        if events.set is None or events.wait is None:
            return False
        try:
            if not nvml.nvmlDeviceGetSupportedEventTypes(handle) & _XID_EVENT:
                return False
            nvml.nvmlDeviceRegisterEvents(handle, _XID_EVENT, events.set)
        except nvml.NVMLError as error:
            _log.info("no XID events of GPU %s: %s", uuid, error)
            return False
        events.uuids[ctypes.cast(handle, ctypes.c_void_p).value] = uuid
        return True

    # --- Answers that may be missing ---------------------------------------------------------------------------------

    def _quietly(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Return what the call answers, None when it does not."""
        try:
            return function(*arguments)
        except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError):
            return None

    def _text(self, function: Callable[..., Any], *arguments: object) -> str:
        return _decoded(self._quietly(function, *arguments))

    def _cuda_version(self, nvml: Any) -> str:
        # the unversioned symbol: _v2 loads libcuda, which a container for monitoring does not have
        number = self._quietly(nvml.nvmlSystemGetCudaDriverVersion)
        return f"{number // 1000}.{number % 1000 // 10}" if number else ""

    def _pci_bus_id(self, handle: Any) -> str:
        info = self._quietly(self._nvml.nvmlDeviceGetPciInfo, handle)
        return _decoded(info.busId) if info is not None else ""

    def _shutdown(self) -> None:
        if self._nvml is not None:
            self._quietly(self._nvml.nvmlShutdown)


def _pynvml() -> ModuleType:
    try:
        import pynvml  # noqa: PLC0415 (some MiB that the demo need not load)
    except ImportError as error:
        raise GpuError("no_library", "the Python package nvidia-ml-py is missing") from error
    module: ModuleType = pynvml
    return module


def _decoded(text: object) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text or "")

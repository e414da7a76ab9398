"""One GPU behind NVML: which calls it supports, and a cycle over those."""

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Final

from ....runtime.log_once import LogOnce
from ...pages.samples import Sample, label_pairs
from ..types import GpuError, GpuProcess
from . import codes
from .busy import BusyTime
from .fields import FIELDS, FieldReader
from .gpm import GpmMetrics, GpmReader
from .library import NvmlLibrary
from .mig import MODE_ENABLED, MODE_UNKNOWN, MigDevice, MigLayout
from .processes import ProcessList
from .readers import ROWS, Reader, Target

_RETRY_SECONDS = 3600.0  # for calls that are not supported: a driver or a mode may have changed
_RETRY_SOON_SECONDS = 60.0  # when finding out failed
_MOST_LINKS = 36  # NVML_NVLINK_MAX_LINKS
_log = logging.getLogger("vllm_vitals")


@dataclass(frozen=True, slots=True)
class Identity:
    """What NVML says about a GPU once; empty where it does not say."""

    index: int
    uuid: str
    name: str
    pci_bus_id: str
    serial: str
    vbios: str
    compute_capability: tuple[int, int]
    reports_xid: bool


class _Call:
    """One call of one GPU, with the older ways to make it and its rest when none is supported."""

    __slots__ = ("code", "name", "place", "read", "slow", "ways")

    def __init__(self, name: str, ways: Sequence[Reader | None], *, slow: bool) -> None:
        self.name = name
        self.slow = slow
        self.ways: Final = ways
        self.wake()

    def wake(self) -> None:
        """Begin with the best way again."""
        self.place = -1
        self.code = codes.FUNCTION_NOT_FOUND
        self.next_way(self.code)

    def next_way(self, code: int) -> None:
        """Go on to the next way that this library has; `read` is None when there is none."""
        self.code = code
        self.read: Reader | None = None
        while self.read is None and self.place + 1 < len(self.ways):
            self.place += 1
            self.read = self.ways[self.place]


class NvmlDevice:
    """A GPU of NvmlSource. Only one thread reads it.

    Args:
        library: the loaded library.
        handle: NVML's device handle.
        identity: what was asked while NVML was opened.
        busy: the sum that goes on when NVML is opened again.
        off: names of family groups that are switched off.
        said: which calls were reported as forbidden, shared by all GPUs: one line each.
    """

    def __init__(
        self,
        library: NvmlLibrary,
        handle: object,
        identity: Identity,
        busy: BusyTime,
        off: frozenset[str],
        said: LogOnce,
    ) -> None:
        self.index = identity.index
        self.uuid = identity.uuid
        self.name = identity.name
        self.pci_bus_id = identity.pci_bus_id
        self.reports_xid = identity.reports_xid
        self._library = library
        self._handle = handle
        self._identity = identity
        self._busy = busy
        self._off = off
        self._said = said
        self._failures: dict[int, int] = {}
        self._retry_at = 0.0
        self._reading = False
        self._calls: list[_Call] = []
        self._fast: list[_Call] = []
        self._fields: dict[bool, FieldReader] = {}  # by slow
        self._processes = ProcessList(library)
        self._processes_retry_at = 0.0
        self._gpm: GpmMetrics | None = None
        self._gpm_readers: list[GpmReader] = []
        self._gpm_layout: dict[int | None, tuple[str, ...]] = {}
        self._layout = MigLayout(library, handle)
        self._mig_mode = MODE_UNKNOWN
        self._mig_retry_at = 0.0
        self._mig: tuple[MigDevice, ...] = ()

    def read(self, slow: bool) -> list[Sample]:
        """Return one cycle's samples. Raises GpuError."""
        self._reading = True
        try:
            return self._read(slow=slow)
        finally:
            self._reading = False

    def processes(self) -> Sequence[GpuProcess]:
        """Return the compute processes, with the MIG device they run on. Raises GpuError."""
        now = monotonic()
        if "processes" in self._off or now < self._processes_retry_at:
            raise GpuError("unsupported", "process list")
        # on a MIG GPU the parent lists everything only to the privileged, so each device is asked
        asked: list[tuple[object, str]] = [(device.handle, device.uuid) for device in self._mig]
        found: list[GpuProcess] = []
        for handle, mig_uuid in asked or [(self._handle, "")]:
            code, processes = self._processes.read(handle, mig_uuid)
            found += processes
            if code in codes.FATAL:
                raise GpuError(codes.FATAL[code], "process list")
            if code in codes.UNSUPPORTED or code == codes.NO_PERMISSION:
                self._processes_retry_at = now + _RETRY_SECONDS
                self._say_forbidden("process list", code)
                raise GpuError("no_permission" if code == codes.NO_PERMISSION else "unsupported", "process list")
            if code:
                self._count(code)
                raise GpuError("failed", f"process list: NVML code {code}")
        return found

    def close(self) -> None:
        """Free what the driver allocated, unless a call hangs that may still use it."""
        if not self._reading:
            for reader in self._gpm_readers:
                reader.close()

    # --- A cycle -----------------------------------------------------------------------------------------------------

    def _read(self, *, slow: bool) -> list[Sample]:
        now = monotonic()
        samples: list[Sample] = []
        if slow:
            self._read_mode(samples)
        if now >= self._retry_at:
            self._retry_at = now + (_RETRY_SECONDS if self._probe() else _RETRY_SOON_SECONDS)
        good = 0
        for call in self._calls if slow else self._fast:
            while call.read is not None:
                code = call.read(samples)
                if not code or code == codes.NOT_FOUND:
                    good += 1
                    break
                if not self._rest(call, code):
                    break
        if slow:
            samples.append(self._info())
            samples.append(Sample("nvidia_gpu_unsupported_calls", "", self._unsupported()))
        if not good and self._calls:
            forbidden = any(call.code == codes.NO_PERMISSION for call in self._calls)
            raise GpuError("no_permission" if forbidden else "failed", "no call was answered")
        for code, count in self._failures.items():
            samples.append(Sample("nvidia_gpu_call_failures_total", f'code="{code}"', count))
        return samples

    def _rest(self, call: _Call, code: int) -> bool:
        """Decide after a bad answer; return whether another way may be tried in this cycle. Raises GpuError."""
        if code in codes.FATAL:
            raise GpuError(codes.FATAL[code], call.name)
        # a struct version that a driver does not know may be an invalid argument to it
        older = code == codes.INVALID_ARGUMENT and any(call.ways[call.place + 1 :])
        if code in codes.UNSUPPORTED or code == codes.NO_PERMISSION or older:
            call.next_way(code)
            self._say_forbidden(call.name, code)
            if call.read is None:
                self._fast = [one for one in self._fast if one is not call]
            return True
        self._count(code)
        return False

    def _count(self, code: int) -> None:
        self._failures[code] = self._failures.get(code, 0) + 1

    def _say_forbidden(self, name: str, code: int) -> None:
        if code == codes.NO_PERMISSION and self._said.is_news(name):
            _log.warning("NVML does not permit this exporter to read: %s", name)

    def _unsupported(self) -> int:
        return sum(call.read is None for call in self._calls) + sum(
            fields.unsupported for fields in self._fields.values()
        )

    def _info(self) -> Sample:
        identity = self._identity
        return Sample(
            "nvidia_gpu_info",
            label_pairs(
                name=identity.name,
                pci_bus_id=identity.pci_bus_id,
                serial=identity.serial,
                compute_capability=".".join(map(str, identity.compute_capability))
                if any(identity.compute_capability)
                else "",
                vbios=identity.vbios,
                mig_mode=self._mig_mode,
            ),
            1,
        )

    # --- What is supported -------------------------------------------------------------------------------------------

    def _probe(self) -> bool:
        """Find out what this GPU and driver support now; return whether that could be found out. Raises GpuError."""
        links = self._find_links()
        calls: list[_Call] = []
        known = self._probe_fields(links, calls)
        brought = {family for fields in self._fields.values() for family in fields.families()}
        averages = self._identity.compute_capability >= (8, 6)  # Ampere and newer except GA100, which is 8.0
        target = Target(self._library, self._handle, self._busy, links, averages)
        calls += [
            _Call(row.name, [make(target) for make in row.makers], slow=row.slow)
            for row in ROWS
            if row.group not in self._off and row.unless not in brought
        ]
        calls += [_Call("MIG memory", (partial(self._layout.memory, device),), slow=True) for device in self._mig]
        calls += self._probe_gpm()
        self._calls = calls
        self._fast = [call for call in calls if not call.slow and call.read is not None]
        return known

    def _probe_fields(self, links: Sequence[int], calls: list[_Call]) -> bool:
        function = self._library.function("nvmlDeviceGetFieldValues")
        known = True
        for slow in (False, True):
            rows = [field for field in FIELDS if field.slow is slow and field.group not in self._off]
            if not rows:
                continue
            code = codes.FUNCTION_NOT_FOUND
            if function is not None:
                fields = self._fields.setdefault(slow, FieldReader(function, self._handle, rows, self._failures))
                code = fields.probe(links)
                if not code:
                    calls.append(_Call("field values", (fields.read,), slow=slow))
                    continue
            if code in codes.FATAL:
                raise GpuError(codes.FATAL[code], "field values")
            calls.append(_Call("field values", (), slow=slow))
            self._say_forbidden("field values", code)
            if code not in codes.UNSUPPORTED and code != codes.NO_PERMISSION:
                self._count(code)
                known = False
        return known

    def _find_links(self) -> tuple[int, ...]:
        """Return the NVLink links that the GPU has, active or not; a board may leave out some in between."""
        function = self._library.function("nvmlDeviceGetNvLinkState")
        if function is None or "nvlink" in self._off:
            return ()
        out = ctypes.c_uint()
        found = []
        for link in range(_MOST_LINKS):
            code = function(self._handle, ctypes.c_uint(link), ctypes.byref(out))
            if code in codes.FATAL:
                raise GpuError(codes.FATAL[code], "NVLink state")
            if not code:
                found.append(link)
        return tuple(found)

    # --- MIG and GPM -------------------------------------------------------------------------------------------------

    def _read_mode(self, samples: list[Sample]) -> None:
        now = monotonic()
        if "mig" in self._off or now < self._mig_retry_at:
            return
        code, mode = self._layout.mode()
        if code in codes.FATAL:
            raise GpuError(codes.FATAL[code], "MIG mode")
        if code in codes.UNSUPPORTED:
            self._mig_retry_at = now + _RETRY_SECONDS
        devices = self._layout.devices() if mode == MODE_ENABLED else ()
        if mode != self._mig_mode or [one.uuid for one in devices] != [one.uuid for one in self._mig]:
            self._retry_at = self._processes_retry_at = 0.0  # MIG takes many calls away and brings them back
        self._mig_mode, self._mig = mode, devices
        samples += [device.info for device in devices]

    def _probe_gpm(self) -> list[_Call]:
        if "gpm" in self._off:
            return []
        if self._gpm is None:
            self._gpm = GpmMetrics(self._library)
        code = self._gpm.supported(self._handle)
        if code in codes.FATAL:
            raise GpuError(codes.FATAL[code], "GPM")
        if code:
            return [_Call("GPM", (), slow=False)]
        layout: dict[int | None, tuple[str, ...]] = {None: ("",)}
        if self._mig_mode == MODE_ENABLED:
            layout = {}
            for device in self._mig:  # compute instances of one GPU instance share its counters
                layout[device.gpu_instance] = (*layout.get(device.gpu_instance, ()), device.labels)
        if layout != self._gpm_layout:
            for reader in self._gpm_readers:
                reader.close()
            self._gpm_layout = layout
            self._gpm_readers = [GpmReader(self._gpm, self._handle, *one) for one in layout.items()]
        return [_Call("GPM", (reader,), slow=False) for reader in self._gpm_readers]

"""What a source of GPUs, the monitor and their readers hand to each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ..pages.samples import Sample

GPU_REASONS: Final = (
    "starting",
    "lost",
    "hang",
    "reset_required",
    "no_permission",
    "no_driver",
    "driver_reload",
    "version_mismatch",
    "failed",
)
SOURCE_REASONS: Final = (*GPU_REASONS, "no_library", "no_gpus")


class GpuError(Exception):
    """A GPU, or the whole source, cannot be read.

    Attributes:
        reason: one of GPU_REASONS or SOURCE_REASONS; it becomes a label value.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A compute process as the driver reports it; the PID may be of another PID namespace."""

    pid: int
    used_memory_bytes: int | None
    mig_uuid: str = ""


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """One GPU as the last cycle saw it.

    Attributes:
        taken_at: time.monotonic() of the last good cycle; 0.0 means never.
        reason: one of GPU_REASONS when not up, else empty.
        samples: what the cycle read, labels without gpu and uuid; empty when not up.
        values: value by (family, own labels), filled by GpuMonitor.snapshots; when not up only XID counters are left.
        processes: kept while the GPU is down, because its engines still belong to it.
    """

    index: int
    uuid: str
    name: str
    pci_bus_id: str
    taken_at: float
    up: bool
    reason: str
    samples: Sequence[Sample]
    values: Mapping[tuple[str, str], float]
    processes: tuple[GpuProcess, ...]
    mig_uuids: tuple[str, ...]


class XidEvent(NamedTuple):
    """One XID event; timestamp is Unix time in seconds."""

    uuid: str
    code: int
    timestamp: float


class GpuDevice(Protocol):
    """One GPU of a source; `reports_xid` tells whether it can report XID events."""

    index: int
    uuid: str
    name: str
    pci_bus_id: str
    reports_xid: bool

    def read(self, slow: bool) -> Sequence[Sample]:
        """Return the samples of the fast families, and with `slow` those of the slow ones, too.

        Labels are the family's own ones, without gpu and uuid. Raises GpuError.
        """
        ...

    def processes(self) -> Sequence[GpuProcess]:
        """Return the compute processes. Raises GpuError, also when the driver cannot list them."""
        ...


class GpuSource(Protocol):
    """Where GPUs come from: NVML, or a simulation."""

    def switch_off(self, groups: frozenset[str]) -> None:
        """Make no driver call for these of FAMILY_GROUPS, from the next opening on."""
        ...

    def open(self) -> Sequence[GpuDevice]:
        """Return the GPUs. Raises GpuError; finding none is an error, too."""
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Return driver_version, nvml_version and cuda_version of the open source."""
        ...

    def events(self, timeout: float) -> Sequence[XidEvent]:
        """Wait at most `timeout` seconds for XID events. Raises GpuError."""
        ...

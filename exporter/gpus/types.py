"""What a source of GPUs, the monitor and their readers hand to each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from ...vocabulary.reasons import DRIVER, GPU, DriverCode, GpuCode
from ..pages.samples import Sample
from .reading import GpuReading

GPU_REASONS: Final = tuple(GPU)
SOURCE_REASONS: Final = tuple(code for code in DRIVER if code != "off")


class GpuError(Exception):
    """A GPU, or the whole source, cannot be read.

    Attributes:
        reason: one of GPU_REASONS or SOURCE_REASONS, as they become label values; `unsupported`: of a call that the GPU
            goes on without.
    """

    def __init__(self, reason: DriverCode | Literal["unsupported"], detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: DriverCode | Literal["unsupported"] = reason


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
        reading: the same as values, filled by GpuMonitor.snapshots; when not up only the XID counts are left.
        processes: kept while the GPU is down, because its engines still belong to it.
    """

    index: int
    uuid: str
    name: str
    pci_bus_id: str
    taken_at: float
    up: bool
    reason: GpuCode | Literal[""]
    samples: Sequence[Sample]
    reading: GpuReading
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

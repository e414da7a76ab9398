"""What health, history and the live page use of a GPU, as values; the sample lines are for the page of metrics."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from ...vocabulary.reasons import THROTTLE, ThrottleCode
from ..pages.samples import Sample, label_pairs


class XidCount(NamedTuple):
    """How often an XID code came, and the Unix time of its last event, None before the first."""

    code: int
    times: int
    last: float | None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One reading; None stands for what the GPU does not tell.

    Attributes:
        power_average_watts: over a second; power_instant_watts: now. A GPU may tell only one of them.
        power_limit_watts: the limit in force.
        recovery_action: what the driver asks for, see health.RECOVERY_ACTIONS.
        throttles: why the clocks are held down now.
        xids: by code; a critical one is there before its first event, others from then on. Kept while the GPU is down.
    """

    utilization_ratio: float | None = None
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    power_average_watts: float | None = None
    power_instant_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    temperature_celsius: float | None = None
    memory_temperature_celsius: float | None = None
    sm_active_ratio: float | None = None
    dram_active_ratio: float | None = None
    recovery_action: float | None = None
    row_remap_failure: float | None = None
    row_remap_pending: float | None = None
    throttles: tuple[ThrottleCode, ...] = ()
    xids: tuple[XidCount, ...] = ()

    @property
    def power_watts(self) -> float | None:
        """Board power, averaged where the GPU does that."""
        return self.power_instant_watts if self.power_average_watts is None else self.power_average_watts

    @property
    def memory_ratio(self) -> float | None:
        """Share of the memory in use."""
        used, total = self.memory_used_bytes, self.memory_total_bytes
        return used / total if used is not None and total else None


NOTHING: Final = GpuReading()

# Where each value stands among the samples. Labels are compared as the readers wrote them, never taken apart.
_FIELDS: Final[Mapping[tuple[str, str], str]] = {
    ("nvidia_gpu_utilization_ratio", ""): "utilization_ratio",
    ("nvidia_gpu_memory_used_bytes", ""): "memory_used_bytes",
    ("nvidia_gpu_memory_total_bytes", ""): "memory_total_bytes",
    ("nvidia_gpu_power_watts", label_pairs(kind="average")): "power_average_watts",
    ("nvidia_gpu_power_watts", label_pairs(kind="instant")): "power_instant_watts",
    ("nvidia_gpu_power_limit_watts", label_pairs(kind="enforced")): "power_limit_watts",
    ("nvidia_gpu_energy_joules_total", ""): "energy_joules",
    ("nvidia_gpu_temperature_celsius", label_pairs(sensor="gpu")): "temperature_celsius",
    ("nvidia_gpu_temperature_celsius", label_pairs(sensor="memory")): "memory_temperature_celsius",
    ("nvidia_gpu_sm_active_ratio", ""): "sm_active_ratio",
    ("nvidia_gpu_dram_active_ratio", ""): "dram_active_ratio",
    ("nvidia_gpu_recovery_action", ""): "recovery_action",
    ("nvidia_gpu_row_remap_failure", ""): "row_remap_failure",
    ("nvidia_gpu_row_remap_pending", ""): "row_remap_pending",
}
_THROTTLES: Final[Mapping[tuple[str, str], ThrottleCode]] = {
    ("nvidia_gpu_throttle_active", label_pairs(reason=code)): code for code in THROTTLE
}


def reading_of(samples: Iterable[Sample], xids: tuple[XidCount, ...] = ()) -> GpuReading:
    """Return what one cycle's samples of one GPU say."""
    values: dict[str, float] = {}
    throttles: list[ThrottleCode] = []
    for family, labels, value in samples:
        place = (family, labels)
        if (field := _FIELDS.get(place)) is not None:
            values[field] = value
        elif value and (code := _THROTTLES.get(place)) is not None:
            throttles.append(code)
    return GpuReading(**values, throttles=tuple(throttles), xids=xids)

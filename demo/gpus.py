"""Simulated H100s that follow the engines' load, offered as a GPU source to the exporter."""

import math
import uuid
from collections.abc import Mapping, Sequence
from random import Random
from threading import Condition
from typing import Final, NamedTuple

from ..exporter.gpus.types import GpuError, GpuProcess, XidEvent
from ..exporter.pages.samples import Sample, label_pairs
from .clock import Clock

NAME: Final = "NVIDIA H100 80GB HBM3 (simulated)"

_MEMORY_BYTES: Final = 85_520_809_984  # as a real H100 reports them
_RESERVED_BYTES: Final = 502_267_904
_BAR1_BYTES: Final = 137_438_953_472
_SM_HERTZ: Final = 1.98e9
_IDLE_HERTZ: Final = 345e6
_MEMORY_HERTZ: Final = 2.619e9

# Watts: board without work, a context that does nothing, a kernel that waits, all tensor cores, all memory bandwidth.
_IDLE_WATTS: Final = 72.0
_CONTEXT_WATTS: Final = 20.0
_ACTIVE_WATTS: Final = 130.0
_PREFILL_WATTS: Final = 465.0
_DECODE_WATTS: Final = 330.0
_LIMIT_WATTS: Final = 700.0
_CAP_WATTS: Final = 670.0  # above, the clocks are trimmed

_AMBIENT_CELSIUS: Final = 27.0
_CELSIUS_PER_WATT: Final = 0.052
_HEATING_CELSIUS: Final = 115.0  # where full load would end without cooling
_HELD_CELSIUS: Final = 90.0  # what the slowdown holds instead
_SLOWDOWN_CELSIUS: Final = 88.0
_RELEASE_CELSIUS: Final = 80.0
_SLOWED_SPEED: Final = 0.5
_LAG_SECONDS: Final = 9.0  # temperature
_AVERAGE_SECONDS: Final = 1.0  # utilisation and average power
_MEMORY_UTILIZATION_DECODE: Final = 0.62  # share of time with memory traffic; prefill has little
# What an H100's driver tells, as exporter/nvml_readers and nvml_fields name it; only the first two ever happen here.
_THROTTLE_ACTIVE: Final = (
    "sw_power_cap", "sw_thermal", "application_clocks", "hw_slowdown", "sync_boost", "hw_thermal", "hw_power_brake",
    "display_clocks", "board_limit", "reliability",
)  # fmt: skip
_THROTTLE_SECONDS: Final = (
    "sw_power_cap", "sw_thermal", "sync_boost", "board_limit", "low_utilization", "reliability", "hw_thermal",
    "hw_power_brake",
)  # fmt: skip
_SLOWDOWN_LIMIT_CELSIUS: Final = 87.0  # where T.limit is 0
_DRAIN_AND_RESET: Final = 4  # recovery action
_PCIE_BYTES_PER_SECOND: Final = (0.8e6, 2.5e6)  # tx, rx of a busy GPU: sampled tokens out, block tables in


class Load(NamedTuple):
    """What an engine asks of a GPU during one tick.

    Attributes:
        prefill: share of the tick in prompts.
        decode: share of the tick in decoding.
        link_bytes: bytes sent over NVLink, in the tick.
        memory_share: share of the memory that the engine holds.
        pace: speed of the slowest GPU of the engine; a faster one waits for it.
        hung: a kernel waits for a GPU that does not answer.
        pid: the process that holds the memory.
    """

    prefill: float = 0.0
    decode: float = 0.0
    link_bytes: float = 0.0
    memory_share: float = 0.0
    pace: float = 1.0
    hung: bool = False
    pid: int = 0


_NO_LOAD: Final = Load()


class SimulatedGpu:
    """One GPU; the exporter reads it, `SimulatedGpus` moves it, both under the same lock."""

    def __init__(self, index: int, identity: str, lock: Condition, random: Random) -> None:
        self.index = index
        self.lapse = 1.0  # fleet seconds in one of everybody's, who sees as many times the watts
        self.uuid = identity
        self.name = NAME
        self.pci_bus_id = f"00000000:{0x1A + index:02X}:00.0"
        self.reports_xid = True
        self.speed = 1.0
        self.heated = False
        self.lost = False
        self.remap_pending = False
        self.remapped_rows = 0
        self.uncorrected_errors = 0
        self._lock = lock
        self._random = random
        self._load = _NO_LOAD
        self._power = self._average_power = _IDLE_WATTS
        self._energy = 0.0
        self._celsius = _AMBIENT_CELSIUS + _CELSIUS_PER_WATT * _IDLE_WATTS
        self._utilization = 0.0
        self._busy_seconds = 0.0
        self._prefill = self._decode = 0.0  # averaged like the utilisation
        self._throttled = dict.fromkeys(_THROTTLE_ACTIVE, False)
        self._throttle_seconds = dict.fromkeys(_THROTTLE_SECONDS, 0.0)
        self._link_bytes = 0.0
        self._pcie_bytes = [0.0, 0.0]
        self._info = Sample(
            "nvidia_gpu_info",
            label_pairs(
                name=NAME,
                pci_bus_id=self.pci_bus_id,
                serial=f"simulated-{index}",
                compute_capability="9.0",
                vbios="simulated",
                mig_mode="disabled",
            ),
            1,
        )

    def move(self, load: Load, seconds: float) -> None:
        """Let a tick with this load pass; the caller holds the lock."""
        busy = 1.0 if load.hung else load.prefill + load.decode
        blend = 1.0 - math.exp(-seconds / _AVERAGE_SECONDS)
        self._load = load
        self._utilization += (busy - self._utilization) * blend
        working = min(1.0, load.pace / self.speed)
        self._prefill += (load.prefill * working - self._prefill) * blend
        self._decode += (load.decode * working - self._decode) * blend
        self._busy_seconds += busy * seconds / self.lapse  # never more than pass

        dynamic = _ACTIVE_WATTS * busy + working * (_PREFILL_WATTS * load.prefill + _DECODE_WATTS * load.decode)
        noise = 1.0 + self._random.uniform(-0.01, 0.01)
        # voltage follows the clock, so dynamic power falls faster than it
        power = (_IDLE_WATTS + (_CONTEXT_WATTS if load.pid else 0.0) + dynamic * self.speed**2) * noise
        capped = power > _CAP_WATTS
        self._power = min(power, _LIMIT_WATTS - 8.0)
        self._average_power += (self._power - self._average_power) * blend
        self._energy += self._power * seconds

        if self.heated:
            settled = _HELD_CELSIUS if self.speed < 1.0 else _HEATING_CELSIUS
        else:
            settled = _AMBIENT_CELSIUS + _CELSIUS_PER_WATT * self._average_power
        self._celsius += (settled - self._celsius) * (1.0 - math.exp(-seconds / _LAG_SECONDS))
        if self._celsius >= _SLOWDOWN_CELSIUS:
            self.speed = max(_SLOWED_SPEED, self.speed - 0.2 * seconds)
        elif self._celsius < _RELEASE_CELSIUS:
            self.speed = min(1.0, self.speed + 0.2 * seconds)

        self._throttled.update(sw_power_cap=capped, sw_thermal=self.speed < 1.0)
        for reason in ("sw_power_cap", "sw_thermal"):
            if self._throttled[reason]:
                self._throttle_seconds[reason] += seconds / self.lapse
        self._link_bytes += load.link_bytes
        for direction, rate in enumerate(_PCIE_BYTES_PER_SECOND):
            self._pcie_bytes[direction] += rate * busy * seconds

    def read(self, slow: bool) -> Sequence[Sample]:
        """Return the values of now; raises GpuError("lost") once the GPU is off the bus."""
        with self._lock:
            if self.lost:
                raise GpuError("lost")
            return [*self._fast(), *(self._slow() if slow else ())]

    def processes(self) -> Sequence[GpuProcess]:
        """Return the engine's process on this GPU; raises GpuError("lost") once the GPU is off the bus."""
        with self._lock:
            if self.lost:
                raise GpuError("lost")
            return [GpuProcess(self._load.pid, self._used_bytes())] if self._load.pid else []

    def _used_bytes(self) -> int:
        return int(self._load.memory_share * _MEMORY_BYTES)

    def _fast(self) -> list[Sample]:
        sm = _SM_HERTZ * self.speed * (0.95 if self._throttled["sw_power_cap"] else 1.0)
        clock = round((sm if self._load.pid else _IDLE_HERTZ) / 15e6) * 15e6  # clocks move in steps of 15 MHz
        used = self._used_bytes()
        occupancy = 0.42 * self._prefill + 0.23 * self._decode
        return [
            Sample("nvidia_gpu_utilization_ratio", "", round(min(self._utilization, 1.0), 2)),
            Sample("nvidia_gpu_busy_seconds_total", "", self._busy_seconds),
            Sample("nvidia_gpu_memory_utilization_ratio", "", round(self._memory_utilization(), 2)),
            Sample("nvidia_gpu_memory_total_bytes", "", _MEMORY_BYTES),
            Sample("nvidia_gpu_memory_used_bytes", "", used),
            Sample("nvidia_gpu_memory_free_bytes", "", _MEMORY_BYTES - _RESERVED_BYTES - used),
            Sample("nvidia_gpu_memory_reserved_bytes", "", _RESERVED_BYTES),
            Sample("nvidia_gpu_power_watts", 'kind="average"', round(self.lapse * self._average_power, 3)),
            Sample("nvidia_gpu_power_watts", 'kind="instant"', self.lapse * self._power),
            Sample("nvidia_gpu_energy_joules_total", "", self._energy),
            Sample("nvidia_gpu_temperature_celsius", 'sensor="gpu"', round(self._celsius)),
            Sample("nvidia_gpu_temperature_celsius", 'sensor="memory"', round(self._celsius * 0.93 + 2)),
            Sample("nvidia_gpu_temperature_margin_celsius", "", round(_SLOWDOWN_LIMIT_CELSIUS - self._celsius)),
            Sample("nvidia_gpu_clock_hertz", 'domain="graphics"', clock),
            Sample("nvidia_gpu_clock_hertz", 'domain="sm"', clock),
            Sample("nvidia_gpu_clock_hertz", 'domain="memory"', _MEMORY_HERTZ),
            Sample("nvidia_gpu_clock_hertz", 'domain="video"', clock),
            Sample("nvidia_gpu_performance_state", "", 0),
            *(_reason("nvidia_gpu_throttle_active", name, int(active)) for name, active in self._throttled.items()),
            *(_reason("nvidia_gpu_throttle_seconds_total", name, s) for name, s in self._throttle_seconds.items()),
            Sample("nvidia_gpu_sm_active_ratio", "", round(0.97 * self._prefill + 0.83 * self._decode, 4)),
            Sample("nvidia_gpu_sm_occupancy_ratio", "", round(occupancy, 4)),
            Sample("nvidia_gpu_tensor_active_ratio", "", round(0.62 * self._prefill + 0.09 * self._decode, 4)),
            Sample("nvidia_gpu_dram_active_ratio", "", round(0.27 * self._prefill + 0.74 * self._decode, 4)),
            Sample("nvidia_gpu_pcie_bytes_total", 'direction="tx"', round(self._pcie_bytes[0])),
            Sample("nvidia_gpu_pcie_bytes_total", 'direction="rx"', round(self._pcie_bytes[1])),
            Sample("nvidia_gpu_nvlink_bytes_total", 'direction="tx"', round(self._link_bytes)),
            Sample("nvidia_gpu_nvlink_bytes_total", 'direction="rx"', round(self._link_bytes)),
            Sample("nvidia_gpu_recovery_action", "", _DRAIN_AND_RESET if self.remap_pending else 0),
        ]

    def _slow(self) -> list[Sample]:
        limits = {"min": 200.0, "max": 700.0, "default": 700.0, "enforced": 700.0, "requested": 700.0}
        maxima = {"graphics": _SM_HERTZ, "sm": _SM_HERTZ, "memory": _MEMORY_HERTZ, "video": _SM_HERTZ}
        errors = {("corrected", "volatile"): 0, ("uncorrected", "volatile"): self.uncorrected_errors,
                  ("corrected", "aggregate"): 0, ("uncorrected", "aggregate"): self.uncorrected_errors}  # fmt: skip
        return [
            self._info,
            *(
                Sample("nvidia_gpu_power_limit_watts", f'kind="{kind}"', self.lapse * watts)
                for kind, watts in limits.items()
            ),
            *(Sample("nvidia_gpu_clock_max_hertz", f'domain="{domain}"', hertz) for domain, hertz in maxima.items()),
            Sample("nvidia_gpu_bar1_memory_total_bytes", "", _BAR1_BYTES),
            Sample("nvidia_gpu_bar1_memory_used_bytes", "", 8_388_608),
            Sample("nvidia_gpu_pcie_link_generation", 'kind="current"', 5),
            Sample("nvidia_gpu_pcie_link_generation", 'kind="max"', 5),
            Sample("nvidia_gpu_pcie_link_width_lanes", 'kind="current"', 16),
            Sample("nvidia_gpu_pcie_link_width_lanes", 'kind="max"', 16),
            Sample("nvidia_gpu_nvlink_links_active", "", 18),
            Sample("nvidia_gpu_pcie_errors_total", 'type="replay"', 0),
            *(Sample("nvidia_gpu_nvlink_errors_total", f'type="{kind}"', 0) for kind in ("replay", "recovery", "crc")),
            *(
                Sample("nvidia_gpu_ecc_errors_total", label_pairs(severity=severity, scope=scope), count)
                for (severity, scope), count in errors.items()
            ),
            Sample("nvidia_gpu_remapped_rows", 'cause="correctable"', 0),
            Sample("nvidia_gpu_remapped_rows", 'cause="uncorrectable"', self.remapped_rows),
            Sample("nvidia_gpu_row_remap_pending", "", int(self.remap_pending)),
            Sample("nvidia_gpu_row_remap_failure", "", 0),
        ]

    def _memory_utilization(self) -> float:
        return _MEMORY_UTILIZATION_DECODE * self._decode + 0.2 * self._prefill


def _reason(family: str, reason: str, value: float) -> Sample:
    return Sample(family, f'reason="{reason}"', value)


class SimulatedGpus:
    """A GPU source as the exporter expects it, and the handles by which a scene moves it.

    Attributes:
        clock: the fleet's.
        uuids: by index.
    """

    def __init__(self, count: int, seed: int, epoch: float) -> None:
        random = Random(f"{seed}:gpus")  # noqa: S311  reproducible, and nothing secret
        self.clock = Clock(epoch)
        self._now = 0.0
        self._lock = Condition()
        self.uuids = tuple(f"GPU-{uuid.UUID(int=random.getrandbits(128), version=4)}" for _ in range(count))
        self._gpus = tuple(
            SimulatedGpu(index, identity, self._lock, random) for index, identity in enumerate(self.uuids)
        )
        self._xids: list[XidEvent] = []

    def keep_time(self, clock: Clock) -> None:
        """Follow this clock: where it is fast, a second sees as many more joules, and no more busy seconds than one."""
        with self._lock:
            self.clock = clock
            for gpu in self._gpus:
                gpu.lapse = clock.speed

    def switch_off(self, groups: frozenset[str]) -> None:
        """Do nothing: no driver call is saved, and the monitor leaves these groups out."""

    def open(self) -> Sequence[SimulatedGpu]:
        """Return the GPUs, lost ones too, as NVML goes on counting them; raises GpuError when there is none."""
        if not self._gpus:
            raise GpuError("no_gpus")
        return self._gpus

    def close(self) -> None:
        """Do nothing: there is no driver."""

    def versions(self) -> Mapping[str, str]:
        """Return versions that no driver has."""
        return {"driver_version": "0.0-simulated", "nvml_version": "0.0-simulated", "cuda_version": "0.0-simulated"}

    def events(self, timeout: float) -> Sequence[XidEvent]:
        """Return what was reported since the last call; wait up to `timeout` seconds for the first."""
        with self._lock:
            self._lock.wait_for(lambda: bool(self._xids), timeout)
            events, self._xids = self._xids, []
            return events

    def advance(self, now: float, loads: Mapping[int, Load]) -> None:
        """Let the time since the last call pass under these loads, by GPU index."""
        with self._lock:
            seconds, self._now = now - self._now, now
            for gpu in self._gpus:
                if not gpu.lost:
                    gpu.move(loads.get(gpu.index, _NO_LOAD), seconds)

    def speed(self, gpu: int) -> float:
        """Return the GPU's clock over its normal one."""
        return self._gpus[gpu].speed

    def heat(self, gpu: int) -> None:
        """Take the cooling away."""
        self._gpus[gpu].heated = True

    def cool(self, gpu: int) -> None:
        """Give the cooling back."""
        self._gpus[gpu].heated = False

    def lose(self, gpu: int) -> None:
        """Take the GPU off the bus."""
        with self._lock:
            self._gpus[gpu].lost = True

    def recover(self, gpu: int) -> None:
        """Reset the GPU: it is back, and a pending row is remapped."""
        with self._lock:
            device = self._gpus[gpu]
            device.lost = False
            device.remapped_rows += int(device.remap_pending)
            device.remap_pending = False

    def report_xid(self, gpu: int, code: int) -> None:
        """Report an XID; 94, a contained memory error, also counts in ECC and asks for a row remapping."""
        with self._lock:
            device = self._gpus[gpu]
            if code == 94:
                device.uncorrected_errors += 1
                device.remap_pending = True
            self._xids.append(XidEvent(device.uuid, code, self.clock.unix(self._now)))
            self._lock.notify_all()

"""The driver calls of one GPU other than field values, as a table of small readers."""

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from ...pages.samples import Sample, label_pairs
from .busy import BusyReader, BusyTime
from .library import NvmlLibrary

Reader = Callable[[list[Sample]], int]  # appends samples, returns NVML's code

_MEGAHERTZ = 1_000_000
_MILLI = 1000
_PERCENT = 100
_UNKNOWN_STATE = 32  # NVML_PSTATE_UNKNOWN
_MAX_FANS = 16
_MEMORY_V2 = 40 | 2 << 24  # struct size and version, as every versioned struct of NVML states them
_TEMPERATURE_V1 = 12 | 1 << 24
_MARGIN_V1 = 8 | 1 << 24


class Target(NamedTuple):
    """The GPU that a reader is made for."""

    library: NvmlLibrary
    handle: object
    busy: BusyTime
    links: tuple[int, ...]
    averages_power: bool


Maker = Callable[[Target], Reader | None]


class Row(NamedTuple):
    """One call.

    Attributes:
        group: switch in groups.FAMILY_GROUPS.
        makers: ways to read it, best first; a maker returns None when the library lacks the symbol.
        unless: a family; the call is not made when field values bring it already.
    """

    group: str
    slow: bool
    name: str
    makers: tuple[Maker, ...]
    unless: str = ""


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64))


class _MemoryV2(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64),
        ("free", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
    )


class _Temperature(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), ("sensor", ctypes.c_uint), ("celsius", ctypes.c_int))


class _Margin(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), ("celsius", ctypes.c_int))


def _number(
    name: str,
    family: str,
    labels: str = "",
    *,
    arguments: tuple[int, ...] = (),
    multiply: int = 1,
    divide: int = 1,
    wide: bool = False,
) -> Maker:
    """Return the maker of a call that answers one unsigned number (64 bits when wide)."""

    def make(target: Target) -> Reader | None:
        function = target.library.function(name)
        if function is None:
            return None
        handle = target.handle
        out = ctypes.c_uint64() if wide else ctypes.c_uint()
        given = (*map(ctypes.c_uint, arguments), ctypes.byref(out))

        def read(samples: list[Sample]) -> int:
            code = function(handle, *given)
            if not code:
                value = out.value * multiply
                samples.append(Sample(family, labels, value / divide if divide != 1 else value))
            return code

        return read

    return make


def _struct(name: str, blank: Callable[[], ctypes.Structure], *columns: tuple[str, str, str]) -> Maker:
    """Return the maker of a call that fills a struct.

    Args:
        name: the call.
        blank: makes the struct as the call wants it.
        columns: (family, own labels, member of the struct).
    """

    def make(target: Target) -> Reader | None:
        function = target.library.function(name)
        if function is None:
            return None
        out = blank()
        argument = ctypes.byref(out)

        def read(samples: list[Sample]) -> int:
            code = function(target.handle, argument)
            if not code:
                for family, labels, member in columns:
                    value = getattr(out, member)
                    samples.append(Sample(family, labels, value / _PERCENT if family.endswith("_ratio") else value))
            return code

        return read

    return make


_utilization = _struct(
    "nvmlDeviceGetUtilizationRates",
    _Utilization,
    ("nvidia_gpu_utilization_ratio", "", "gpu"),
    ("nvidia_gpu_memory_utilization_ratio", "", "memory"),
)
_memory = _struct(
    "nvmlDeviceGetMemoryInfo_v2",
    partial(_MemoryV2, _MEMORY_V2),
    ("nvidia_gpu_memory_total_bytes", "", "total"),
    ("nvidia_gpu_memory_used_bytes", "", "used"),
    ("nvidia_gpu_memory_free_bytes", "", "free"),
    ("nvidia_gpu_memory_reserved_bytes", "", "reserved"),
)
# Version 1 counts what the driver reserves as used, and does not say how much that is.
_memory_v1 = _struct(
    "nvmlDeviceGetMemoryInfo",
    _Memory,
    ("nvidia_gpu_memory_total_bytes", "", "total"),
    ("nvidia_gpu_memory_used_bytes", "", "used"),
    ("nvidia_gpu_memory_free_bytes", "", "free"),
)
_bar1 = _struct(
    "nvmlDeviceGetBAR1MemoryInfo",
    _Memory,
    ("nvidia_gpu_bar1_memory_total_bytes", "", "total"),
    ("nvidia_gpu_bar1_memory_used_bytes", "", "used"),
)
_temperature = _struct(
    "nvmlDeviceGetTemperatureV",
    partial(_Temperature, _TEMPERATURE_V1, 0),
    ("nvidia_gpu_temperature_celsius", 'sensor="gpu"', "celsius"),
)
_margin = _struct(
    "nvmlDeviceGetMarginTemperature",
    partial(_Margin, _MARGIN_V1),
    ("nvidia_gpu_temperature_margin_celsius", "", "celsius"),
)


def _busy(target: Target) -> Reader | None:
    function = target.library.function("nvmlDeviceGetSamples")
    return BusyReader(function, target.handle, target.busy) if function else None


def _power(target: Target) -> Reader | None:
    # one call, two meanings: averaged over a second on Ampere and newer except GA100, else instant (nvml.h)
    kind = "average" if target.averages_power else "instant"
    return _number("nvmlDeviceGetPowerUsage", "nvidia_gpu_power_watts", label_pairs(kind=kind), divide=_MILLI)(target)


def _performance_state(target: Target) -> Reader | None:
    function = target.library.function("nvmlDeviceGetPerformanceState")
    if function is None:
        return None
    out = ctypes.c_uint()
    argument = ctypes.byref(out)

    def read(samples: list[Sample]) -> int:
        code = function(target.handle, argument)
        if not code and out.value != _UNKNOWN_STATE:
            samples.append(Sample("nvidia_gpu_performance_state", "", out.value))
        return code

    return read


# Bits of the clocks event reasons (nvml.h). Bit 0, idle, is left out: nothing holds the clocks of an idle GPU down.
_REASONS: Final = tuple(
    (bit, label_pairs(reason=reason))
    for bit, reason in (
        (0x2, "application_clocks"),
        (0x4, "sw_power_cap"),
        (0x8, "hw_slowdown"),
        (0x10, "sync_boost"),
        (0x20, "sw_thermal"),
        (0x40, "hw_thermal"),
        (0x80, "hw_power_brake"),
        (0x100, "display_clocks"),
        (0x200, "board_limit"),
        (0x400, "reliability"),
    )
)


def _offered_reasons(target: Target) -> int:
    """Return the reasons that this GPU can name at all; every one where the driver does not say, as in a vGPU."""
    function = target.library.function(
        "nvmlDeviceGetSupportedClocksEventReasons", "nvmlDeviceGetSupportedClocksThrottleReasons"
    )
    out = ctypes.c_uint64()
    if function is None or function(target.handle, ctypes.byref(out)) or not out.value:
        return sum(bit for bit, _ in _REASONS)
    return out.value


def _throttle(name: str) -> Maker:
    def make(target: Target) -> Reader | None:
        function = target.library.function(name)
        if function is None:
            return None
        out = ctypes.c_uint64()
        argument = ctypes.byref(out)
        offered = _offered_reasons(target)

        def read(samples: list[Sample]) -> int:
            nonlocal offered
            code = function(target.handle, argument)
            if not code:
                mask = out.value
                offered |= mask
                for bit, labels in _REASONS:
                    if not offered & bit:
                        continue
                    samples.append(Sample("nvidia_gpu_throttle_active", labels, 1 if mask & bit else 0))
            return code

        return read

    return make


def _remapped_rows(target: Target) -> Reader | None:
    function = target.library.function("nvmlDeviceGetRemappedRows")
    if function is None:
        return None
    out = tuple(ctypes.c_uint() for _ in range(4))
    arguments = tuple(map(ctypes.byref, out))

    def read(samples: list[Sample]) -> int:
        code = function(target.handle, *arguments)
        if not code:
            correctable, uncorrectable, pending, failure = (number.value for number in out)
            samples.append(Sample("nvidia_gpu_remapped_rows", 'cause="correctable"', correctable))
            samples.append(Sample("nvidia_gpu_remapped_rows", 'cause="uncorrectable"', uncorrectable))
            samples.append(Sample("nvidia_gpu_row_remap_pending", "", int(bool(pending))))
            samples.append(Sample("nvidia_gpu_row_remap_failure", "", int(bool(failure))))
        return code

    return read


def _codec(name: str, family: str) -> Maker:
    def make(target: Target) -> Reader | None:
        function = target.library.function(name)
        if function is None:
            return None
        out, period = ctypes.c_uint(), ctypes.c_uint()
        arguments = (ctypes.byref(out), ctypes.byref(period))

        def read(samples: list[Sample]) -> int:
            code = function(target.handle, *arguments)
            if not code:
                samples.append(Sample(family, "", out.value / _PERCENT))
            return code

        return read

    return make


def _fans(target: Target) -> Reader | None:
    count_fans = target.library.function("nvmlDeviceGetNumFans")
    speed_of = target.library.function("nvmlDeviceGetFanSpeed_v2")
    if count_fans is None or speed_of is None:
        return None
    out = ctypes.c_uint()
    argument = ctypes.byref(out)

    def read(samples: list[Sample]) -> int:
        code = count_fans(target.handle, argument)
        for fan in range(min(out.value, _MAX_FANS) if not code else 0):
            code = speed_of(target.handle, ctypes.c_uint(fan), argument)
            if code:
                break
            samples.append(Sample("nvidia_gpu_fan_speed_ratio", label_pairs(fan=str(fan)), out.value / _PERCENT))
        return code

    return read


def _active_links(target: Target) -> Reader | None:
    function = target.library.function("nvmlDeviceGetNvLinkState")
    if function is None or not target.links:
        return None
    out = ctypes.c_uint()
    argument = ctypes.byref(out)

    def read(samples: list[Sample]) -> int:
        active = 0
        for link in target.links:
            code = function(target.handle, ctypes.c_uint(link), argument)
            if code:
                return code
            active += out.value
        samples.append(Sample("nvidia_gpu_nvlink_links_active", "", active))
        return 0

    return read


def _clock(name: str, family: str, domain: str, number: int) -> Maker:
    return _number(name, family, label_pairs(domain=domain), arguments=(number,), multiply=_MEGAHERTZ)


_DOMAINS = (("graphics", 0), ("sm", 1), ("memory", 2), ("video", 3))
_THRESHOLDS = (("shutdown", 0), ("slowdown", 1), ("memory_max", 2), ("gpu_max", 3))
_LINK_NUMBERS = (
    ("nvidia_gpu_pcie_link_generation", "current", "nvmlDeviceGetCurrPcieLinkGeneration"),
    ("nvidia_gpu_pcie_link_generation", "max", "nvmlDeviceGetMaxPcieLinkGeneration"),
    ("nvidia_gpu_pcie_link_width_lanes", "current", "nvmlDeviceGetCurrPcieLinkWidth"),
    ("nvidia_gpu_pcie_link_width_lanes", "max", "nvmlDeviceGetMaxPcieLinkWidth"),
)
_ECC_COUNTERS = tuple(
    (label_pairs(severity=severity, scope=scope), (severity_number, scope_number))
    for severity_number, severity in enumerate(("corrected", "uncorrected"))
    for scope_number, scope in enumerate(("volatile", "aggregate"))
)

ROWS: Final[tuple[Row, ...]] = (
    Row("utilization", False, "utilisation", (_utilization,)),
    Row("utilization", False, "utilisation samples", (_busy,)),
    Row("memory", False, "memory", (_memory, _memory_v1)),
    Row(
        "energy",
        False,
        "energy",
        (_number("nvmlDeviceGetTotalEnergyConsumption", "nvidia_gpu_energy_joules_total", divide=_MILLI, wide=True),),
    ),
    Row("power", False, "power", (_power,), unless="nvidia_gpu_power_watts"),
    Row(
        "temperature",
        False,
        "temperature",
        (
            _temperature,
            _number("nvmlDeviceGetTemperature", "nvidia_gpu_temperature_celsius", 'sensor="gpu"', arguments=(0,)),
        ),
    ),
    Row("temperature", False, "temperature margin", (_margin,)),
    *(
        Row(
            "clocks", False, f"{domain} clock", (_clock("nvmlDeviceGetClockInfo", "nvidia_gpu_clock_hertz", domain, n),)
        )
        for domain, n in _DOMAINS
    ),
    Row("clocks", False, "performance state", (_performance_state,)),
    Row(
        "throttle",
        False,
        "throttle reasons",
        (_throttle("nvmlDeviceGetCurrentClocksEventReasons"), _throttle("nvmlDeviceGetCurrentClocksThrottleReasons")),
    ),
    *(
        Row(
            "clocks",
            True,
            f"highest {domain} clock",
            (_clock("nvmlDeviceGetMaxClockInfo", "nvidia_gpu_clock_max_hertz", domain, n),),
        )
        for domain, n in _DOMAINS
    ),
    *(
        Row(
            "temperature",
            True,
            f"{kind} temperature",
            (
                _number(
                    "nvmlDeviceGetTemperatureThreshold",
                    "nvidia_gpu_temperature_limit_celsius",
                    label_pairs(kind=kind),
                    arguments=(n,),
                ),
            ),
        )
        for kind, n in _THRESHOLDS
    ),
    *(
        Row(
            "ecc",
            True,
            "ECC errors",
            (
                _number(
                    "nvmlDeviceGetTotalEccErrors", "nvidia_gpu_ecc_errors_total", labels, arguments=which, wide=True
                ),
            ),
        )
        for labels, which in _ECC_COUNTERS
    ),
    Row("remapped_rows", True, "remapped rows", (_remapped_rows,)),
    Row("bar1", True, "BAR1 memory", (_bar1,)),
    *(
        Row("pcie", True, f"{kind} PCIe link", (_number(name, family, label_pairs(kind=kind)),))
        for family, kind, name in _LINK_NUMBERS
    ),
    Row("nvlink", True, "NVLink state", (_active_links,)),
    Row(
        "encoder",
        True,
        "encoder",
        (_codec("nvmlDeviceGetEncoderUtilization", "nvidia_gpu_encoder_utilization_ratio"),),
    ),
    Row(
        "encoder",
        True,
        "decoder",
        (_codec("nvmlDeviceGetDecoderUtilization", "nvidia_gpu_decoder_utilization_ratio"),),
    ),
    Row("fan", True, "fans", (_fans,)),
)

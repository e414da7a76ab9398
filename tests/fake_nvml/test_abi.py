"""The layouts and numbers that the fake and the exporter assume, against those that NVIDIA's own pynvml states."""

import ctypes
import struct
import subprocess
from pathlib import Path

import pynvml
import pytest
from vllm_vitals.exporter.gpus.nvml import busy as nvml_busy
from vllm_vitals.exporter.gpus.nvml import codes as nvml_codes
from vllm_vitals.exporter.gpus.nvml import fields as nvml_fields
from vllm_vitals.exporter.gpus.nvml import gpm as nvml_gpm
from vllm_vitals.exporter.gpus.nvml import mig as nvml_mig
from vllm_vitals.exporter.gpus.nvml import processes as nvml_processes
from vllm_vitals.exporter.gpus.nvml import readers as nvml_readers
from vllm_vitals.exporter.gpus.nvml import source as nvml
from vllm_vitals.exporter.pages.samples import label_pairs

_HERE = Path(__file__).parent

# The fake's name of a struct, NVIDIA's, and the fake's names of all its fields in order.
STRUCTS = (
    ("Value", "c_nvmlValue_t", ("d", "ui", "ul", "ull", "sll", "si", "us")),
    ("Utilization", "c_nvmlUtilization_t", ("gpu", "memory")),
    ("Memory", "c_nvmlMemory_t", ("total", "free", "used")),
    ("MemoryV2", "c_nvmlMemory_v2_t", ("version", "total", "reserved", "free", "used")),
    ("Bar1Memory", "c_nvmlBAR1Memory_t", ("total", "free", "used")),
    ("Process", "c_nvmlProcessInfo_v2_t", ("pid", "used", "gpu_instance", "compute_instance")),
    ("WideProcess", "c_nvmlProcessDetail_v1_t", ("pid", "used", "gpu_instance", "compute_instance", "protected")),
    ("ProcessUtilization", "c_nvmlProcessUtilizationSample_t", ("pid", "timestamp", "sm", "mem", "enc", "dec")),
    ("Sample", "c_nvmlSample_t", ("timestamp", "value")),
    ("ViolationTime", "c_nvmlViolationTime_t", ("reference", "violation")),
    ("FieldValue", "c_nvmlFieldValue_t", ("field", "scope", "timestamp", "latency", "type", "code", "value")),
    ("TemperatureV1", "c_nvmlTemperature_v1_t", ("version", "sensor", "celsius")),
    ("MarginTemperature", "c_nvmlMarginTemperature_v1_t", ("version", "celsius")),
    (
        "PciInfo",
        "nvmlPciInfo_t",
        ("bus_id_legacy", "domain", "bus", "device", "pci_device", "pci_subsystem", "bus_id"),
    ),
    ("EventData", "c_nvmlEventData_t", ("device", "type", "data", "gpu_instance", "compute_instance")),
    ("GpmMetric", "c_nvmlGpmMetric_t", ("id", "code", "value", "info")),
    ("GpmMetrics", "c_nvmlGpmMetricsGet_t", ("version", "count", "first", "second", "metrics")),
    ("GpmSupport", "c_nvmlGpmSupport_t", ("version", "supported")),
    (
        "Attributes",
        "c_nvmlDeviceAttributes",
        (
            "multiprocessors",
            "copy_engines",
            "decoders",
            "encoders",
            "jpegs",
            "ofas",
            "gpu_slices",
            "compute_slices",
            "memory_mib",
        ),
    ),
)

# The exporter's structs, which are not pynvml's because they are filled in place every second.
EXPORTED = (
    (nvml._EventData, "c_nvmlEventData_t"),
    (nvml_fields.FieldValue, "c_nvmlFieldValue_t"),
    (nvml_gpm._Metric, "c_nvmlGpmMetric_t"),
    (nvml_gpm._MetricsGet, "c_nvmlGpmMetricsGet_t"),
    (nvml_gpm._Support, "c_nvmlGpmSupport_t"),
    (nvml_mig._Memory, "c_nvmlMemory_t"),
    (nvml_readers._Utilization, "c_nvmlUtilization_t"),
    (nvml_readers._Memory, "c_nvmlMemory_t"),
    (nvml_readers._Memory, "c_nvmlBAR1Memory_t"),
    (nvml_readers._MemoryV2, "c_nvmlMemory_v2_t"),
    (nvml_readers._Temperature, "c_nvmlTemperature_v1_t"),
    (nvml_readers._Margin, "c_nvmlMarginTemperature_v1_t"),
)

# NVIDIA's name of each field id behind NVML_FI_ or NVML_FI_DEV_.
FIELD_NAMES = {
    29: "RETIRED_SBE",
    30: "RETIRED_DBE",
    38: "NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
    45: "NVLINK_CRC_DATA_ERROR_COUNT_TOTAL",
    52: "NVLINK_REPLAY_ERROR_COUNT_TOTAL",
    59: "NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
    74: "PERF_POLICY_POWER",
    75: "PERF_POLICY_THERMAL",
    76: "PERF_POLICY_SYNC_BOOST",
    77: "PERF_POLICY_BOARD_LIMIT",
    78: "PERF_POLICY_LOW_UTILIZATION",
    79: "PERF_POLICY_RELIABILITY",
    82: "MEMORY_TEMP",
    94: "PCIE_REPLAY_COUNTER",
    95: "PCIE_REPLAY_ROLLOVER_COUNTER",
    138: "NVLINK_THROUGHPUT_DATA_TX",
    139: "NVLINK_THROUGHPUT_DATA_RX",
    160: "NVLINK_ECC_DATA_ERROR_COUNT_TOTAL",
    161: "NVLINK_ERROR_DL_REPLAY",
    162: "NVLINK_ERROR_DL_RECOVERY",
    163: "NVLINK_ERROR_DL_CRC",
    169: "PCIE_L0_TO_RECOVERY_COUNTER",
    173: "PCIE_COUNT_CORRECTABLE_ERRORS",
    174: "PCIE_COUNT_NAKS_RECEIVED",
    175: "PCIE_COUNT_RECEIVER_ERROR",
    176: "PCIE_COUNT_BAD_TLP",
    177: "PCIE_COUNT_NAKS_SENT",
    178: "PCIE_COUNT_BAD_DLLP",
    179: "PCIE_COUNT_NON_FATAL_ERROR",
    180: "PCIE_COUNT_FATAL_ERROR",
    181: "PCIE_COUNT_UNSUPPORTED_REQ",
    182: "PCIE_COUNT_LCRC_ERROR",
    185: "POWER_AVERAGE",
    186: "POWER_INSTANT",
    187: "POWER_MIN_LIMIT",
    188: "POWER_MAX_LIMIT",
    189: "POWER_DEFAULT_LIMIT",
    190: "POWER_CURRENT_LIMIT",
    192: "POWER_REQUESTED_LIMIT",
    193: "TEMPERATURE_SHUTDOWN_TLIMIT",
    194: "TEMPERATURE_SLOWDOWN_TLIMIT",
    195: "TEMPERATURE_MEM_MAX_TLIMIT",
    196: "TEMPERATURE_GPU_MAX_TLIMIT",
    197: "PCIE_COUNT_TX_BYTES",
    198: "PCIE_COUNT_RX_BYTES",
    202: "NVLINK_COUNT_XMIT_BYTES",
    204: "NVLINK_COUNT_RCV_BYTES",
    206: "NVLINK_COUNT_MALFORMED_PACKET_ERRORS",
    207: "NVLINK_COUNT_BUFFER_OVERRUN_ERRORS",
    208: "NVLINK_COUNT_RCV_ERRORS",
    209: "NVLINK_COUNT_RCV_REMOTE_ERRORS",
    210: "NVLINK_COUNT_RCV_GENERAL_ERRORS",
    211: "NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS",
    212: "NVLINK_COUNT_XMIT_DISCARDS",
    213: "NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS",
    214: "NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS",
    219: "NVLINK_COUNT_EFFECTIVE_ERRORS",
    221: "NVLINK_COUNT_SYMBOL_ERRORS",
    230: "GET_GPU_RECOVERY_ACTION",
    269: "CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
    270: "CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    271: "CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
    297: "MMA_STALL_PERCENT",
    309: "PWR_SMOOTHING_LIMITED_TIME",
}
YOUNGER_THAN_PYNVML = {309}  # in nvml.h 13.5, not yet in pynvml 13.615

REASONS = {
    "application_clocks": "ApplicationsClocksSetting",
    "sw_power_cap": "SwPowerCap",
    "hw_slowdown": "HwSlowdown",
    "sync_boost": "SyncBoost",
    "sw_thermal": "SwThermalSlowdown",
    "hw_thermal": "HwThermalSlowdown",
    "hw_power_brake": "HwPowerBrakeSlowdown",
    "display_clocks": "DisplayClockSetting",
    "board_limit": "BoardLimit",
    "reliability": "Reliability",
}


RETURN_CODES = (
    "INVALID_ARGUMENT",
    "NOT_SUPPORTED",
    "NO_PERMISSION",
    "NOT_FOUND",
    "INSUFFICIENT_SIZE",
    "FUNCTION_NOT_FOUND",
    "ARGUMENT_VERSION_MISMATCH",
    "DEPRECATED",
)


def layout(kind):
    """Return the size of a ctypes struct or union, and offset and size of each field."""
    fields = [getattr(kind, field[0]) for field in kind._fields_]
    return ctypes.sizeof(kind), [(field.offset, field.size) for field in fields]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Layouts of the fake's structs as the C compiler says."""
    lines = []
    for name, _, fields in STRUCTS:
        places = "".join(f'printf(" %zu %zu", offsetof({name}, {f}), sizeof((({name} *)0)->{f}));' for f in fields)
        lines.append(f'printf("{name} %zu", sizeof({name})); {places} puts("");')
    body = "\n".join(lines)
    source = (
        f'#include <stddef.h>\n#include <stdio.h>\n#include "nvml_types.h"\nint main(void) {{\n{body}\nreturn 0;\n}}\n'
    )
    program = tmp_path_factory.mktemp("abi") / "layouts"
    subprocess.run(["gcc", "-x", "c", "-", f"-I{_HERE}", "-o", program], input=source.encode(), check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    layouts = {}
    for line in output.splitlines():
        name, size, *numbers = line.split()
        places = iter(map(int, numbers))
        layouts[name] = int(size), list(zip(places, places, strict=True))
    return layouts


@pytest.mark.parametrize(("name", "nvidias"), [row[:2] for row in STRUCTS])
def test_a_struct_of_the_fake_has_nvidias_layout(compiled, name, nvidias):
    assert compiled[name] == layout(getattr(pynvml, nvidias))


@pytest.mark.parametrize(("ours", "nvidias"), EXPORTED, ids=lambda one: getattr(one, "__name__", one))
def test_a_struct_of_the_exporter_has_nvidias_layout(ours, nvidias):
    assert layout(ours) == layout(getattr(pynvml, nvidias))


@pytest.mark.parametrize(
    ("form", "nvidias", "read"),
    [
        (nvml_processes._PROCESS, "c_nvmlProcessInfo_v2_t", ("pid", "usedGpuMemory")),
        (nvml_fields._ENTRY, "c_nvmlFieldValue_t", ("valueType", "nvmlReturn", "value")),
        (nvml_gpm._METRIC, "c_nvmlGpmMetric_t", ("metricId", "nvmlReturn", "value")),
        (nvml_busy._SAMPLE, "c_nvmlSample_t", ("timeStamp", "sampleValue")),
    ],
)
def test_an_unpacking_form_picks_the_right_bytes(form, nvidias, read):
    kind = getattr(pynvml, nvidias)
    assert form.size == ctypes.sizeof(kind)
    image = bytearray(form.size)
    for place, name in enumerate(read):
        field = getattr(kind, name)
        number = struct.pack("<d", 7.0) if (nvidias, name) == ("c_nvmlGpmMetric_t", "value") else bytes([place + 1])
        image[field.offset : field.offset + field.size] = number.ljust(field.size, b"\0")
    wanted = tuple(7.0 if (nvidias, name) == ("c_nvmlGpmMetric_t", "value") else i + 1 for i, name in enumerate(read))
    assert form.unpack(bytes(image)) == wanted


def test_the_struct_versions_are_nvidias():
    assert pynvml.nvmlMemory_v2 == nvml_readers._MEMORY_V2
    assert pynvml.nvmlTemperature_v1 == nvml_readers._TEMPERATURE_V1
    assert pynvml.nvmlMarginTemperature_v1 == nvml_readers._MARGIN_V1
    assert pynvml.NVML_GPM_METRICS_GET_VERSION == pynvml.NVML_GPM_SUPPORT_VERSION == nvml_gpm._VERSION


def test_every_field_id_has_the_name_that_we_read_it_for():
    assert {field.id for field in nvml_fields.FIELDS} == FIELD_NAMES.keys()
    for number, name in FIELD_NAMES.items():
        stated = getattr(pynvml, f"NVML_FI_DEV_{name}", getattr(pynvml, f"NVML_FI_{name}", None))
        assert stated == number or (stated is None and number in YOUNGER_THAN_PYNVML), name


def test_the_enumerations_are_nvidias():
    assert pynvml.nvmlEventTypeXidCriticalError == nvml._XID_EVENT
    assert nvml_readers._UNKNOWN_STATE == pynvml.NVML_PSTATE_UNKNOWN
    assert nvml_busy._GPU_UTILIZATION == pynvml.NVML_GPU_UTILIZATION_SAMPLES
    assert dict(nvml_gpm.METRICS) == {
        pynvml.NVML_GPM_METRIC_SM_UTIL: "sm_active_ratio",
        pynvml.NVML_GPM_METRIC_SM_OCCUPANCY: "sm_occupancy_ratio",
        pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: "tensor_active_ratio",
        pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: "dram_active_ratio",
    }
    assert dict(nvml_readers._DOMAINS) == {
        "graphics": pynvml.NVML_CLOCK_GRAPHICS,
        "sm": pynvml.NVML_CLOCK_SM,
        "memory": pynvml.NVML_CLOCK_MEM,
        "video": pynvml.NVML_CLOCK_VIDEO,
    }
    assert dict(nvml_readers._THRESHOLDS) == {
        "shutdown": pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN,
        "slowdown": pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
        "memory_max": pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX,
        "gpu_max": pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX,
    }
    corrected, uncorrected = pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    assert dict(nvml_readers._ECC_COUNTERS) == {
        label_pairs(severity="corrected", scope="volatile"): (corrected, pynvml.NVML_VOLATILE_ECC),
        label_pairs(severity="corrected", scope="aggregate"): (corrected, pynvml.NVML_AGGREGATE_ECC),
        label_pairs(severity="uncorrected", scope="volatile"): (uncorrected, pynvml.NVML_VOLATILE_ECC),
        label_pairs(severity="uncorrected", scope="aggregate"): (uncorrected, pynvml.NVML_AGGREGATE_ECC),
    }


def test_the_bits_of_the_throttle_reasons_are_nvidias():
    bits = {labels: bit for bit, labels in nvml_readers._REASONS}
    stated = {
        label_pairs(reason=our): getattr(pynvml, f"nvmlClocksThrottleReason{name}") for our, name in REASONS.items()
    }
    assert bits == stated
    idle = pynvml.nvmlClocksThrottleReasonGpuIdle
    assert sum(bits.values()) | idle == pynvml.nvmlClocksThrottleReasonAll  # a new reason makes this fail


def test_the_return_codes_are_nvidias():
    assert pynvml.NVML_ERROR_TIMEOUT == 10, "what the fake returns; the collector has no use for the name"
    for name in RETURN_CODES:
        assert getattr(nvml_codes, name) == getattr(pynvml, f"NVML_ERROR_{name}"), name
    assert nvml_codes.OPEN_REASONS == {
        pynvml.NVML_ERROR_UNINITIALIZED: "driver_reload",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "no_driver",
        pynvml.NVML_ERROR_GPU_IS_LOST: "lost",
        pynvml.NVML_ERROR_RESET_REQUIRED: "reset_required",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "version_mismatch",
        pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no_library",
        pynvml.NVML_ERROR_GPU_NOT_FOUND: "no_gpus",
    }

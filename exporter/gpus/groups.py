"""The groups of GPU families that an operator can switch off, with the driver calls that only they make."""

from typing import Final, NamedTuple


class FamilyGroup(NamedTuple):
    """One switch.

    Attributes:
        families: families that leave the page.
        calls: NVML functions that are then not called; field ids stand in nvml_fields.FIELDS with the group's name.
    """

    families: tuple[str, ...]
    calls: tuple[str, ...] = ()


FAMILY_GROUPS: Final[dict[str, FamilyGroup]] = {
    "utilization": FamilyGroup(
        (
            "nvidia_gpu_utilization_ratio",
            "nvidia_gpu_busy_seconds_total",
            "nvidia_gpu_memory_utilization_ratio",
            "nvidia_gpu_matrix_stall_ratio",
        ),
        ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetSamples"),
    ),
    "encoder": FamilyGroup(
        ("nvidia_gpu_encoder_utilization_ratio", "nvidia_gpu_decoder_utilization_ratio"),
        ("nvmlDeviceGetEncoderUtilization", "nvmlDeviceGetDecoderUtilization"),
    ),
    "memory": FamilyGroup(
        (
            "nvidia_gpu_memory_total_bytes",
            "nvidia_gpu_memory_used_bytes",
            "nvidia_gpu_memory_free_bytes",
            "nvidia_gpu_memory_reserved_bytes",
        ),
        # version 1 is not listed: MIG devices are read with it
        ("nvmlDeviceGetMemoryInfo_v2",),
    ),
    "bar1": FamilyGroup(
        ("nvidia_gpu_bar1_memory_total_bytes", "nvidia_gpu_bar1_memory_used_bytes"), ("nvmlDeviceGetBAR1MemoryInfo",)
    ),
    "power": FamilyGroup(("nvidia_gpu_power_watts", "nvidia_gpu_power_limit_watts"), ("nvmlDeviceGetPowerUsage",)),
    "energy": FamilyGroup(("nvidia_gpu_energy_joules_total",), ("nvmlDeviceGetTotalEnergyConsumption",)),
    "temperature": FamilyGroup(
        (
            "nvidia_gpu_temperature_celsius",
            "nvidia_gpu_temperature_limit_celsius",
            "nvidia_gpu_temperature_margin_celsius",
            "nvidia_gpu_temperature_margin_limit_celsius",
        ),
        (
            "nvmlDeviceGetTemperatureV",
            "nvmlDeviceGetTemperature",
            "nvmlDeviceGetMarginTemperature",
            "nvmlDeviceGetTemperatureThreshold",
        ),
    ),
    "fan": FamilyGroup(("nvidia_gpu_fan_speed_ratio",), ("nvmlDeviceGetNumFans", "nvmlDeviceGetFanSpeed_v2")),
    "clocks": FamilyGroup(
        ("nvidia_gpu_clock_hertz", "nvidia_gpu_clock_max_hertz", "nvidia_gpu_performance_state"),
        ("nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetPerformanceState"),
    ),
    "throttle": FamilyGroup(
        ("nvidia_gpu_throttle_active", "nvidia_gpu_throttle_seconds_total"),
        (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
            "nvmlDeviceGetSupportedClocksEventReasons",
        ),
    ),
    "gpm": FamilyGroup(
        (
            "nvidia_gpu_sm_active_ratio",
            "nvidia_gpu_sm_occupancy_ratio",
            "nvidia_gpu_tensor_active_ratio",
            "nvidia_gpu_dram_active_ratio",
            "nvidia_gpu_mig_sm_active_ratio",
            "nvidia_gpu_mig_sm_occupancy_ratio",
            "nvidia_gpu_mig_tensor_active_ratio",
            "nvidia_gpu_mig_dram_active_ratio",
        ),
        ("nvmlGpmQueryDeviceSupport", "nvmlGpmSampleGet", "nvmlGpmMigSampleGet", "nvmlGpmMetricsGet"),
    ),
    "pcie": FamilyGroup(
        (
            "nvidia_gpu_pcie_bytes_total",
            "nvidia_gpu_pcie_link_generation",
            "nvidia_gpu_pcie_link_width_lanes",
            "nvidia_gpu_pcie_errors_total",
        ),
        (
            "nvmlDeviceGetCurrPcieLinkGeneration",
            "nvmlDeviceGetMaxPcieLinkGeneration",
            "nvmlDeviceGetCurrPcieLinkWidth",
            "nvmlDeviceGetMaxPcieLinkWidth",
        ),
    ),
    "nvlink": FamilyGroup(
        ("nvidia_gpu_nvlink_bytes_total", "nvidia_gpu_nvlink_errors_total", "nvidia_gpu_nvlink_links_active"),
        ("nvmlDeviceGetNvLinkState",),
    ),
    "ecc": FamilyGroup(("nvidia_gpu_ecc_errors_total",), ("nvmlDeviceGetTotalEccErrors",)),
    "remapped_rows": FamilyGroup(
        (
            "nvidia_gpu_remapped_rows",
            "nvidia_gpu_row_remap_pending",
            "nvidia_gpu_row_remap_failure",
            "nvidia_gpu_retired_pages",
        ),
        ("nvmlDeviceGetRemappedRows",),
    ),
    "xid": FamilyGroup(
        ("nvidia_gpu_xid_errors_total", "nvidia_gpu_xid_last_timestamp_seconds"),
        ("nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2"),
    ),
    "recovery": FamilyGroup(("nvidia_gpu_recovery_action",)),
    "processes": FamilyGroup(
        ("nvidia_gpu_processes",),
        ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"),
    ),
    "mig": FamilyGroup(
        ("nvidia_gpu_mig_info", "nvidia_gpu_mig_memory_total_bytes", "nvidia_gpu_mig_memory_used_bytes"),
        ("nvmlDeviceGetMigMode", "nvmlDeviceGetMigDeviceHandleByIndex"),
    ),
}


def families_of(groups: frozenset[str]) -> frozenset[str]:
    """Return the families of these groups. Raises ValueError for a name that is no group."""
    unknown = groups - FAMILY_GROUPS.keys()
    if unknown:
        raise ValueError(f"no such family group: {', '.join(sorted(unknown))}")
    return frozenset(family for group in groups for family in FAMILY_GROUPS[group].families)

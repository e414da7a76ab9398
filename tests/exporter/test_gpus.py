"""The GPU monitor over the compiled fake driver behind real pynvml."""

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import fields

import pytest
from fake_nvml.state import ALL, NO_GPU
from vllm_vitals.exporter.gpus.groups import FAMILY_GROUPS
from vllm_vitals.exporter.gpus.monitor import GpuMonitor, GpuProcess, GpuSnapshot
from vllm_vitals.exporter.gpus.nvml.fields import ALL_LINKS, FIELDS
from vllm_vitals.exporter.gpus.nvml.source import NvmlSource
from vllm_vitals.exporter.gpus.reading import GpuReading, reading_of
from vllm_vitals.exporter.pages.samples import Sample, page
from vllm_vitals.vocabulary.ours import NVIDIA_GPU, OURS
from vllm_vitals.vocabulary.xids import CRITICAL_XIDS

INTERVAL = 0.05
DEADLINE = 10.0


def wait_until(condition, what="condition", deadline=DEADLINE):
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.01)
    pytest.fail(f"{what} did not come within {deadline} s")


@contextmanager
def monitoring(
    families_off=frozenset(), *, source=None, interval=INTERVAL, slow=INTERVAL, hang=0.4, backoff=(0.1, 0.5)
):
    monitor = GpuMonitor(source or NvmlSource(), interval, slow, families_off, hang_seconds=hang, backoff=backoff)
    monitor.start()
    try:
        yield monitor
    finally:
        monitor.stop()


def all_up(monitor, count=8):
    found = monitor.snapshots()
    return found if len(found) == count and all(one.up for one in found) else None


def text_of(monitor):
    return page(monitor.lines(time.monotonic())).decode()


def value(snapshot: GpuSnapshot, family: str, labels: str = "") -> float | None:
    return values(snapshot).get((family, labels))


def values(snapshot: GpuSnapshot) -> dict[tuple[str, str], float]:
    return {(family, labels): value for family, labels, value in snapshot.samples}


@pytest.fixture(autouse=True)
def short_event_wait(monkeypatch):
    """A monitor stops when its wait for events ends."""
    monkeypatch.setattr("vllm_vitals.exporter.gpus.monitor._EVENT_SECONDS", 0.05)


@pytest.fixture
def driver(fake_nvml):
    with fake_nvml.attach():
        yield fake_nvml


def test_eight_gpus_come_up_with_identity_and_base_units(driver):
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
        text = text_of(monitor)
    assert monitor.reason() == ""
    assert (first.index, first.name, first.pci_bus_id) == (0, "NVIDIA H100 80GB HBM3", "00000000:01:00.0")
    assert value(first, "nvidia_gpu_utilization_ratio") == 1.0
    assert value(first, "nvidia_gpu_memory_utilization_ratio") == 0.11
    assert value(first, "nvidia_gpu_memory_total_bytes") == 85_520_809_984
    assert value(first, "nvidia_gpu_memory_reserved_bytes") == 502_267_904
    assert value(first, "nvidia_gpu_power_watts", 'kind="instant"') == 631.95
    assert value(first, "nvidia_gpu_power_watts", 'kind="average"') == 630.12
    assert value(first, "nvidia_gpu_power_limit_watts", 'kind="max"') == 700
    assert value(first, "nvidia_gpu_temperature_celsius", 'sensor="gpu"') == 59
    assert value(first, "nvidia_gpu_temperature_celsius", 'sensor="memory"') == 54
    assert value(first, "nvidia_gpu_clock_hertz", 'domain="sm"') == 1_980_000_000
    assert value(first, "nvidia_gpu_nvlink_bytes_total", 'direction="tx"') == 1_024_000_000
    assert value(first, "nvidia_gpu_nvlink_links_active") == 18
    assert 'vllm_vitals_nvml_up{reason=""} 1' in text
    assert "vllm_vitals_gpus 8" in text
    assert 'driver_version="580.65.06",nvml_version="13.580.65.06",cuda_version="13.0"' in text
    assert 'compute_capability="9.0"' in text
    assert 'mig_mode="disabled"' in text


def test_what_health_and_the_live_page_use_is_read_out_as_values(driver):
    driver.state.set(0, "reasons", 0x4 | 0x40)
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        first = wait_until(lambda: (one := monitor.snapshots()[0]).reading.sm_active_ratio and one)
        driver.state.lose(0)
        lost = wait_until(lambda: not (one := monitor.snapshots()[0]).up and one)
    reading = first.reading
    told = [getattr(reading, field.name) for field in fields(GpuReading)]
    assert None not in told
    assert (reading.utilization_ratio, reading.memory_total_bytes) == (1.0, 85_520_809_984)
    assert (reading.power_average_watts, reading.power_instant_watts, reading.power_watts) == (630.12, 631.95, 630.12)
    assert reading.power_limit_watts == value(first, "nvidia_gpu_power_limit_watts", 'kind="enforced"')
    assert (reading.temperature_celsius, reading.memory_temperature_celsius) == (59, 54)
    assert (reading.sm_active_ratio, reading.dram_active_ratio) == (0.83, 0.52)
    assert set(reading.throttles) == {"sw_power_cap", "hw_thermal"}
    assert lost.reading == GpuReading(xids=lost.reading.xids)
    assert lost.reading.xids


def test_a_gpu_that_only_tells_instant_power_has_its_power_read_out():
    samples = [Sample("nvidia_gpu_power_watts", 'kind="instant"', 70.5)]
    reading = reading_of(samples)
    assert (reading.power_average_watts, reading.power_watts) == (None, 70.5)
    assert reading_of([]) == GpuReading()


def test_the_page_holds_only_families_of_the_vocabulary_and_no_series_twice(driver):
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        mappings = monitor.lines(time.monotonic())
    series = [
        line.rpartition(b" ")[0] for mapping in mappings for text in mapping.values() for line in text.splitlines()
    ]
    assert len(series) == len(set(series))
    assert {family for mapping in mappings for family in mapping} <= OURS.keys()


def test_every_label_of_the_page_is_the_vocabularys(driver):
    driver.state.mig(1, [(1, 0, "MIG-a", 10 << 30, 1 << 30, "1g.10gb")])
    driver.state.set(2, "fans", 1)
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        wait_until(lambda: value(monitor.snapshots()[1], "nvidia_gpu_mig_sm_active_ratio", 'mig_uuid="MIG-a"'))
        text = text_of(monitor)
    for line in text.splitlines():
        if line.startswith("nvidia_gpu_"):
            family, _, rest = line.partition("{")
            names = tuple(part.split("=")[0] for part in rest.rpartition("}")[0].replace('",', '"\n').splitlines())
            assert names == OURS[family].labels, line


def test_what_the_gpu_does_not_support_is_absent_and_not_zero(driver):
    driver.state.error("nvmlDeviceGetTotalEnergyConsumption", ALL, 3)
    driver.state.error("nvmlDeviceGetRemappedRows", ALL, 3)
    driver.state.error("nvmlDeviceGetBAR1MemoryInfo", ALL, 13)
    driver.state.field(ALL, 82, 0, code=3)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert not {family for family, _ in values(first)} & {
        "nvidia_gpu_energy_joules_total",
        "nvidia_gpu_remapped_rows",
        "nvidia_gpu_bar1_memory_total_bytes",
        "nvidia_gpu_retired_pages",
        "nvidia_gpu_matrix_stall_ratio",
        "nvidia_gpu_fan_speed_ratio",
    }
    assert value(first, "nvidia_gpu_temperature_celsius", 'sensor="memory"') is None
    assert value(first, "nvidia_gpu_temperature_celsius", 'sensor="gpu"') == 59
    assert value(first, "nvidia_gpu_unsupported_calls") >= 4


def test_an_unsupported_call_is_asked_once_and_not_every_cycle(driver):
    driver.state.error("nvmlDeviceGetTotalEnergyConsumption", ALL, 3)
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        before = driver.calls("nvmlDeviceGetUtilizationRates")
        wait_until(lambda: driver.calls("nvmlDeviceGetUtilizationRates") > before + 40)
    assert driver.calls("nvmlDeviceGetTotalEnergyConsumption") == 8


def test_an_old_driver_is_read_through_its_older_symbols(fake_nvml_old):
    with fake_nvml_old.attach(), monitoring() as monitor:
        fake_nvml_old.state.processes(0, [(42, 1000)])
        first = wait_until(lambda: all_up(monitor))[0]
    assert value(first, "nvidia_gpu_memory_used_bytes") == 75_502_267_904  # version 1 counts the reserved part as used
    assert value(first, "nvidia_gpu_memory_reserved_bytes") is None
    assert value(first, "nvidia_gpu_temperature_celsius", 'sensor="gpu"') == 59
    assert value(first, "nvidia_gpu_throttle_active", 'reason="sw_power_cap"') == 0
    assert value(first, "nvidia_gpu_power_watts", 'kind="average"') == 631.95  # from nvmlDeviceGetPowerUsage
    assert value(first, "nvidia_gpu_power_watts", 'kind="instant"') is None
    assert value(first, "nvidia_gpu_throttle_seconds_total", 'reason="sw_thermal"') == 0  # field 75 in place of 269
    assert value(first, "nvidia_gpu_sm_active_ratio") is None


def test_power_of_an_old_driver_is_instant_on_ga100(fake_nvml_old):
    fake_nvml_old.state.set(ALL, "cc_major", 8)
    with fake_nvml_old.attach(), monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert value(first, "nvidia_gpu_power_watts", 'kind="instant"') == 631.95


def test_joules_are_watts_times_seconds(driver):
    driver.state.set(0, "power_mw", 500_000)
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        one = monitor.snapshots()[0]
        two = wait_until(lambda: (now := monitor.snapshots()[0]).taken_at > one.taken_at + 1.0 and now)
    joules = value(two, "nvidia_gpu_energy_joules_total") - value(one, "nvidia_gpu_energy_joules_total")
    assert joules == pytest.approx(500 * (two.taken_at - one.taken_at), rel=0.05)


def test_busy_seconds_grow_by_utilisation_times_time(driver):
    driver.state.set(0, "util", 50)
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        one = monitor.snapshots()[0]
        two = wait_until(lambda: (now := monitor.snapshots()[0]).taken_at > one.taken_at + 1.5 and now)
    busy = value(two, "nvidia_gpu_busy_seconds_total") - value(one, "nvidia_gpu_busy_seconds_total")
    # samples come in steps of 1/6 s, half busy each
    assert busy == pytest.approx(0.5 * (two.taken_at - one.taken_at), abs=0.5 / 6 + 0.03)


def test_busy_seconds_of_scripted_samples_are_exact_and_the_first_ones_only_prime(driver):
    start = 1_700_000_000_000_000
    driver.state.samples(0, 1, [(start, 100), (start + 166_667, 100)])
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
        assert value(first, "nvidia_gpu_busy_seconds_total") == 0
        driver.state.samples(0, 1, [(start + 166_667, 100), (start + 366_667, 25), (start + 466_667, 100)])
        wait_until(lambda: value(monitor.snapshots()[0], "nvidia_gpu_busy_seconds_total") == 0.15)


def test_throttling_shows_as_active_and_as_seconds(driver):
    driver.state.set(0, "reasons", 0x4 | 0x40)
    driver.state.set(0, "ns_power", 2_500_000_000)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    active = {labels for (family, labels), on in values(first).items() if family == "nvidia_gpu_throttle_active" and on}
    assert active == {'reason="sw_power_cap"', 'reason="hw_thermal"'}
    assert value(first, "nvidia_gpu_throttle_seconds_total", 'reason="sw_power_cap"') == 2.5


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [(0, 3.5, 3.5), (1, 4e9, 4e9), (3, 1 << 60, 1 << 60), (4, -5, -5), (5, -7, -7), (6, 65535, 65535)],
)
def test_a_field_value_is_read_by_its_own_type(driver, kind, raw, expected):
    driver.state.field(0, 230, int(raw) if kind else raw, kind=kind)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert value(first, "nvidia_gpu_recovery_action") == expected


def test_a_pcie_counter_that_wraps_at_32_bits_grows_on(driver):
    driver.state.set(0, "pcie_tx", 2**32 - 1)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
        assert value(first, "nvidia_gpu_pcie_bytes_total", 'direction="tx"') == 2**32 - 1
        driver.state.set(0, "pcie_tx", 17)
        wait_until(lambda: value(monitor.snapshots()[0], "nvidia_gpu_pcie_bytes_total", 'direction="tx"') == 2**32 + 17)
        driver.state.set(0, "pcie_tx", 20)
        wait_until(lambda: value(monitor.snapshots()[0], "nvidia_gpu_pcie_bytes_total", 'direction="tx"') == 2**32 + 20)
    assert driver.calls("nvmlDeviceGetPcieThroughput") == 0
    assert driver.calls("nvmlDeviceGetViolationStatus") == 0


def test_nvlink_5_counters_are_the_drivers_own_sums_where_it_has_them(driver):
    with driver.state.batch():
        for field in (138, 139):
            driver.state.field(0, field, 0, code=3)
        for field, number in ((202, 1800), (204, 900), (206, 5)):
            driver.state.field(0, field, number, scope=ALL_LINKS)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert value(first, "nvidia_gpu_nvlink_bytes_total", 'direction="tx"') == 1800
    assert value(first, "nvidia_gpu_nvlink_bytes_total", 'direction="rx"') == 900
    assert value(first, "nvidia_gpu_nvlink_errors_total", 'type="malformed_packet"') == 5


def test_nvlink_5_bytes_are_summed_over_the_links_and_survive_a_link_that_goes_down(driver):
    with driver.state.batch():
        for field in (138, 139):
            driver.state.field(0, field, 0, code=3)
        for field in (202, 204):
            driver.state.field(0, field, 0, code=3, scope=ALL_LINKS)
        driver.state.field(0, 202, 100)
        driver.state.field(0, 204, 7)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
        assert value(first, "nvidia_gpu_nvlink_bytes_total", 'direction="tx"') == 1800
        driver.state.field(0, 202, 0, code=3)
        driver.state.field(0, 204, 8)
        wait_until(lambda: value(monitor.snapshots()[0], "nvidia_gpu_nvlink_bytes_total", 'direction="rx"') == 144)
        assert value(monitor.snapshots()[0], "nvidia_gpu_nvlink_bytes_total", 'direction="tx"') == 1800


def test_links_behind_one_that_the_board_leaves_out_are_counted(driver):
    driver.state.set(0, "nvlink_hole", 4)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert value(first, "nvidia_gpu_nvlink_links_active") == 17


def test_memory_temperature_is_read_although_r545_forgets_to_state_its_type(driver):
    driver.state.field(0, 82, 54 * 2.0**-1074, kind=0)  # the bits of the integer 54 under the name of a double
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert value(first, "nvidia_gpu_temperature_celsius", 'sensor="memory"') == 54


def test_a_memory_temperature_that_no_chip_survives_is_absent(driver):
    driver.state.field(0, 82, 255, kind=1)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert value(first, "nvidia_gpu_temperature_celsius", 'sensor="memory"') is None


def test_a_distance_to_the_limit_is_signed_whatever_type_the_driver_states(driver):
    driver.state.field(0, 193, 2**32 - 8, kind=1)
    driver.state.field(0, 194, -2, kind=5)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert value(first, "nvidia_gpu_temperature_margin_limit_celsius", 'kind="shutdown"') == -8
    assert value(first, "nvidia_gpu_temperature_margin_limit_celsius", 'kind="slowdown"') == -2


def test_a_field_that_the_driver_leaves_untouched_is_absent_and_not_zero(driver):
    driver.state.field(0, 29, 0, code=-1)
    driver.state.field(1, 29, 3, kind=1)
    with monitoring() as monitor:
        first, second = wait_until(lambda: all_up(monitor))[:2]
    assert value(first, "nvidia_gpu_retired_pages", 'cause="single_bit"') is None
    assert value(second, "nvidia_gpu_retired_pages", 'cause="single_bit"') == 3


def test_reasons_that_this_gpu_cannot_name_are_absent_and_not_zero(driver):
    driver.state.set(0, "reasons_offered", 0x1FF)
    with monitoring() as monitor:
        first, second = wait_until(lambda: all_up(monitor))[:2]
    assert value(first, "nvidia_gpu_throttle_active", 'reason="reliability"') is None
    assert value(first, "nvidia_gpu_throttle_active", 'reason="sw_power_cap"') == 0
    assert value(second, "nvidia_gpu_throttle_active", 'reason="reliability"') == 0


def test_a_call_that_is_refused_as_an_invalid_argument_is_made_the_older_way(driver):
    driver.state.error("nvmlDeviceGetTemperatureV", ALL, 2)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert value(first, "nvidia_gpu_temperature_celsius", 'sensor="gpu"') == 59


def test_a_deprecated_call_is_not_a_failure_that_is_counted_for_ever(driver):
    driver.state.error("nvmlDeviceGetTemperatureThreshold", ALL, 26)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert value(first, "nvidia_gpu_call_failures_total", 'code="26"') is None


def test_processes_of_a_535_driver_with_wider_entries_are_right(fake_nvml_r535):
    running = [(1000 + number, 1 << 30) for number in range(40)]
    fake_nvml_r535.state.processes(0, running)
    with fake_nvml_r535.attach(), monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert first.processes == tuple(GpuProcess(*one) for one in running)


def test_ecc_errors_and_row_remapping_grow(driver):
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        with driver.state.batch():
            driver.state.set(3, "ecc_uncorr", 2)
            driver.state.set(3, "remap_pending", 1)
            driver.state.set(3, "recovery", 1)
        volatile = 'severity="uncorrected",scope="volatile"'
        wait_until(lambda: value(monitor.snapshots()[3], "nvidia_gpu_ecc_errors_total", volatile) == 2)
        wait_until(lambda: value(monitor.snapshots()[3], "nvidia_gpu_row_remap_pending") == 1)
        wait_until(lambda: value(monitor.snapshots()[3], "nvidia_gpu_recovery_action") == 1)


def test_gpm_ratios_come_from_two_cycles_without_sleeping(driver):
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        first = wait_until(lambda: value(one := monitor.snapshots()[0], "nvidia_gpu_sm_active_ratio") and one)
    assert value(first, "nvidia_gpu_sm_active_ratio") == 0.83
    assert value(first, "nvidia_gpu_sm_occupancy_ratio") == 0.41
    assert value(first, "nvidia_gpu_tensor_active_ratio") == 0.37
    assert value(first, "nvidia_gpu_dram_active_ratio") == 0.52


def test_a_gpm_ratio_that_is_not_a_number_is_absent(driver):
    driver.state.set(0, "tensor", 101)  # the fake's NaN
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        first = wait_until(lambda: value(one := monitor.snapshots()[0], "nvidia_gpu_sm_active_ratio") and one)
    assert value(first, "nvidia_gpu_tensor_active_ratio") is None


def test_mig_devices_have_their_own_memory_gpm_and_processes(driver):
    layout = [(1, 0, "MIG-a", 10 << 30, 4 << 30, "1g.10gb"), (2, 0, "MIG-b", 20 << 30, 1 << 30, "2g.20gb")]
    driver.state.processes(1, [(11, 1000, 1, 0), (22, None, 2, 0)])
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        driver.state.mig(1, layout)  # switched on while we run
        gpu = wait_until(
            lambda: value(one := monitor.snapshots()[1], "nvidia_gpu_mig_sm_active_ratio", 'mig_uuid="MIG-b"') and one
        )
        text = text_of(monitor)
        assert gpu.mig_uuids == ("MIG-a", "MIG-b")
        assert value(gpu, "nvidia_gpu_mig_memory_used_bytes", 'mig_uuid="MIG-a"') == 4 << 30
        assert value(gpu, "nvidia_gpu_utilization_ratio") is None  # the driver has none for a MIG GPU
        assert value(gpu, "nvidia_gpu_remapped_rows", 'cause="correctable"') is None
        assert 'mig_uuid="MIG-b",gpu_instance="2",compute_instance="0",profile="2g.20gb"' in text
        driver.state.mig(1, [])
        wait_until(lambda: value(monitor.snapshots()[1], "nvidia_gpu_utilization_ratio") == 1)
        assert monitor.snapshots()[1].mig_uuids == ()


def test_processes_of_mig_devices_say_on_which_one_they_run(driver):
    driver.state.processes(1, [(11, 1000, 1, 0), (22, None, 2, 0)])
    driver.state.mig(1, [(1, 0, "MIG-a", 10 << 30, 0, "1g.10gb"), (2, 0, "MIG-b", 10 << 30, 0, "1g.10gb")])
    with monitoring() as monitor:
        gpu = wait_until(lambda: all_up(monitor))[1]
    assert gpu.processes == (GpuProcess(11, 1000, "MIG-a"), GpuProcess(22, None, "MIG-b"))


def test_processes_of_any_number_are_listed(driver):
    driver.state.processes(2, [(100 + n, 10) for n in range(50)])  # more than the first buffer holds
    with monitoring() as monitor:
        gpu = wait_until(lambda: all_up(monitor))[2]
        assert {process.pid for process in gpu.processes} == {100 + n for n in range(50)}
        assert value(gpu, "nvidia_gpu_utilization_ratio") == 1
        assert f'nvidia_gpu_processes{{gpu="2",uuid="{gpu.uuid}"}} 50' in text_of(monitor)


def test_a_busy_gpu_may_list_no_process(driver):
    with monitoring() as monitor:
        gpu = wait_until(lambda: all_up(monitor))[0]
    assert gpu.processes == ()
    assert value(gpu, "nvidia_gpu_utilization_ratio") == 1


def test_no_permission_drops_the_call_and_says_so_once(driver, caplog):
    driver.state.error("nvmlDeviceGetTotalEccErrors", ALL, 4)
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert "nvidia_gpu_ecc_errors_total" not in {family for family, _ in values(first)}
    assert [record.message for record in caplog.records if "ECC" in record.message] == [
        "NVML does not permit this exporter to read: ECC errors"
    ]


def test_an_unexpected_code_is_counted_and_the_rest_of_the_cycle_stays(driver):
    driver.state.error("nvmlDeviceGetMemoryInfo_v2", 0, 999)
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        wait_until(lambda: (value(monitor.snapshots()[0], "nvidia_gpu_call_failures_total", 'code="999"') or 0) > 2)
        assert value(monitor.snapshots()[0], "nvidia_gpu_memory_used_bytes") is None
        assert value(monitor.snapshots()[0], "nvidia_gpu_utilization_ratio") == 1
        driver.state.error("nvmlDeviceGetMemoryInfo_v2", 0, 0)
        wait_until(lambda: value(monitor.snapshots()[0], "nvidia_gpu_memory_used_bytes"))


# --- XID events ----------------------------------------------------------------------------------------------------


def xid_line(snapshot, code):
    return next((one.times for one in snapshot.reading.xids if one.code == code), None)


def test_critical_xids_are_there_with_0_before_the_first_event(driver):
    with monitoring() as monitor:
        first = wait_until(lambda: all_up(monitor))[0]
    assert {xid_line(first, code) for code in CRITICAL_XIDS} == {0}
    assert xid_line(first, 31) is None


def test_an_xid_is_counted_once_and_a_repeated_one_again(driver):
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        before = time.time()
        driver.state.xid(5, 79)
        wait_until(lambda: xid_line(monitor.snapshots()[5], 79) == 1)
        driver.state.xid(5, 79)
        driver.state.xid(5, 31)
        wait_until(lambda: xid_line(monitor.snapshots()[5], 79) == 2)
        wait_until(lambda: xid_line(monitor.snapshots()[5], 31) == 1)
        (last,) = (one.last for one in monitor.snapshots()[5].reading.xids if one.code == 31)
        assert before <= last <= time.time()
        assert xid_line(monitor.snapshots()[4], 79) == 0
        text = text_of(monitor)
        uuid = monitor.snapshots()[5].uuid
        assert f'nvidia_gpu_xid_errors_total{{gpu="5",uuid="{uuid}",xid="79"}} 2\n' in text
        assert f'nvidia_gpu_xid_errors_total{{gpu="5",uuid="{uuid}",xid="48"}} 0\n' in text
        assert f'nvidia_gpu_xid_last_timestamp_seconds{{gpu="5",uuid="{uuid}",xid="31"}}' in text


def test_a_gpu_that_cannot_report_xids_has_no_xid_series(driver):
    driver.state.set(0, "events", 0)
    with monitoring() as monitor:
        found = wait_until(lambda: all_up(monitor))
    assert xid_line(found[0], 79) is None
    assert xid_line(found[1], 79) == 0


# --- What breaks ---------------------------------------------------------------------------------------------------


def test_a_lost_gpu_takes_only_itself_down_and_comes_back(driver, caplog):
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        driver.state.lose(3)
        wait_until(lambda: not monitor.snapshots()[3].up)
        lost = monitor.snapshots()[3]
        assert lost.reason == "lost"
        assert not lost.samples
        wait_until(lambda: sum(one.up for one in monitor.snapshots()) == 7)
        text = text_of(monitor)
        assert f'nvidia_gpu_up{{gpu="3",uuid="{lost.uuid}",reason="lost"}} 0' in text
        assert f'nvidia_gpu_info{{gpu="3",uuid="{lost.uuid}",name=' in text
        assert f'nvidia_gpu_power_watts{{gpu="3",uuid="{lost.uuid}"' not in text
        wait_until(lambda: "vllm_vitals_nvml_restarts_total 0" not in text_of(monitor))
        driver.state.find(3)
        wait_until(lambda: all_up(monitor))
    assert len([record for record in caplog.records if "cannot be read: lost" in record.message]) == 1


def test_a_gpu_that_fell_off_the_bus_stays_on_the_page_as_lost(driver):
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        driver.state.gpus(7)
        driver.state.reload_driver()
        gone = wait_until(lambda: (one := monitor.snapshots()[7]).reason == "lost" and one)
        assert not gone.up
        wait_until(lambda: sum(one.up for one in monitor.snapshots()) == 7)


def test_a_gpu_lost_from_the_start_is_shown_by_its_index(driver):
    driver.state.error("nvmlDeviceGetHandleByIndex_v2", 2, 15)
    with monitoring() as monitor:
        wait_until(lambda: sum(one.up for one in monitor.snapshots()) == 7)
        wait_until(lambda: monitor.snapshots()[2].reason == "lost")
        driver.state.error("nvmlDeviceGetHandleByIndex_v2", 2, 0)
        found = wait_until(lambda: all_up(monitor))
        assert all(one.uuid for one in found)


def test_a_gpu_that_wants_a_reset_says_so(driver):
    driver.state.lose(1, code=16)
    with monitoring() as monitor:
        wait_until(lambda: len(monitor.snapshots()) == 8 and monitor.snapshots()[1].reason == "reset_required")
        wait_until(lambda: sum(one.up for one in monitor.snapshots()) == 7)


def test_a_gpu_that_hangs_takes_only_itself_down_and_comes_back_by_itself(driver):
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        driver.state.hang("nvmlDeviceGetUtilizationRates", 6)
        hung = wait_until(lambda: (one := monitor.snapshots()[6]).reason == "hang" and one)
        assert not hung.up
        assert not hung.samples
        others = [one.taken_at for one in monitor.snapshots() if one.index != 6]
        wait_until(
            lambda: all(
                one.taken_at > old
                for one, old in zip([one for one in monitor.snapshots() if one.index != 6], others, strict=True)
            )
        )
        wait_until(
            lambda: (
                'reason="hang"} 1'
                in "".join(
                    line
                    for line in text_of(monitor).splitlines(keepends=True)
                    if line.startswith('nvidia_gpu_collect_failures_total{gpu="6"')
                )
            )
        )
        driver.state.release()
        wait_until(lambda: all_up(monitor))
        assert "vllm_vitals_nvml_restarts_total 0" in text_of(monitor)


def test_a_gpu_that_hangs_does_not_keep_the_driver_from_being_opened_again_for_the_others(driver):
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        driver.state.hang("nvmlDeviceGetUtilizationRates", 6)
        wait_until(lambda: monitor.snapshots()[6].reason == "hang")
        driver.state.reload_driver()
        wait_until(lambda: "vllm_vitals_nvml_restarts_total 0" not in text_of(monitor))
        wait_until(lambda: sum(one.up for one in monitor.snapshots()) == 7)
        assert monitor.snapshots()[6].reason == "hang"
        inside = [thread for thread in threading.enumerate() if thread.name == "gpu-6"]
        assert len(inside) == 1  # no second thread is sent after the first
        driver.state.release()
        wait_until(lambda: all_up(monitor))


def test_a_gpu_that_hangs_while_the_driver_is_opened_does_not_keep_the_others_down(driver, monkeypatch):
    monkeypatch.setattr("vllm_vitals.exporter.gpus.nvml.source._IDENTIFY_SECONDS", 0.3)
    driver.state.hang("nvmlDeviceGetUUID", 0)
    with monitoring() as monitor:
        wait_until(lambda: sum(one.up for one in monitor.snapshots()) == 7)
        wait_until(lambda: monitor.snapshots()[0].reason == "hang")
        driver.state.release()
        found = wait_until(lambda: all_up(monitor))
        assert all(one.uuid for one in found)


def test_an_opening_that_hangs_holds_neither_start_nor_stop(driver, monkeypatch):
    monkeypatch.setattr("vllm_vitals.exporter.gpus.monitor._OPEN_HANG_SECONDS", 0.2)
    driver.state.hang("nvmlInitWithFlags", NO_GPU)
    begin = time.monotonic()
    with monitoring() as monitor:
        assert time.monotonic() - begin < 1.0
        assert monitor.reason() == "starting"
        wait_until(lambda: monitor.reason() == "hang")
        assert 'vllm_vitals_nvml_up{reason="hang"} 0' in text_of(monitor)
        driver.state.release()
        wait_until(lambda: all_up(monitor))


def test_after_a_driver_reload_the_driver_is_opened_again_and_counters_restart(driver):
    with monitoring() as monitor:
        before = wait_until(lambda: all_up(monitor))[0]
        driver.state.reload_driver()
        wait_until(lambda: "vllm_vitals_nvml_restarts_total 1" in text_of(monitor))
        after = wait_until(lambda: all_up(monitor))[0]
        wait_until(
            lambda: (
                (now := value(monitor.snapshots()[0], "nvidia_gpu_energy_joules_total")) is not None
                and now < value(before, "nvidia_gpu_energy_joules_total")
            )
        )
        # busy seconds are our own sum and go on
        assert value(after, "nvidia_gpu_busy_seconds_total") >= value(before, "nvidia_gpu_busy_seconds_total")
        driver.state.xid(0, 48)  # events are registered again, too
        wait_until(lambda: xid_line(monitor.snapshots()[0], 48) == 1)


@pytest.mark.parametrize(
    ("function", "code", "reason"),
    [
        ("nvmlInitWithFlags", 9, "no_driver"),
        ("nvmlInitWithFlags", 4, "no_permission"),
        ("nvmlInitWithFlags", 18, "version_mismatch"),
        ("nvmlInitWithFlags", 999, "failed"),
        ("nvmlDeviceGetCount_v2", 4, "no_permission"),
    ],
)
def test_a_driver_that_cannot_be_opened_gives_its_reason_and_is_tried_again(driver, function, code, reason):
    driver.state.error(function, NO_GPU, code)
    with monitoring() as monitor:
        wait_until(lambda: monitor.reason() == reason)
        assert f'vllm_vitals_nvml_up{{reason="{reason}"}} 0' in text_of(monitor)
        assert "vllm_vitals_gpus" not in text_of(monitor)
        driver.state.error(function, NO_GPU, 0)
        wait_until(lambda: all_up(monitor))
        assert monitor.reason() == ""


def test_no_gpu_at_all_is_a_failed_collection(driver):
    driver.state.gpus(0)
    with monitoring() as monitor:
        wait_until(lambda: monitor.reason() == "no_gpus")
        assert 'vllm_vitals_nvml_up{reason="no_gpus"} 0' in text_of(monitor)


def test_a_machine_without_the_library_says_so(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")  # found before a real one, and refused by the loader
    program = (
        "import time\n"
        "from vllm_vitals.exporter.gpus.monitor import GpuMonitor\n"
        "from vllm_vitals.exporter.gpus.nvml.source import NvmlSource\n"
        "monitor = GpuMonitor(NvmlSource())\n"
        "monitor.start()\n"
        "end = time.monotonic() + 10\n"
        "while monitor.reason() == 'starting' and time.monotonic() < end: time.sleep(0.01)\n"
        "print(monitor.reason(), monitor.snapshots())\n"
        "monitor.stop()\n"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30)
    assert done.stdout == "no_library ()\n", done.stderr


def test_a_subprocess_sees_the_fake_driver_through_the_loader(fake_nvml):
    program = (
        "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount(), pynvml.nvmlSystemGetDriverVersion())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=fake_nvml.env, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "8 580.65.06\n", done.stderr


# --- Switches ------------------------------------------------------------------------------------------------------


def test_every_family_of_a_gpu_belongs_to_one_group_or_to_the_collection_itself():
    grouped = [family for group in FAMILY_GROUPS.values() for family in group.families]
    assert len(grouped) == len(set(grouped))
    assert {metric.name for metric in NVIDIA_GPU} - set(grouped) == {
        "nvidia_gpu_up",
        "nvidia_gpu_info",
        "nvidia_gpu_snapshot_age_seconds",
        "nvidia_gpu_collect_duration_seconds",
        "nvidia_gpu_collect_failures_total",
        "nvidia_gpu_call_failures_total",
        "nvidia_gpu_unsupported_calls",
    }


@pytest.mark.parametrize("group", sorted(FAMILY_GROUPS))
def test_a_group_that_is_off_makes_no_driver_call_and_leaves_the_page(driver, group):
    driver.state.mig(1, [(1, 0, "MIG-a", 10 << 30, 0, "1g.10gb")])
    driver.state.set(2, "fans", 1)
    with monitoring(frozenset({group})) as monitor:
        wait_until(lambda: all_up(monitor))
        wait_until(lambda: driver.calls("nvmlDeviceGetPciInfo_v3") == 8)
        before = monitor.snapshots()[0].taken_at
        wait_until(lambda: monitor.snapshots()[0].taken_at > before + 2 * INTERVAL)
        text = text_of(monitor)
    assert [call for call in FAMILY_GROUPS[group].calls if driver.calls(call)] == []
    assert [field.id for field in FIELDS if field.group == group and driver.field_reads(field.id)] == []
    assert [family for family in FAMILY_GROUPS[group].families if f"\n{family}{{" in text] == []


def test_with_every_group_on_every_listed_call_is_made_but_those_for_older_drivers(driver):
    driver.state.mig(1, [(1, 0, "MIG-a", 10 << 30, 0, "1g.10gb")])
    driver.state.set(2, "fans", 1)
    with monitoring() as monitor:
        wait_until(lambda: all_up(monitor))
        wait_until(lambda: value(monitor.snapshots()[1], "nvidia_gpu_mig_sm_active_ratio", 'mig_uuid="MIG-a"'))
    assert {call for group in FAMILY_GROUPS.values() for call in group.calls if not driver.calls(call)} == {
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetComputeRunningProcesses_v2",
    }
    assert [field.id for field in FIELDS if not driver.field_reads(field.id)] == []


def test_opening_the_driver_again_and_again_leaves_no_thread_behind(driver):
    with monitoring(backoff=(0.01, 0.01)) as monitor:
        wait_until(lambda: all_up(monitor))
        threads = threading.active_count()
        for restarts in range(1, 6):
            driver.state.reload_driver()
            wait_until(lambda expected=restarts: f"vllm_vitals_nvml_restarts_total {expected}" in text_of(monitor))
            wait_until(lambda: all_up(monitor))
        wait_until(lambda: threading.active_count() <= threads)
    wait_until(lambda: not [one for one in threading.enumerate() if one.name.startswith("gpu")])


def test_a_name_that_is_no_group_is_refused():
    with pytest.raises(ValueError, match="no such family group: colour"):
        GpuMonitor(NvmlSource(), families_off=frozenset({"colour"}))

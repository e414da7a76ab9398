"""Simulated GPUs: they follow the load, and they are what the exporter expects of a source."""

import re
import threading
import time
from itertools import pairwise

import pytest
from vllm_vitals.demo.fleet import TICK, Fleet
from vllm_vitals.demo.gpus import Load, SimulatedGpu, SimulatedGpus
from vllm_vitals.exporter.gpus.monitor import GpuMonitor
from vllm_vitals.exporter.gpus.nvml.fields import FIELDS
from vllm_vitals.exporter.gpus.nvml.readers import _REASONS
from vllm_vitals.exporter.gpus.types import GpuError
from vllm_vitals.vocabulary.ours import NVIDIA_GPU

BUSY = Load(prefill=0.2, decode=0.8, memory_share=0.9, pid=5_000_001)


def values(gpu: SimulatedGpu, slow: bool = True) -> dict[str, float]:
    return {f"{family}{{{labels}}}": value for family, labels, value in gpu.read(slow)}


def after(load: Load, seconds: float = 60.0) -> dict[str, float]:
    gpus = SimulatedGpus(1, 0, 0.0)
    for tick in range(1, round(seconds / TICK) + 1):
        gpus.advance(tick * TICK, {0: load})
    return values(gpus.open()[0])


def test_every_family_is_in_the_vocabulary_with_its_labels():
    known = {metric.name: metric.labels[2:] for metric in NVIDIA_GPU}
    for family, labels, _ in SimulatedGpus(1, 0, 0.0).open()[0].read(slow=True):
        assert tuple(re.findall(r'(\w+)="', labels)) == known[family]


def test_throttle_reasons_are_those_of_the_nvml_source():
    def reasons(family: str) -> set[str]:
        samples = SimulatedGpus(1, 0, 0.0).open()[0].read(slow=False)
        return {labels.split('"')[1] for name, labels, _ in samples if name == family}

    timed = {field.label[1] for field in FIELDS if field.family == "nvidia_gpu_throttle_seconds_total"}
    assert reasons("nvidia_gpu_throttle_seconds_total") == timed - {"power_smoothing"}  # newer than an H100
    assert reasons("nvidia_gpu_throttle_active") == {labels.split('"')[1] for _, labels in _REASONS}


def test_no_series_comes_twice():
    series = [(family, labels) for family, labels, _ in SimulatedGpus(1, 0, 0.0).open()[0].read(slow=True)]
    assert len(series) == len(set(series))


def test_slow_families_come_only_when_asked_for():
    gpu = SimulatedGpus(1, 0, 0.0).open()[0]
    assert "nvidia_gpu_ecc_errors_total" not in {sample.family for sample in gpu.read(slow=False)}
    assert "nvidia_gpu_ecc_errors_total" in {sample.family for sample in gpu.read(slow=True)}


def test_nobody_takes_the_name_for_a_real_gpu():
    assert SimulatedGpus(1, 0, 0.0).open()[0].name == "NVIDIA H100 80GB HBM3 (simulated)"


def test_energy_is_the_integral_of_power():
    fleet = Fleet.build("burst")
    gpus = fleet.gpus.open()
    joules = [0.0] * len(gpus)
    for tick in range(1, 601):
        fleet.advance(tick * TICK)
        for gpu in gpus:
            joules[gpu.index] += values(gpu, slow=False)['nvidia_gpu_power_watts{kind="instant"}'] * TICK
    for gpu in gpus:
        assert values(gpu)["nvidia_gpu_energy_joules_total{}"] == pytest.approx(joules[gpu.index], rel=1e-6)


@pytest.mark.parametrize(
    ("load", "watts"),
    [
        (Load(), (60, 95)),
        (BUSY, (540, 700)),
        (Load(prefill=1.0, memory_share=0.9, pid=1), (660, 700)),
        (Load(hung=True, memory_share=0.9, pid=1), (200, 260)),
    ],
)
def test_power_follows_the_load(load, watts):
    low, high = watts
    assert low <= after(load)['nvidia_gpu_power_watts{kind="average"}'] <= high


def test_prefill_is_tensor_work_and_decode_is_memory_work():
    prefill, decode = after(Load(prefill=1.0, pid=1)), after(Load(decode=1.0, pid=1))
    assert prefill["nvidia_gpu_tensor_active_ratio{}"] > 3 * decode["nvidia_gpu_tensor_active_ratio{}"]
    assert decode["nvidia_gpu_dram_active_ratio{}"] > 2 * prefill["nvidia_gpu_dram_active_ratio{}"]
    assert prefill['nvidia_gpu_power_watts{kind="average"}'] > decode['nvidia_gpu_power_watts{kind="average"}']


def test_a_gpu_without_an_engine_is_idle():
    fleet = Fleet.build("steady")
    fleet.advance(60.0)
    gpu = fleet.gpus.open()[7]
    now = values(gpu)
    assert now["nvidia_gpu_utilization_ratio{}"] == 0
    assert now["nvidia_gpu_memory_used_bytes{}"] == 0
    assert now['nvidia_gpu_clock_hertz{domain="sm"}'] < 400e6
    assert [v for name, v in now.items() if "throttle" in name and v] == []
    assert gpu.processes() == []


def test_an_engine_holds_nine_tenths_of_the_memory():
    fleet = Fleet.build("steady")
    fleet.advance(1.0)
    for gpu in fleet.gpus.open()[:6]:
        now = values(gpu)
        total = now["nvidia_gpu_memory_total_bytes{}"]
        used = now["nvidia_gpu_memory_used_bytes{}"]
        assert used == pytest.approx(0.9 * total)
        assert used + now["nvidia_gpu_memory_free_bytes{}"] + now["nvidia_gpu_memory_reserved_bytes{}"] == total
        assert [process.used_memory_bytes for process in gpu.processes()] == [used]


def test_simulated_processes_cannot_be_processes_of_this_machine():
    fleet = Fleet.build("steady")
    fleet.advance(1.0)
    pids = [process.pid for gpu in fleet.gpus.open() for process in gpu.processes()]
    assert len(pids) == len(set(pids)) == 6
    assert min(pids) > 4_194_304  # the highest pid_max of Linux


def test_busy_time_is_the_engines_busy_time():
    fleet = Fleet.build("slow-prefill")
    fleet.advance(120.0)
    work = fleet.servers[1].engines[0].work
    busy = values(fleet.gpus.open()[4])["nvidia_gpu_busy_seconds_total{}"]
    assert busy == pytest.approx(work.prefill_seconds + work.decode_seconds)
    assert 10.0 < busy < 119.0


def test_only_a_tensor_parallel_engine_uses_nvlink():
    fleet = Fleet.build("steady")
    fleet.advance(30.0)
    sent = [values(gpu)['nvidia_gpu_nvlink_bytes_total{direction="tx"}'] for gpu in fleet.gpus.open()]
    assert min(sent[:4]) > 1e9
    assert sent[4:] == [0, 0, 0, 0]


def test_counters_never_fall():
    fleet = Fleet.build("xid")
    gpu = fleet.gpus.open()[0]
    seen = []
    for second in range(200):
        fleet.advance(second)
        seen.append({name: value for name, value in values(gpu).items() if "_total{" in name})
    for before, now in pairwise(seen):
        assert all(now[name] >= value for name, value in before.items())


def test_a_lost_gpu_says_so_and_comes_back():
    gpus = SimulatedGpus(2, 0, 0.0)
    lost, other = gpus.open()
    gpus.lose(0)
    with pytest.raises(GpuError) as read:
        lost.read(slow=False)
    with pytest.raises(GpuError):
        lost.processes()
    assert read.value.reason == "lost"
    assert other.read(slow=False)
    gpus.recover(0)
    assert lost.read(slow=False)


def test_no_gpu_is_an_error_as_it_is_for_the_driver():
    with pytest.raises(GpuError) as opened:
        SimulatedGpus(0, 0, 0.0).open()
    assert opened.value.reason == "no_gpus"


def test_waiting_for_events_ends_with_the_first_one():
    gpus = SimulatedGpus(1, 0, 1000.0)
    gpus.advance(5.0, {})
    found = []
    waiter = threading.Thread(target=lambda: found.extend(gpus.events(30.0)))
    waiter.start()
    gpus.report_xid(0, 79)
    waiter.join(10.0)
    assert not waiter.is_alive()
    assert found == [(gpus.uuids[0], 79, 1005.0)]
    assert gpus.events(0.0) == []


def test_waiting_for_events_gives_up_in_time():
    assert SimulatedGpus(1, 0, 0.0).events(0.01) == []


def test_reading_from_other_threads_while_the_clock_runs():
    fleet = Fleet.build("steady")
    stop = threading.Event()
    reads, failures = [], []

    def read(gpu: SimulatedGpu) -> None:
        energy = 0.0
        try:
            while not stop.is_set():
                now = values(gpu)
                assert now["nvidia_gpu_energy_joules_total{}"] >= energy
                energy = now["nvidia_gpu_energy_joules_total{}"]
                reads.append(gpu.index)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(gpu,)) for gpu in fleet.gpus.open()[:3]]
    for thread in threads:
        thread.start()
    second = 0
    while len(set(reads)) < 3 or second < 5:
        second += 1
        assert second < 10_000
        fleet.advance(second)
    stop.set()
    for thread in threads:
        thread.join(10.0)
    assert failures == []


def test_the_exporter_collects_from_it_and_counts_its_xid():
    fleet = Fleet.build("xid")
    fleet.advance(29.0)
    monitor = GpuMonitor(fleet.gpus, interval=0.05, slow_interval=0.05, backoff=(0.05, 0.1))
    monitor.start()
    try:
        until(lambda: [gpu.up for gpu in monitor.snapshots()] == [True] * 8)
        fleet.advance(31.0)
        until(lambda: monitor.snapshots()[1].reason == "lost")
        until(lambda: [one.times for one in monitor.snapshots()[1].reading.xids if one.code == 79] == [1])
        assert [gpu.up for gpu in monitor.snapshots()] == [index != 1 for index in range(8)]
        fleet.advance(91.0)
        until(lambda: monitor.snapshots()[1].up)
    finally:
        monitor.stop()


def until(condition) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)

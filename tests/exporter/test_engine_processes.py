"""CPU and memory of an engine's processes by role, over real processes."""

import os
import subprocess
import sys
import time

import pytest
from vllm_vitals.exporter.machine.engine_processes import EngineProcesses

BUSY = "while True: pass"
IDLE = "import time; time.sleep(60)"


@pytest.fixture
def start():
    started = []

    def run(code):
        started.append(subprocess.Popen([sys.executable, "-S", "-c", code]))
        return started[-1].pid

    yield run
    for process in started:
        process.kill()
        process.wait()


def told(processes, family):
    return {
        sample.labels: sample.value
        for sample in processes.samples()
        if sample.family == f"vllm_vitals_engine_process_{family}"
    }


def cpu(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for_cpu(pid, seconds):
    deadline = time.monotonic() + 15
    while cpu(pid) < seconds:
        assert time.monotonic() < deadline
        time.sleep(0.01)


API = 'server="llm",role="api_server"'


def test_busiest_process_of_a_role_shows_a_saturated_core(start):
    busy, idle = start(BUSY), start(IDLE)
    pids = {"llm": {busy: "api_server", idle: "api_server", os.getpid(): "worker"}}
    processes = EngineProcesses()
    processes.collect(pids)
    assert told(processes, "max_cpu_ratio") == {}  # one reading says nothing of a rate
    before = cpu(busy)
    wait_for_cpu(busy, before + 0.3)
    processes.collect(pids)
    assert 0.2 < told(processes, "max_cpu_ratio")[API] < 1.2
    counts = {s.labels: s.value for s in processes.samples() if s.family == "vllm_vitals_engine_processes"}
    assert counts == {API: 2, 'server="llm",role="worker"': 1}
    assert told(processes, "resident_memory_bytes")[API] > 2 << 20


def test_cpu_counter_does_not_fall_when_a_process_ends(start):
    busy, idle = start(BUSY), start(IDLE)
    pids = {"llm": {busy: "api_server", idle: "api_server"}}
    processes = EngineProcesses()
    wait_for_cpu(busy, 0.2)
    processes.collect(pids)
    total = told(processes, "cpu_seconds_total")[API]
    assert total >= 0.2
    os.kill(busy, 9)
    processes.collect({"llm": {idle: "api_server"}})
    assert told(processes, "cpu_seconds_total")[API] >= total
    processes.collect({"llm": {}})
    assert told(processes, "cpu_seconds_total")[API] >= total
    assert told(processes, "resident_memory_bytes") == {}


def test_old_process_that_is_found_late_does_not_look_like_a_burst(start):
    idle, busy = start(IDLE), start(BUSY)
    wait_for_cpu(busy, 0.3)
    processes = EngineProcesses()
    processes.collect({"llm": {idle: "api_server"}})
    before = told(processes, "cpu_seconds_total")[API]
    processes.collect({"llm": {idle: "api_server", busy: "api_server"}})
    assert told(processes, "cpu_seconds_total")[API] - before < 0.1


def test_new_process_counts_from_its_start(start):
    idle = start(IDLE)
    processes = EngineProcesses()
    processes.collect({"llm": {idle: "api_server"}})
    busy = start(BUSY)
    wait_for_cpu(busy, 0.2)
    processes.collect({"llm": {idle: "api_server", busy: "api_server"}})
    assert told(processes, "cpu_seconds_total")[API] >= 0.2


def test_server_that_is_no_longer_known_has_no_series(start):
    processes = EngineProcesses()
    processes.collect({"llm": {os.getpid(): "api_server"}})
    assert processes.samples()
    processes.collect({})
    assert processes.samples() == []


def stat(folder, start, ticks):
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 {start} 0 10\n")


def test_number_that_went_to_a_stranger_is_not_counted_until_the_next_walk(tmp_path):
    processes = EngineProcesses(tmp_path)
    walk = {"llm": {7: "worker"}}
    stat(tmp_path / "7", 100, 500)
    processes.collect(walk)
    stat(tmp_path / "7", 200, 90000)
    for _ in range(2):
        processes.collect(walk)
        assert told(processes, "cpu_seconds_total") == {'server="llm",role="worker"': 5.0}
        assert told(processes, "resident_memory_bytes") == {}

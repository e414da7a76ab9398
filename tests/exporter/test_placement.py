"""Which engine runs on which GPU: each source on plain facts, then the thread over real processes."""

import os
import socket
import subprocess
import time

import pytest
from vllm_vitals.exporter.machine.process_tree import Listener, Process, ProcessTree
from vllm_vitals.exporter.placement.pod_resources import PodDevices
from vllm_vitals.exporter.placement.rules import EngineFacts, ExporterLocation, GpuFacts, Pods, place, samples
from vllm_vitals.exporter.placement.thread import Placement

URL = "http://127.0.0.1:8000/metrics"
A100 = "NVIDIA A100-SXM4-80GB"
POD_UID = "0f1e2d3c-aaaa-bbbb-cccc-0123456789ab"


def gpu(index, *pids, name=A100, mig=()):
    held = tuple((pid, size, "") for pid, size in pids)
    return GpuFacts(index, f"GPU-{index:08d}-0000-0000-0000-000000000000", held, mig, name, index)


def engine(server="llm", url=URL, pairs=(("0", "tiny"),), gpus=()):
    return EngineFacts(server, url, pairs, gpus)


def tree(*processes, port=8000, owners=(10,), others=(), address="127.0.0.1"):
    known = {process.pid: process for process in processes}
    listeners = (Listener("", address, port, 1, tuple(known.keys() & set(owners))), *others)
    return ProcessTree(known, listeners, {"": frozenset({"10.0.0.5", "127.0.0.1"})})


def process(pid, parent, title, **details):
    argv = ("python", "-m", "vllm.entrypoints.openai.api_server") if title == "server" else (title,)
    return Process(pid, parent, 100, argv, **details)


def single(**details):
    """One server with an engine core that is its own worker, as with one GPU."""
    return tree(process(10, 1, "server", **details), process(11, 10, "VLLM::EngineCore", **details))


def data_parallel(workers=1, **details):
    """Two ranks with some workers each: cores 20 and 30, workers from 21 and 31."""
    below = [
        process(core + n, core, f"VLLM::Worker_TP{n}", **details)
        for core in (20, 30)
        for n in range(1, workers + 1)
        if workers > 1
    ]
    return tree(
        process(10, 1, "server", **details),
        process(20, 10, "VLLM::EngineCore_DP0", **details),
        process(30, 10, "VLLM::EngineCore_DP1", **details),
        *below,
    )


RANKS = (("0", "tiny"), ("1", "tiny"))


def join(placed):
    return [(row.engine, row.gpu, row.source) for row in placed]


# --- config -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("token", ["1", "GPU-00000001-0000-0000-0000-000000000000", "GPU-00000001", "MIG-77"])
def test_configured_gpu_wins_over_what_the_driver_says(token):
    gpus = [gpu(0, (11, 5)), gpu(1, mig=("MIG-77aa", "MIG-88bb"))]
    placed = place([engine(gpus=(token,))], gpus, single())
    assert [(row.gpu, row.uuid, row.source) for row in placed] == [("1", gpus[1].uuid, "config")]


def test_configured_gpu_that_is_not_there_leaves_the_engine_unknown():
    placed = place([engine(gpus=("7",))], [gpu(0, (11, 5))], single())
    assert join(placed) == [("0", "", "unknown")]


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [
        (("2", "3"), [("0", "2"), ("1", "3")]),
        (("3", "1", "0", "2"), [("0", "3"), ("0", "1"), ("1", "0"), ("1", "2")]),
        (("0", "1", "2"), [("", "0"), ("", "1"), ("", "2")]),  # does not split evenly, so nobody guesses
    ],
)
def test_configured_gpus_go_to_data_parallel_ranks_in_their_order(tokens, rows):
    placed = place([engine(pairs=RANKS, gpus=tokens)], [gpu(n) for n in range(4)], tree())
    assert [(row.engine, row.gpu) for row in placed] == rows


def test_configured_gpus_get_their_ranks_from_the_processes_on_them():
    placed = place([engine(pairs=RANKS, gpus=("0", "1"))], [gpu(0, (20, 5)), gpu(1, (30, 7))], data_parallel())
    assert [(row.engine, row.gpu, row.memory_bytes) for row in placed] == [("0", "0", 5), ("1", "1", 7)]


# --- process ----------------------------------------------------------------------------------------------------------
def test_gpu_process_below_the_server_places_the_engine():
    placed = place([engine()], [gpu(0), gpu(1, (11, 5 << 30))], single())
    assert [(row.server, row.engine, row.model_name, row.gpu, row.source) for row in placed] == [
        ("llm", "0", "tiny", "1", "process")
    ]
    assert placed[0].memory_bytes == 5 << 30


def test_each_rank_gets_the_gpus_of_its_own_workers():
    gpus = [gpu(0, (21, 1)), gpu(1, (22, 2)), gpu(2, (31, 3)), gpu(3, (32, 4))]
    placed = place([engine(pairs=RANKS)], gpus, data_parallel(workers=2))
    assert join(placed) == [("0", "0", "process"), ("0", "1", "process"), ("1", "2", "process"), ("1", "3", "process")]


def test_rank_that_the_page_does_not_know_is_left_open():
    placed = place([engine(pairs=(("4", "tiny"), ("5", "tiny")))], [gpu(0, (20, 1))], data_parallel())
    assert join(placed) == [("", "0", "process")]


def test_every_model_of_the_engine_gets_a_row_but_memory_is_told_once():
    placed = place([engine(pairs=(("0", "a"), ("0", "b")))], [gpu(0, (11, 5))], single())
    assert [row.model_name for row in placed] == ["a", "b"]
    assert [sample.value for sample in samples(placed) if sample.family.endswith("memory_bytes")] == [5]


def test_memory_that_the_driver_does_not_tell_is_missing_and_not_zero():
    placed = place([engine()], [gpu(0, (11, None))], single())
    assert join(placed) == [("0", "0", "process")]
    assert placed[0].memory_bytes is None


def test_two_engines_on_one_machine_are_kept_apart():
    processes = tree(
        process(10, 1, "server"),
        process(11, 10, "VLLM::EngineCore"),
        process(40, 1, "server"),
        process(41, 40, "VLLM::EngineCore"),
        others=(Listener("", "0.0.0.0", 8001, 2, (40,)),),
    )
    engines = [engine(), engine("other", "http://localhost:8001/metrics", (("0", "big"),))]
    placed = place(engines, [gpu(0, (41, 1)), gpu(1, (11, 1))], processes)
    assert [(row.server, row.gpu) for row in placed] == [("llm", "1"), ("other", "0")]


def test_container_pid_from_the_driver_is_matched_through_its_alias():
    processes = tree(process(10, 1, "server"), process(11, 10, "VLLM::EngineCore", aliases=(57,)))
    assert join(place([engine()], [gpu(0), gpu(1, (57, 1))], processes)) == [("0", "1", "process")]


def test_host_name_counts_as_local_when_it_resolves_to_this_machine():
    named = engine(url="http://box:8000/metrics")
    processes = tree(process(10, 1, "server"), process(11, 10, "VLLM::EngineCore"), address="0.0.0.0")
    gpus = [gpu(0, (11, 1)), gpu(1)]
    assert join(place([named], gpus, processes, resolved={"box": ("10.0.0.5",)})) == [("0", "0", "process")]
    assert join(place([named], gpus, processes, resolved={"box": ("10.0.0.6",)})) == [("0", "", "unknown")]


# --- environ ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1"}, "1"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-00000002"}, "2"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-77"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-GPU-00000002-0000-0000-0000-000000000000/1/0"}, "2"),
        ({"CUDA_VISIBLE_DEVICES": "1,2"}, "1"),  # one worker uses the first one
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-00000002"}, "2"),
        ({"NVIDIA_VISIBLE_DEVICES": "3:0"}, "3"),
        ({"NVIDIA_VISIBLE_DEVICES": "2,1", "CUDA_VISIBLE_DEVICES": "1"}, "2"),  # counts within {1, 2} in bus order
        ({"NVIDIA_VISIBLE_DEVICES": "all", "CUDA_VISIBLE_DEVICES": "1"}, "1"),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, None),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, None),
        ({"CUDA_VISIBLE_DEVICES": "GPU-99"}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({}, None),
    ],
)
def test_variables_of_the_engine_name_its_gpu(environ, expected):
    gpus = [gpu(0), gpu(1), gpu(2), gpu(3)]
    if "MIG-77" in environ.values() or "3:0" in environ.values():
        gpus[3] = gpu(3, mig=("MIG-77aa",))
    placed = place([engine(), engine("other", "http://10.9.9.9:1/")], gpus, single(environ=environ))
    mine = [row for row in placed if row.server == "llm"]
    assert join(mine) == [("0", expected, "environ") if expected else ("0", "", "unknown")]


@pytest.mark.parametrize(
    ("order", "source"), [("", "unknown"), ("FASTEST_FIRST", "unknown"), ("PCI_BUS_ID", "environ")]
)
def test_index_among_different_gpus_means_nothing_without_pci_order(order, source):
    environ = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": order}
    gpus = [gpu(0, name="NVIDIA T400"), gpu(1)]
    placed = place([engine(), engine("far", "http://10.9.9.9:1/")], gpus, single(environ=environ))
    assert placed[0].source == source


def test_no_visible_device_is_a_statement_and_nothing_weaker_overrules_it():
    placed = place([engine()], [gpu(0), gpu(1)], single(environ={"CUDA_VISIBLE_DEVICES": ""}))
    assert join(placed) == [("0", "", "unknown")]


def test_ranks_that_share_a_list_take_consecutive_slices_of_it():
    processes = data_parallel(workers=2, environ={"CUDA_VISIBLE_DEVICES": "4,5,6,7"})
    placed = place([engine(pairs=RANKS)], [gpu(n) for n in range(8)], processes)
    assert [(row.engine, row.gpu) for row in placed] == [("0", "4"), ("0", "5"), ("1", "6"), ("1", "7")]


def test_ranks_with_lists_of_their_own_keep_them():
    processes = tree(
        process(10, 1, "server", environ={"CUDA_VISIBLE_DEVICES": "0,1"}),
        process(20, 10, "VLLM::EngineCore_DP0", environ={"CUDA_VISIBLE_DEVICES": "1"}),
        process(30, 10, "VLLM::EngineCore_DP1", environ={"CUDA_VISIBLE_DEVICES": "0"}),
    )
    placed = place([engine(pairs=RANKS)], [gpu(0), gpu(1)], processes)
    assert [(row.engine, row.gpu) for row in placed] == [("0", "1"), ("1", "0")]


def test_list_too_short_for_the_ranks_leaves_the_rank_open():
    processes = data_parallel(workers=2, environ={"CUDA_VISIBLE_DEVICES": "0,1,2"})
    placed = place([engine(pairs=RANKS)], [gpu(n) for n in range(4)], processes)
    assert {row.engine for row in placed if row.gpu == "2"} == {""}


def test_index_in_a_container_with_devices_by_other_means_is_not_trusted():
    processes = single(container="c" * 64, environ={"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "void"})
    gpus = [gpu(0), gpu(1)]
    others = [engine(), engine("far", "http://10.9.9.9:1/")]
    assert place(others, gpus, processes)[0].source == "unknown"
    assert place(others, gpus, processes, here=ExporterLocation(container="c" * 64))[0].source == "environ"


def test_machine_index_is_not_ours_when_we_see_a_part_of_the_machine():
    processes = single(container="c" * 64, environ={"NVIDIA_VISIBLE_DEVICES": "0"})
    engines = [engine(), engine("far", "http://10.9.9.9:1/")]
    seen = [gpu(0)]  # index 0 for us, 3 for the machine
    assert place(engines, seen, processes, here=ExporterLocation(nvidia_visible_devices="3"))[0].source == "unknown"
    same = place(engines, seen, processes, here=ExporterLocation(nvidia_visible_devices="0"))
    assert (same[0].source, same[0].gpu) == ("environ", "0")


# --- pod-resources ----------------------------------------------------------------------------------------------------
def pods(*devices, names=None):
    return Pods((PodDevices("llm", "vllm-0", devices), PodDevices("llm", "vllm-1", ("GPU-00000000",))), names or {})


def test_sidecar_takes_the_gpus_of_its_own_pod():
    placed = place(
        [engine()], [gpu(0), gpu(1)], tree(), pods("GPU-00000001"), ExporterLocation(pod="vllm-0", namespace="llm")
    )
    assert join(placed) == [("0", "1", "pod-resources")]


def test_pod_of_another_namespace_is_not_ours():
    engines = [engine(), engine("far", "http://10.9.9.9:1/")]
    told = pods("GPU-00000001")
    assert (
        place(engines, [gpu(0), gpu(1)], tree(), told, ExporterLocation(pod="vllm-0", namespace="x"))[0].source
        == "unknown"
    )
    assert place(engines, [gpu(0), gpu(1)], tree(), told, ExporterLocation(pod="vllm-0", namespace="llm"))[0].gpu == "1"


def test_pod_uid_of_the_cgroup_leads_to_the_pod():
    processes = single(pod_uid=POD_UID, container="c" * 64)
    told = pods("GPU-00000001", names={POD_UID: ("llm", "vllm-0")})
    assert join(place([engine()], [gpu(0), gpu(1)], processes, told)) == [("0", "1", "pod-resources")]


def test_pod_name_in_the_environment_leads_to_the_pod():
    processes = single(pod_uid=POD_UID, environ={"HOSTNAME": "vllm-0"})
    assert join(place([engine()], [gpu(0), gpu(1)], processes, pods("GPU-00000001"))) == [("0", "1", "pod-resources")]


def test_stateful_set_name_in_the_url_leads_to_the_pod():
    far = engine(url="http://vllm-0.vllm.llm.svc.cluster.local:8000/metrics")
    assert join(place([far], [gpu(0), gpu(1)], tree(), pods("GPU-00000001"))) == [("0", "1", "pod-resources")]


@pytest.mark.parametrize(("device", "expected"), [("MIG-77", "1"), ("minor:1", "1"), ("GPU-9", "")])
def test_devices_of_a_pod_are_mig_uuids_and_minors_too(device, expected):
    gpus = [gpu(0), gpu(1, mig=("MIG-77",))]
    engines = [engine(), engine("far", "http://10.9.9.9:1/")]
    placed = place(engines, gpus, tree(), pods(device), ExporterLocation(pod="vllm-0", namespace="llm"))
    assert placed[0].gpu == expected


def test_two_engines_in_one_pod_are_not_told_apart_by_it():
    engines = [engine("a"), engine("b", "http://127.0.0.1:8001/metrics")]
    placed = place(engines, [gpu(0)], tree(), pods("GPU-00000000"), ExporterLocation(pod="vllm-0", namespace="llm"))
    assert {row.source for row in placed} == {"unknown"}


# --- cgroup, sole engine, unknown -------------------------------------------------------------------------------------
def test_gpu_process_in_the_engines_container_places_it():
    ray_worker = process(90, 1, "ray::RayWorkerWrapper", container="c" * 64)
    processes = tree(process(10, 1, "server", container="c" * 64), ray_worker)
    placed = place([engine(), engine("far", "http://10.9.9.9:1/")], [gpu(0), gpu(1, (90, 1))], processes)
    assert join(placed)[0] == ("0", "1", "cgroup")


def test_container_with_two_engines_says_nothing():
    processes = tree(
        process(10, 1, "server", container="c" * 64),
        process(40, 1, "server", container="c" * 64),
        process(90, 1, "ray::RayWorkerWrapper", container="c" * 64),
        others=(Listener("", "127.0.0.1", 8001, 2, (40,)),),
    )
    engines = [engine("a"), engine("b", "http://127.0.0.1:8001/metrics")]
    assert {row.source for row in place(engines, [gpu(0, (90, 1))], processes)} == {"unknown"}


def test_only_engine_of_the_machine_owns_all_gpus():
    assert join(place([engine()], [gpu(0), gpu(1)], tree())) == [("0", "0", "sole-engine"), ("0", "1", "sole-engine")]


def test_only_engine_does_not_own_a_gpu_that_a_stranger_holds():
    processes = ProcessTree({**single().processes, 70: Process(70, 1, 1, ("python", "train.py"))}, single().listeners)
    assert join(place([engine()], [gpu(0, (70, 1)), gpu(1)], processes)) == [("0", "1", "sole-engine")]


def test_only_engine_elsewhere_owns_nothing_here():
    placed = place([engine(url="http://192.0.2.7:8000/metrics")], [gpu(0)], tree())
    assert [(row.server, row.engine, row.gpu, row.uuid, row.source) for row in placed] == [
        ("llm", "0", "", "", "unknown")
    ]


def test_engine_without_a_page_yet_has_a_row_with_open_names():
    placed = place([engine(pairs=())], [gpu(0, (11, 1))], single())
    assert [(row.engine, row.model_name, row.gpu) for row in placed] == [("", "", "0")]


@pytest.mark.parametrize("url", ["", "http://[::1", "http://host:99999/", "nonsense", "http://%zz/"])
def test_broken_url_is_unknown_and_does_not_raise(url):
    placed = place([engine(url=url), engine("b")], [gpu(0)], single())
    assert placed[0].source == "unknown"


# --- the thread -------------------------------------------------------------------------------------------------------
@pytest.fixture
def server(tmp_path):
    """A real `python .../vllm serve` that listens and has a child with an engine core's title."""
    script = tmp_path / "vllm"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "subprocess.Popen(['VLLM::EngineCore', '60'], executable='/bin/sleep')\n"
        "time.sleep(60)\n"
    )
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    fd = listening.fileno()
    os.set_inheritable(fd, True)
    started = subprocess.Popen(["python3", str(script), "serve"], pass_fds=[fd], start_new_session=True)
    port = listening.getsockname()[1]
    listening.close()
    yield started.pid, port
    os.killpg(started.pid, 9)
    started.wait()


def wait_for(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)
    return found


def wait_for_core(placement):
    """Return the roles once the core has its title: between fork and exec it looks like its parent."""

    def found():
        roles = placement.pids().get("llm", {})
        return sorted(roles.values()) == ["api_server", "engine_core"] and roles

    return wait_for(found)


@pytest.fixture
def placement(tmp_path):
    running = Placement(kubelet=None, pod_logs=tmp_path, pause=0.05, backstop=60)
    running.start()
    yield running
    running.stop()


def values(samples, family):
    return [sample.value for sample in samples if sample.family == family]


def test_thread_finds_the_real_engine_process_on_its_gpu_and_follows_its_memory(server, placement):
    pid, port = server
    facts = engine(url=f"http://localhost:{port}/metrics")
    placement.update([facts], [gpu(0), gpu(1)])
    roles = wait_for_core(placement)
    assert roles[pid] == "api_server"
    core = next(child for child, role in roles.items() if role == "engine_core")
    placement.update([facts], [gpu(0), gpu(1, (core, 100))])
    wait_for(lambda: [row.source for row in placement.placed()] == ["process"])
    walks = values(placement.samples(), "vllm_vitals_placement_walks_total")
    for size in range(200, 220):
        placement.update([facts], [gpu(0), gpu(1, (core, size))])
        assert [row.memory_bytes for row in placement.placed()] == [size]
        time.sleep(0.01)  # four pauses in all: time for walks that must not be
    assert values(placement.samples(), "vllm_vitals_placement_walks_total") == walks


def test_thread_walks_again_when_a_process_of_the_engine_has_gone(server, placement):
    pid, port = server
    facts = engine(url=f"http://127.0.0.1:{port}/metrics")
    placement.update([facts], [gpu(0)])
    roles = wait_for_core(placement)
    core = next(child for child, role in roles.items() if role == "engine_core")
    placement.update([facts], [gpu(0, (core, 100))])
    wait_for(lambda: [row.source for row in placement.placed()] == ["process"])  # settled: no walk is due by itself
    os.kill(core, 9)
    os.kill(pid, 9)
    wait_for(lambda: placement.pids() == {"llm": {}})


def test_engine_that_is_no_longer_known_has_no_rows_at_once(placement):
    placement.update([engine(gpus=("0",))], [gpu(0)])
    wait_for(placement.placed)
    placement.update([], [gpu(0)])
    assert placement.placed() == ()


def test_sick_kubelet_and_missing_configured_gpu_are_counted_and_the_rest_stays(tmp_path):
    path = tmp_path / "kubelet.sock"
    path.touch()  # a file, not a socket
    sick = Placement(kubelet=path, pod_logs=tmp_path)
    sick.update([engine(gpus=("9",)), engine("b", gpus=("0",))], [gpu(0)])
    sick.walk()
    assert [(row.server, row.source) for row in sick.placed()] == [("llm", "unknown"), ("b", "config")]
    failures = {s.labels: s.value for s in sick.samples() if s.family == "vllm_vitals_placement_failures_total"}
    assert failures == {'source="config"': 1, 'source="process"': 0, 'source="pod-resources"': 1}

"""Metrics of the machine, read from the real one; the neighbour is a real HTTP server."""

import http.server
import os
import socket
import threading
import time

import psutil
import pytest
from vllm_vitals.exporter.machine import host as host_module
from vllm_vitals.exporter.machine.host import Host, disks, has_node_exporter, is_physical_interface
from vllm_vitals.vocabulary.ours import OURS

NODE_PAGE = b"# HELP go_goroutines x\ngo_goroutines 8\n" + b"# filler\n" * 4000 + b"\nnode_load1 0.5\n"


@pytest.fixture
def neighbour():
    """Serve one page on a port; returns serve(body, status) -> URL."""
    servers = []

    def serve(body, status=200):
        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/metrics"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def by_family(host):
    found = {}
    for sample in host.samples():
        found.setdefault(sample.family, {})[sample.labels] = sample.value
    return found


def test_every_family_of_this_machine_is_there_once_and_in_the_vocabulary():
    host = Host("on")
    host.collect()
    found = by_family(host)
    assert found["vllm_vitals_host_up"] == {'reason=""': 1}
    assert found.keys() <= OURS.keys()
    assert sum(len(rows) for rows in found.values()) == len(host.samples())  # no series twice
    assert found["vllm_vitals_host_memory_total_bytes"][""] == psutil.virtual_memory().total
    assert found["vllm_vitals_host_boot_time_seconds"][""] == pytest.approx(psutil.boot_time(), abs=2)
    missing = {name for name in OURS if name.startswith("vllm_vitals_host_")} - found.keys()
    optional = ("disk", "filesystem", "network", "oom_kills")  # a container may have none of its own
    assert not [name for name in missing if not name.startswith(tuple(f"vllm_vitals_host_{o}" for o in optional))]


def test_oom_kills_are_the_kernels_own_count():
    host = Host("on")
    host.collect()
    with open("/proc/vmstat") as lines:
        kernel = [float(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    assert list(by_family(host).get("vllm_vitals_host_oom_kills_total", {}).values()) == kernel


def test_cpu_modes_do_not_count_guest_time_twice():
    host = Host("on")
    host.collect()
    modes = by_family(host)["vllm_vitals_host_cpu_seconds_total"]
    assert not [labels for labels in modes if "guest" in labels]
    with open("/proc/stat") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]  # user includes guest
    assert sum(modes.values()) == pytest.approx(sum(ticks) / os.sysconf("SC_CLK_TCK"), rel=0.01)


def test_only_whole_disks_with_a_device_behind_them_count(tmp_path):
    for name, is_physical in (("nvme0n1", True), ("sda", True), ("loop0", False), ("dm-0", False), ("zram0", False)):
        (tmp_path / "block" / name).mkdir(parents=True)
        if is_physical:
            (tmp_path / "block" / name / "device").mkdir()
    assert disks(tmp_path) == {"nvme0n1", "sda"}
    assert disks(tmp_path / "missing") == frozenset()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("eth0", "ens5", "enp3s0f1np1", "bond0", "ib0", "wlan0", "enP2p1s0v0", "eni1")),
        *(
            (name, False)
            for name in ("lo", "veth12ab", "docker0", "br-0a1b2c", "cali123", "cni0", "flannel.1", "tunl0")
        ),
        *(
            (name, False)
            for name in ("lxc_health", "flannel.1", "cilium_host", "kube-ipvs0", "virbr0", "tap0", "podman1")
        ),
        ("eni0123456789a", False),
        ("ifb1", False),
    ],
)
def test_interfaces_of_containers_and_tunnels_are_left_out(name, expected):
    assert is_physical_interface(name) is expected


def test_silent_where_a_node_exporter_answers(neighbour):
    host = Host("auto", node_exporter=neighbour(NODE_PAGE))
    host.collect()
    assert by_family(host) == {"vllm_vitals_host_up": {'reason="node_exporter"': 0}}


def test_mode_on_reads_although_a_node_exporter_answers(neighbour):
    host = Host("on", node_exporter=neighbour(NODE_PAGE))
    host.collect()
    assert by_family(host)["vllm_vitals_host_up"] == {'reason=""': 1}


@pytest.mark.parametrize(("body", "status"), [(b"<html>node_</html>", 200), (b"", 200), (NODE_PAGE, 404)])
def test_something_else_on_the_port_is_no_node_exporter(neighbour, body, status):
    host = Host("auto", node_exporter=neighbour(body, status))
    host.collect()
    assert by_family(host)["vllm_vitals_host_up"] == {'reason=""': 1}


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/metrics", "ftp://x", "", "http://[::1"])
def test_nobody_on_the_port_is_no_node_exporter(url):
    assert not has_node_exporter(url, deadline=0.5)


def test_neighbour_that_drips_is_given_up_within_the_deadline():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        stop = threading.Event()

        def drip():
            client, _ = listening.accept()
            with client:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        client.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        assert not has_node_exporter(f"http://127.0.0.1:{listening.getsockname()[1]}/metrics", deadline=0.4)
        assert time.monotonic() - began < 1.5
        stop.set()
        thread.join(5)


def test_off_says_so_and_starts_nothing():
    host = Host("off")
    before = threading.active_count()
    host.start()
    assert threading.active_count() == before
    assert by_family(host) == {"vllm_vitals_host_up": {'reason="off"': 0}}


def test_thread_reads_and_stops():
    host = Host("on", interval=0.05)
    host.start()
    deadline = time.monotonic() + 10
    while not host.samples():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    host.stop()
    assert "host" not in {thread.name for thread in threading.enumerate()}


def test_part_that_fails_leaves_the_others(tmp_path, caplog):
    host = Host("on", procfs=str(tmp_path))  # no vmstat here
    for _ in range(2):
        host.collect()
    found = by_family(host)
    assert found["vllm_vitals_host_up"] == {'reason=""': 1}
    assert "vllm_vitals_host_oom_kills_total" not in found
    assert "vllm_vitals_host_load1" in found
    assert len([record for record in caplog.records if "oom_kills" in record.message]) == 1  # said once


def test_reading_that_hangs_becomes_failed_instead_of_stale(monkeypatch):
    host = Host("on", interval=1.0)
    host.collect()
    later = time.monotonic() + 60
    monkeypatch.setattr(host_module.time, "monotonic", lambda: later)
    assert by_family(host) == {"vllm_vitals_host_up": {'reason="failed"': 0}}

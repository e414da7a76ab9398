"""The process walk: over real processes that look like vLLM's, and over procfs trees of containers."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vllm_vitals.exporter.machine.cgroups import membership
from vllm_vitals.exporter.machine.process_tree import (
    Process,
    engine_pids,
    find_vllm_servers,
    is_server,
    rank_of,
    read_tree,
    role,
    serving_pids,
    start_time,
)

# One file plays every process: `launcher` is the parent, other names become titles by being argv[0]. The plan is
# name(child,child); `!` hands the listening socket on, as vLLM does for --api-server-count.
NODE = """
import os, signal, socket, subprocess, sys, time
me, fd, plan = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
keep = me.endswith("!")
for name, below in plan:
    inherits = (fd,) if fd >= 0 and "!" in name + repr(below) else ()
    argv = [name.rstrip("!"), "-S", __file__, name, str(fd if inherits else -1), repr(below)]
    subprocess.Popen(argv, executable=os.environ["NODE_PYTHON"], pass_fds=inherits, stdout=subprocess.DEVNULL)
if fd >= 0 and not keep:
    os.close(fd)
time.sleep(60)
"""

DP2_API2 = [  # as a real vLLM 0.32 shows with --data-parallel-size 2 --api-server-count 2
    ("VLLM::DPCoordinator", []),
    ("VLLM::EngineCore_DP0", [("VLLM::Worker", [])]),
    ("VLLM::EngineCore_DP1", [("VLLM::Worker", [])]),
    ("VLLM::APIServer_0!", []),
    ("VLLM::APIServer_1!", []),
]


@pytest.fixture
def start_server(tmp_path):
    """Start `python .../vllm serve` with a plan of children; returns (pid, port)."""
    started = []
    script = tmp_path / "vllm"
    script.write_text("import sys\nsys.argv.remove('serve')\n__file__ = sys.argv.pop(1)\nexec(open(__file__).read())\n")
    node = tmp_path / "node.py"
    node.write_text(NODE)

    def start(plan, *, keeps_socket=True, wrapper=()):
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        me = "launcher!" if keeps_socket else "launcher"
        fd = listening.fileno()
        argv = [*wrapper, sys.executable, str(script), "serve", str(node), me, str(fd), repr(plan)]
        environ = os.environ | {
            "NODE_PYTHON": sys.executable
        }  # a process with a title for argv[0] does not know its own
        process = subprocess.Popen(argv, pass_fds=[fd], start_new_session=True, env=environ)
        started.append(process)
        port = listening.getsockname()[1]
        listening.close()
        wanted = repr(plan).count("::") + 1 + bool(wrapper)

        def complete():
            tree = read_tree(ports=[port])
            below = list(tree.descendants(process.pid))
            titled = sum(is_server(tree.processes[pid]) for pid in below)
            holders = {pid for sock in tree.listeners if sock.port == port for pid in sock.pids}
            return len(below) == wanted and titled >= wanted - bool(wrapper) and len(holders) == expected_holders

        expected_holders = repr(plan).count("!") + keeps_socket
        wait_until(complete)
        return process.pid, port

    yield start
    for process in started:
        os.killpg(process.pid, 9)
        process.wait()


def wait_until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def titles(tree, pids):
    return sorted(tree.processes[pid].argv[0].rpartition("/")[2].replace("VLLM::", "") for pid in pids)


def test_two_ranks_and_two_api_servers_are_found_behind_one_port(start_server):
    launcher, port = start_server(DP2_API2)
    tree = read_tree(ports=[port])
    owners = serving_pids(tree, ("127.0.0.1",), port)
    roles = engine_pids(tree, owners)
    assert launcher in owners
    assert len(owners) == 3
    assert sorted(roles.values()) == [
        "api_server",
        "api_server",
        "engine_core",
        "engine_core",
        "other",  # the coordinator
        "other",  # the launcher, which only waits
        "worker",
        "worker",
    ]
    ranks = {rank_of(tree, pid, roles) for pid, kind in roles.items() if kind == "worker"}
    assert ranks == {"0", "1"}  # Worker carries no rank: it comes from the engine core above


def test_api_server_without_engines_below_leads_up_to_its_launcher_but_not_to_the_shell(start_server):
    script = 'echo > /dev/null; "$@"; true'
    shell, port = start_server(DP2_API2, keeps_socket=False, wrapper=("/bin/sh", "-c", script, "sh"))
    tree = read_tree(ports=[port])
    roles = engine_pids(tree, serving_pids(tree, ("127.0.0.1",), port))
    assert sorted(roles.values()).count("engine_core") == 2
    assert shell not in roles
    assert os.getpid() not in roles


def test_servers_of_one_data_parallel_supervisor_are_not_mixed(start_server):
    plan = [
        ("VLLM::APIServer_DP0!", [("VLLM::EngineCore_DP0", [])]),
        ("VLLM::APIServer_DP1", [("VLLM::EngineCore_DP1", [])]),
    ]
    _, port = start_server(plan, keeps_socket=False)
    tree = read_tree(ports=[port])
    roles = engine_pids(tree, serving_pids(tree, ("127.0.0.1",), port))
    assert titles(tree, roles) == ["APIServer_DP0", "EngineCore_DP0"]


def test_listening_servers_are_discovered_once_per_port(start_server):
    launcher, port = start_server(DP2_API2)
    found = [server for server in find_vllm_servers(read_tree()) if server.port == port]
    assert [(server.host, server.pid) for server in found] == [("127.0.0.1", launcher)]


def test_listening_process_that_is_no_server_is_not_discovered_but_owns_its_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        port = own.getsockname()[1]
        tree = read_tree(ports=[port])
        assert port not in [server.port for server in find_vllm_servers(tree)]
        assert serving_pids(tree, ("127.0.0.1",), port) == {os.getpid()}
        assert serving_pids(tree, ("::1",), port) == frozenset()


def test_dual_stack_socket_answers_for_an_ipv4_address():
    with socket.socket(socket.AF_INET6) as own:
        own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        own.bind(("::", 0))
        own.listen()
        port = own.getsockname()[1]
        assert serving_pids(read_tree(ports=[port]), ("127.0.0.1",), port) == {os.getpid()}


def test_start_time_tells_a_reused_pid_from_the_process_before():
    child = subprocess.Popen(["sleep", "60"])
    started = start_time(child.pid)
    own = start_time(os.getpid())
    assert started is not None
    assert own is not None
    assert started >= own
    child.kill()
    child.wait()
    assert start_time(child.pid) is None


def test_secrets_of_an_environment_are_not_kept(start_server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    launcher, port = start_server([])
    environ = read_tree(ports=[port]).processes[launcher].environ
    assert environ is not None
    assert environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert "HF_TOKEN" not in environ


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/v/bin/python /v/bin/vllm serve model --port 8000", True),
        ("/usr/bin/python3.12 -X dev -m vllm.entrypoints.openai.api_server --model m", True),
        ("python3 -u -m sglang.launch_server --model-path m", True),
        ("python /x/vllm/entrypoints/openai/api_server.py", True),
        ("vllm serve model", True),
        ("VLLM::APIServer_0", True),
        ("team7::EngineCore", True),
        ("sglang::scheduler_DP0_TP1", True),
        ("bash -c vllm serve model", False),
        ("tini -- vllm serve model", False),
        ("/usr/bin/containerd-shim-runc-v2 -id vllm serve", False),
        ("python supervise.py vllm serve", False),
        ("python -c import vllm.entrypoints", False),
        ("vllm bench serve", False),
        ("grep VLLM::", False),
        ("", False),
    ],
)
def test_only_the_server_itself_counts_as_server(command, expected):
    argv = tuple(command.split()) if "::" not in command else (command,)
    assert is_server(Process(1, 0, 0, argv)) is expected


def test_roles_of_sglang_titles():
    names = ("sglang::scheduler_TP0", "sglang::detokenizer", "sglang::http_server")
    assert [role(Process(1, 0, 0, (name,))) for name in names] == ["worker", "other", "api_server"]


CONTAINER = "3f" * 32
POD = "0f1e2d3c-aaaa-bbbb-cccc-0123456789ab"
SLICE = POD.replace("-", "_")


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        (f"12:memory:/docker/{CONTAINER}\n", (CONTAINER, "")),
        (f"0::/system.slice/docker-{CONTAINER}.scope\n", (CONTAINER, "")),
        (f"0::/user.slice/user-1000.slice/libpod-{CONTAINER}.scope/container\n", (CONTAINER, "")),
        (f"4:memory:/kubepods/burstable/pod{POD}/{CONTAINER}\n", (CONTAINER, POD)),
        (f"0::/kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-{CONTAINER}.scope\n", (CONTAINER, POD)),
        (f"0::/kubepods-besteffort-pod{SLICE}.slice:cri-containerd:{CONTAINER}\n", (CONTAINER, POD)),
        (f"0::/kubepods.slice/kubepods-pod{SLICE}.slice/crio-{CONTAINER}.scope\n", (CONTAINER, POD)),
        (f"0::/kubelet/kubepods/pod{POD.replace('-', '')}/{CONTAINER}\n", (CONTAINER, POD.replace("-", ""))),
        (f"0::/../cri-containerd-{CONTAINER}.scope\n", (CONTAINER, "")),  # seen from a sidecar's own cgroup name space
        (f"1:name=systemd:/docker/{'aa' * 32}/docker/{CONTAINER}\n", (CONTAINER, "")),  # docker in docker
        ("0::/\n", ("", "")),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ("", "")),
        ("", ("", "")),
    ],
)
def test_container_and_pod_of_each_runtime(cgroup, expected):
    assert membership(cgroup) == expected


class Procfs:
    """A procfs tree on disk, in the kernel's formats."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.net(root / "net", [], ["10.0.0.5", "127.0.0.1"])
        (root / "self/ns").mkdir(parents=True)
        os.symlink("net:[1]", root / "self/ns/net")

    def net(self, folder, listening, addresses):
        folder.mkdir(parents=True)
        rows = ["  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"]
        for n, (address, port, inode) in enumerate(listening):
            raw = int.from_bytes(socket.inet_aton(address), sys.byteorder)
            rows.append(
                f"{n:4}: {raw:08X}:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0"
                f" {inode} 1 0000000000000000 100 0 0 10 0"
            )
        (folder / "tcp").write_text("\n".join(rows) + "\n")
        lines = "".join(f"           |-- {address}\n              /32 host LOCAL\n" for address in addresses)
        (folder / "fib_trie").write_text("Main:\n  +-- 0.0.0.0/0 3 0 5\n" + lines)

    def process(self, pid, parent, argv, *, sockets=(), ns="", netns=1, cgroup="0::/\n", environ=(), kernel=False):
        folder = self.root / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "ns").mkdir()
        flags = 0x0020_8040 if kernel else 0x0040_0100
        (folder / "stat").write_text(f"{pid} (a) b) S {parent} 1 1 0 -1 {flags} " + "0 " * 12 + "4711 0 0 0\n")
        (folder / "cmdline").write_bytes(b"".join(arg.encode() + b"\0" for arg in argv))
        (folder / "status").write_text(f"Name:\tx\nNSpid:\t{ns or pid}\n")
        (folder / "cgroup").write_text(cgroup)
        (folder / "environ").write_text("".join(f"{pair}\0" for pair in environ))
        os.symlink(f"net:[{netns}]", folder / "ns/net")
        for n, inode in enumerate(sockets):
            os.symlink(f"socket:[{inode}]", folder / "fd" / str(n))


@pytest.fixture
def procfs(tmp_path):
    return Procfs(tmp_path / "proc")


def test_published_port_of_a_container_leads_through_docker_proxy_to_the_engine(procfs):
    (procfs.root / "net/tcp").unlink()
    (procfs.root / "net/fib_trie").unlink()
    (procfs.root / "net").rmdir()
    procfs.net(procfs.root / "net", [("0.0.0.0", 8000, 100)], ["127.0.0.1", "172.17.0.1"])
    proxy = ["/usr/bin/docker-proxy", "-proto", "tcp", "-host-ip", "0.0.0.0", "-host-port", "8000"]
    procfs.process(50, 1, [*proxy, "-container-ip", "172.17.0.2", "-container-port", "9000"], sockets=[100])
    procfs.process(60, 1, ["python3", "-m", "vllm.entrypoints.openai.api_server"], sockets=[200], netns=2)
    procfs.net(procfs.root / "60/net", [("0.0.0.0", 9000, 200)], ["127.0.0.1", "172.17.0.2"])
    procfs.process(61, 60, ["VLLM::EngineCore"], netns=2)
    tree = read_tree(procfs.root, ports=[8000])
    assert engine_pids(tree, serving_pids(tree, ("127.0.0.1",), 8000)) == {60: "api_server", 61: "engine_core"}
    assert serving_pids(tree, ("172.17.0.2",), 9000) == {60}  # the container's address, from the machine
    assert serving_pids(tree, ("172.17.0.3",), 9000) == frozenset()
    assert find_vllm_servers(tree) == []  # a container's own 0.0.0.0:9000 cannot be reached under that name from here


def test_alias_counts_only_when_the_number_is_not_a_live_user_process(procfs):
    procfs.process(2, 0, [], kernel=True)
    procfs.process(57, 2, [], kernel=True)
    procfs.process(58, 1, ["python", "train.py"])
    procfs.process(4000, 1, ["vllm", "serve"], ns="4000 1")
    procfs.process(4001, 4000, ["VLLM::EngineCore"], ns="4001 57")
    procfs.process(4002, 4000, ["VLLM::Worker"], ns="4002 58")
    tree = read_tree(procfs.root, pids=[57, 58])
    assert tree.local_pid(57) == 4001
    assert tree.local_pid(58) == 58
    assert tree.local_pid(4002) == 4002
    assert tree.local_pid(9) is None


def test_alias_that_two_containers_share_means_nobody(procfs):
    for pid in (4000, 5000):
        procfs.process(pid, 1, ["vllm", "serve"], ns=f"{pid} 7")
    assert read_tree(procfs.root).local_pid(7) is None


def test_broken_procfs_entries_are_left_out(procfs):
    procfs.process(10, 1, ["vllm", "serve"])
    procfs.process(11, 10, ["VLLM::EngineCore"])
    (procfs.root / "11/stat").write_text("11 (x")
    (procfs.root / "net/tcp").write_text("header\n   0: ZZ:1F40 x 0A x x x x x 1\n\xff\n")
    tree = read_tree(procfs.root, ports=[8000], pids=[11, 12])
    assert set(tree.processes) == {10}
    assert tree.listeners == ()


def test_missing_procfs_is_an_empty_tree(tmp_path):
    assert read_tree(tmp_path / "nothing").processes == {}

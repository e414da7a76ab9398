"""Processes, listening sockets and name spaces of this machine as one snapshot of /proc, for all engines at once."""

import contextlib
import ipaddress
import itertools
import os
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from .cgroups import membership

PROC: Final = Path("/proc")

# Titles that the engines give to their processes: PREFIX::NAME, the prefix from VLLM_PROCESS_NAME_PREFIX (vLLM: 0.32.0
# seen live; SGLang: from its source, where schedulers are the processes that hold the GPU).
_TITLE = re.compile(
    r"^[^\s/]+::(APIServer|EngineCore|Worker|DPCoordinator|DPSupervisor|scheduler|detokenizer|tokenizer"
    r"|data_parallel_controller|http_server|router)"
)
_TITLE_ROLES: Final = {
    "APIServer": "api_server",
    "http_server": "api_server",
    "EngineCore": "engine_core",
    "Worker": "worker",
    "scheduler": "worker",
}
_RANK = re.compile(r"::\w*?_DP(\d+)(?=_|$)")
_SERVER_MODULES: Final = ("vllm.entrypoints", "sglang.launch_server")
_SERVER_SCRIPTS: Final = ("vllm/entrypoints/", "sglang/launch_server.py")
_SERVER_PROGRAMS: Final = ("vllm", "sglang")  # followed by `serve`
_PYTHON_OPTIONS_WITH_VALUE: Final = ("-X", "-W", "--check-hash-based-pycs")
_PF_KTHREAD: Final = 0x0020_0000  # include/linux/sched.h
_LISTEN: Final = "0A"
# The only variables that are kept of an environment: it may hold keys.
_VARIABLES: Final = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "NVIDIA_VISIBLE_DEVICES",
        "HOSTNAME",
        "POD_NAME",
        "POD_NAMESPACE",
    }
)


@dataclass(frozen=True, slots=True)
class Process:
    """One process.

    Attributes:
        pid: as this procfs numbers it.
        parent: pid of the parent.
        start: clock ticks after boot; with the pid it names a process for good (pids are reused).
        argv: command line, cut at 4 KiB; a process title is its only element.
        kernel: a kernel thread.
        aliases: pids of the same process in inner PID name spaces (NSpid); only where details were read.
        container: container id, empty when in none.
        pod_uid: uid of the Kubernetes pod, empty when in none.
        environ: the few variables that say something of GPUs and pods; None when not read or not readable.
    """

    pid: int
    parent: int
    start: int
    argv: tuple[str, ...] = ()
    kernel: bool = False
    aliases: tuple[int, ...] = ()
    container: str = ""
    pod_uid: str = ""
    environ: Mapping[str, str] | None = None


class Listener(NamedTuple):
    """A TCP socket in LISTEN; `namespace` is empty for the network name space that we are in ourselves."""

    namespace: str
    address: str
    port: int
    inode: int
    pids: tuple[int, ...] = ()


class Server(NamedTuple):
    """A listening socket of a process that looks like an inference server."""

    host: str
    port: int
    pid: int


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """One walk.

    Attributes:
        processes: by pid.
        listeners: TCP sockets in LISTEN, with owners as far as they were looked for.
        addresses: the machine addresses of each network name space that was read; "" is our own.
        denied: processes whose file descriptors we may not list (needs root or CAP_SYS_PTRACE).
        children: pids by parent pid.
    """

    processes: Mapping[int, Process] = field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()
    addresses: Mapping[str, frozenset[str]] = field(default_factory=dict)
    denied: int = 0
    children: Mapping[int, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "children", _children(self.processes))

    def descendants(self, pid: int) -> Iterator[int]:
        """Yield the pid and everything below it."""
        return _below(pid, self.children)

    def local_pid(self, pid: int) -> int | None:
        """Return the process that a pid told by the driver means, or None when that cannot be said.

        The driver numbers either from the outside or as the caller's name space does. A live user process of that
        number is taken first; an NSpid alias only when the number is free here or a kernel thread (which no GPU
        process is), and only when a single process carries it.
        """
        direct = self.processes.get(pid)
        if direct is not None and not direct.kernel:
            return pid
        aliased = [process.pid for process in self.processes.values() if pid in process.aliases]
        return aliased[0] if len(aliased) == 1 else None


# --- What a process is ------------------------------------------------------------------------------------------------
def is_titled(process: Process) -> bool:
    """Return whether the process carries a title that vLLM or SGLang gives."""
    return bool(process.argv and _TITLE.match(process.argv[0]))


def is_server(process: Process) -> bool:
    """Return whether this is an inference server's own process, not a shell or supervisor that merely names one."""
    return is_titled(process) or _is_server_command(process.argv)


def is_spawned(process: Process) -> bool:
    """Return whether this is a multiprocessing child: what engine processes look like without setproctitle."""
    return any("multiprocessing.spawn" in arg or "multiprocessing.forkserver" in arg for arg in process.argv[:6])


def role(process: Process) -> str:
    """Return api_server, engine_core, worker or other."""
    if process.argv and (title := _TITLE.match(process.argv[0])):
        return _TITLE_ROLES.get(title[1], "other")
    return "api_server" if _is_server_command(process.argv) else "other"


def rank(process: Process) -> str:
    """Return the data-parallel rank in the title (`VLLM::EngineCore_DP1` gives `1`), or an empty string."""
    found = _RANK.search(process.argv[0]) if process.argv else None
    return found[1] if found else ""


def _is_server_command(argv: tuple[str, ...]) -> bool:
    if not argv:
        return False
    program = os.path.basename(argv[0])  # noqa: PTH119 - a Path per process is the dearest part of a walk
    rest = list(argv[1:])
    if program.startswith(("python", "pypy")):
        while rest and rest[0].startswith("-"):
            option = rest.pop(0)
            if option == "-m":
                return bool(rest) and rest[0].startswith(_SERVER_MODULES)
            if option.startswith("-c"):
                return False
            if option in _PYTHON_OPTIONS_WITH_VALUE and rest:
                rest.pop(0)
        if not rest:
            return False
        script = rest.pop(0)
        if any(part in script for part in _SERVER_SCRIPTS):
            return True
        program = os.path.basename(script)  # noqa: PTH119 - as above
    return program in _SERVER_PROGRAMS and rest[:1] == ["serve"]


# --- Decisions over a tree --------------------------------------------------------------------------------------------
def is_own(address: str, tree: ProcessTree) -> bool:
    """Return whether a numeric address is loopback or one of this machine's (our network name space's) own."""
    return ipaddress.ip_address(address).is_loopback or address in tree.addresses.get("", frozenset())


def serving_pids(tree: ProcessTree, addresses: Iterable[str], port: int) -> frozenset[int]:
    """Return the processes that hold the listening socket behind these numeric addresses and this port.

    An address of our own name space is looked up there, any other one in the name spaces of the server processes
    (containers). docker-proxy holds a published port on behalf of a container: its arguments say for which.
    """
    for address in addresses:
        found: set[int] = set()
        for pid in {pid for listener in _behind(tree, address, port) for pid in listener.pids}:
            onwards = _docker_proxy_target(tree.processes[pid].argv)
            if onwards is None:
                found.add(pid)
            else:
                found.update(inside for inner in _behind(tree, *onwards) for inside in inner.pids)
        if found:  # `localhost` has two addresses, and ::1 may be somebody else's
            return frozenset(found)
    return frozenset()


def engine_pids(tree: ProcessTree, owners: Collection[int]) -> Mapping[int, str]:
    """Return pid -> role for the server whose listening socket these processes hold, and for all that belongs to it.

    API servers of one launcher may hold the port beside it or without it. Where no engine process is below the
    owners, the walk goes up to the topmost ancestor that is still an engine's own process; never to a shell, init,
    supervisor or container shim. It goes up only then: a data-parallel supervisor has one server per child.
    """
    members = {pid for owner in owners for pid in tree.descendants(owner)}
    if not any(_does_work(tree.processes[pid]) for pid in members - set(owners)):
        tops = {_topmost(tree, owner) for owner in owners}
        members |= {pid for top in tops for pid in tree.descendants(top)}
    roles = {pid: role(tree.processes[pid]) for pid in members}
    for pid in members:  # the parent of titled API servers only waits for them
        below = tree.children.get(pid, ())
        if roles[pid] == "api_server" and any(roles.get(child) == "api_server" for child in below):
            roles[pid] = "other"
    return roles


def rank_of(tree: ProcessTree, pid: int, members: Collection[int]) -> str:
    """Return the data-parallel rank of a process: its engine core's or, without one, its own; empty when not told."""
    own = ""
    while pid in members:
        process = tree.processes[pid]
        own = own or rank(process)
        if role(process) == "engine_core":
            return rank(process) or own
        pid = process.parent
    return own


def find_vllm_servers(tree: ProcessTree) -> list[Server]:
    """Return the sockets that vLLM and SGLang servers listen on in our own network name space, by port.

    Engine cores and workers listen, too (ZMQ, Gloo), so only API servers and untitled server commands count.
    """
    found: dict[int, Server] = {}
    for listener in tree.listeners:
        owners = sorted(pid for pid in listener.pids if is_server(tree.processes[pid]))
        if listener.namespace or not any(role(tree.processes[pid]) == "api_server" for pid in owners):
            continue
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.address, listener.address)
        known = found.get(listener.port)
        if known is None or ":" in known.host:  # IPv4 first: a dual-stack socket answers on both
            found[listener.port] = Server(host, listener.port, owners[0])
    return [found[port] for port in sorted(found)]


def _behind(tree: ProcessTree, address: str, port: int) -> Iterator[Listener]:
    numeric = ipaddress.ip_address(address)
    own = is_own(address, tree)
    for listener in tree.listeners:
        if listener.port != port or own == bool(listener.namespace):
            continue
        if not own and address not in tree.addresses.get(listener.namespace, frozenset()):
            continue
        bound = ipaddress.ip_address(listener.address)
        # `::` takes IPv4 as well, unless bindv6only; then the port has an IPv4 socket of its own.
        if bound == numeric or (bound.is_unspecified and bound.version >= numeric.version):
            yield listener


def _docker_proxy_target(argv: tuple[str, ...]) -> tuple[str, int] | None:
    if not argv or not argv[0].endswith("docker-proxy"):
        return None
    options = dict(itertools.pairwise(argv))
    with contextlib.suppress(KeyError, ValueError):
        return str(ipaddress.ip_address(options["-container-ip"])), int(options["-container-port"])
    return None


def _does_work(process: Process) -> bool:
    return role(process) in {"engine_core", "worker"} or (is_spawned(process) and not is_titled(process))


def _topmost(tree: ProcessTree, pid: int) -> int:
    while (parent := tree.processes.get(tree.processes[pid].parent)) is not None:
        if not is_server(parent) and not is_spawned(parent):
            break
        pid = parent.pid
    return pid


def _children(processes: Mapping[int, Process]) -> Mapping[int, tuple[int, ...]]:
    children: dict[int, list[int]] = defaultdict(list)
    for process in processes.values():
        children[process.parent].append(process.pid)
    return {pid: tuple(below) for pid, below in children.items()}


def _below(pid: int, children: Mapping[int, tuple[int, ...]]) -> Iterator[int]:
    waiting = [pid]
    seen = set()
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            yield current
            waiting.extend(children.get(current, ()))


# --- Reading ----------------------------------------------------------------------------------------------------------
def read_tree(proc: Path = PROC, *, ports: Collection[int] = (), pids: Collection[int] = ()) -> ProcessTree:
    """Return one snapshot.

    File descriptors are the dear part, so they are listed for server processes first, and for all others only when a
    port in question has no owner yet. Nothing raises: what has gone or is forbidden is left out.

    Args:
        proc: where procfs is mounted.
        ports: ports of the engines: whoever listens there is looked for.
        pids: GPU processes of the driver: their name spaces and containers are read as well.
    """
    root = str(proc)
    processes = {process.pid: process for process in _read_processes(root)}
    children = _children(processes)
    servers = {pid for pid, process in processes.items() if is_server(process)}
    candidates = {below for pid in servers for below in _below(pid, children)}

    sockets = _read_listeners(f"{root}/net", "")
    addresses = {"": _read_addresses(f"{root}/net")}
    own = _link(f"{root}/self/ns/net")
    for pid in sorted(servers):
        namespace = _link(f"{root}/{pid}/ns/net")
        if namespace and own and namespace not in {own, *addresses}:
            addresses[namespace] = _read_addresses(f"{root}/{pid}/net")
            sockets += _read_listeners(f"{root}/{pid}/net", namespace)

    inodes = {listener.inode for listener in sockets}
    owners, denied = _owners(root, candidates, inodes)
    wanted = {listener.inode for listener in sockets if listener.port in ports} - owners.keys()
    if wanted:
        others = [pid for pid, process in processes.items() if not process.kernel and pid not in candidates]
        more, refused = _owners(root, others, wanted)
        owners |= more
        denied += refused
    listeners = tuple(listener._replace(pids=tuple(sorted(owners.get(listener.inode, ())))) for listener in sockets)

    holders = {pid for listener in listeners if listener.port in ports for pid in listener.pids}
    detailed = candidates | {below for pid in holders for below in _below(pid, children)}
    for pid in detailed | (processes.keys() & set(pids)):
        processes[pid] = _with_details(root, processes[pid])
    return ProcessTree(processes, listeners, addresses, denied)


def start_time(pid: int, proc: Path = PROC) -> int | None:
    """Return when a process started, in clock ticks after boot; None when there is none."""
    process = _read_process(str(proc), pid, with_command=False)
    return process.start if process else None


def own_container(proc: Path = PROC) -> str:
    """Return the id of the container that we run in, as far as procfs tells."""
    return membership(_text(f"{proc}/self/cgroup")).container


def _read_processes(root: str) -> Iterator[Process]:
    with contextlib.suppress(OSError):
        for name in os.listdir(root):  # noqa: PTH208 - names are enough, Path objects are dear here
            if name.isdigit() and (process := _read_process(root, int(name))) is not None:
                yield process


def _read_process(root: str, pid: int, *, with_command: bool = True) -> Process | None:
    stat = _text(f"{root}/{pid}/stat")
    after_name = stat.rpartition(")")[2].split()  # the name may hold blanks and parentheses
    if len(after_name) < 20 or after_name[0] in {"Z", "X"}:  # a zombie holds nothing and works no more
        return None
    kernel = bool(int(after_name[6]) & _PF_KTHREAD)
    argv: tuple[str, ...] = ()
    if with_command and not kernel:
        argv = tuple(_text(f"{root}/{pid}/cmdline", 4096).rstrip("\0").split("\0"))
    return Process(pid, int(after_name[1]), int(after_name[19]), argv, kernel)


def _with_details(root: str, process: Process) -> Process:
    aliases: tuple[int, ...] = ()
    for line in _text(f"{root}/{process.pid}/status").splitlines():
        if line.startswith("NSpid:"):
            aliases = tuple(int(alias) for alias in line.split()[2:])
    where = membership(_text(f"{root}/{process.pid}/cgroup"))
    variables = _text(f"{root}/{process.pid}/environ", 1 << 20)
    pairs = (pair.partition("=") for pair in variables.split("\0"))
    environ = {name: value for name, _, value in pairs if name in _VARIABLES} if variables else None
    return replace(process, aliases=aliases, container=where.container, pod_uid=where.pod_uid, environ=environ)


def _owners(root: str, pids: Iterable[int], inodes: Collection[int]) -> tuple[dict[int, list[int]], int]:
    owners: dict[int, list[int]] = defaultdict(list)
    denied = 0
    for pid in pids if inodes else ():
        folder = f"{root}/{pid}/fd"
        try:
            names = os.listdir(folder)  # noqa: PTH208 - as above
        except PermissionError:
            denied += 1
            continue
        except OSError:
            continue
        held = {int(link[8:-1]) for name in names if (link := _link(f"{folder}/{name}")).startswith("socket:[")}
        for inode in held.intersection(inodes):
            owners[inode].append(pid)
    return dict(owners), denied


def _read_listeners(net: str, namespace: str) -> list[Listener]:
    found = []
    for table in ("tcp", "tcp6"):
        for line in _text(f"{net}/{table}", 4 << 20).splitlines()[1:]:
            if f" {_LISTEN} " not in line:
                continue
            fields = line.split()
            if len(fields) < 10 or fields[3] != _LISTEN:
                continue
            address, _, port = fields[1].partition(":")
            with contextlib.suppress(ValueError):
                found.append(Listener(namespace, _address(address), int(port, 16), int(fields[9])))
    return found


def _address(text: str) -> str:
    """Return a numeric address from the kernel's hex: 32-bit words, each in the machine's byte order."""
    words = (int(text[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8))
    numeric = ipaddress.ip_address(b"".join(words))
    mapped = numeric.ipv4_mapped if isinstance(numeric, ipaddress.IPv6Address) else None
    return str(mapped or numeric)


def _read_addresses(net: str) -> frozenset[str]:
    found = set()
    address = ""
    for line in _text(f"{net}/fib_trie", 1 << 20).splitlines():
        if "|-- " in line:
            address = line.rpartition(" ")[2]
        elif "/32 host LOCAL" in line:
            found.add(address)
    for line in _text(f"{net}/if_inet6").splitlines():
        found.add(str(ipaddress.ip_address(bytes.fromhex(line[:32]))))
    return frozenset(found)


def _text(path: str, limit: int = 64 * 1024) -> str:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - as above
            parts = []
            while limit > 0 and (part := file.read(min(limit, 64 * 1024))):  # procfs gives at most a page or so at once
                parts.append(part)
                limit -= len(part)
            return b"".join(parts).decode("utf-8", "replace")
    except OSError:  # gone or forbidden: the process is then simply not there
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - as above
    except OSError:
        return ""

"""Which engine runs on which GPU: the decision, over plain facts."""

import ipaddress
import logging
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from ..machine.process_tree import ProcessTree, engine_pids, is_own, rank_of, serving_pids
from ..pages.samples import Sample, label_pairs
from .pod_resources import PodDevices
from .visible_devices import GpuFacts, configured, named, visible

__all__ = ["EngineFacts", "ExporterLocation", "GpuFacts", "Placed", "Pods", "place", "samples"]

log = logging.getLogger("vllm_vitals")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What placement needs to know of one server.

    Attributes:
        server: its name.
        url: where its page is.
        pairs: (engine index, model name) rows on its page; may be empty.
        gpus: from the config: NVML indices, UUIDs or MIG UUIDs; empty when not configured.
        state: anything that changes when its processes may be new ones (up or down, restart count).
    """

    server: str
    url: str
    pairs: tuple[tuple[str, str], ...] = ()
    gpus: tuple[str, ...] = ()
    state: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """One row of the join.

    Attributes:
        server: name of the server.
        engine: engine index as on its page; empty when not known.
        model_name: as on its page; empty before the first page.
        gpu: NVML index; empty when the GPU is not known.
        uuid: of the GPU; empty when not known.
        source: what said so.
        memory_bytes: what the engine's processes hold on the GPU; None when the driver does not tell all of it.
        driver_pids: these processes, as the driver numbers them.
    """

    server: str
    engine: str
    model_name: str
    gpu: str
    uuid: str
    source: str
    memory_bytes: int | None = None
    driver_pids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class ExporterLocation:
    """Where the exporter itself runs."""

    container: str = ""
    nvidia_visible_devices: str = ""
    pod: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Pods:
    """What Kubernetes says.

    Attributes:
        devices: pods that hold GPUs.
        names: pod uid -> (namespace, name), as far as known.
    """

    devices: tuple[PodDevices, ...]
    names: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class _Claim(NamedTuple):
    gpu: GpuFacts
    rank: str  # data-parallel rank; "" when not known


@dataclass(frozen=True, slots=True)
class _Engine:
    """One server with what the tree says of it."""

    facts: EngineFacts
    host: str
    local: bool
    owners: frozenset[int]
    roles: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """Everything that the sources look at."""

    engines: tuple[_Engine, ...]
    gpus: tuple[GpuFacts, ...]
    tree: ProcessTree
    pods: Pods | None
    here: ExporterLocation


# --- The decision -----------------------------------------------------------------------------------------------------
def place(
    engines: Sequence[EngineFacts],
    gpus: Sequence[GpuFacts],
    tree: ProcessTree,
    pods: Pods | None = None,
    here: ExporterLocation = ExporterLocation(),
    resolved: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Placed, ...]:
    """Return one row per (engine, model, GPU), each with the source that said so; the first source that answers wins.

    Args:
        engines: all servers that are known.
        gpus: all that NVML shows. An empty process list means unknown, not idle.
        tree: a walk over the processes that knew the engines' ports and the driver's pids.
        pods: None outside Kubernetes.
        here: where we run ourselves.
        resolved: host name of a URL -> addresses; numeric hosts and localhost need none.
    """
    world = _world(engines, gpus, tree, pods, here, resolved or {})
    return tuple(row for engine in world.engines for row in _rows(engine, world))


def process_roles(
    engines: Sequence[EngineFacts], tree: ProcessTree, resolved: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, dict[int, str]]:
    """Return server -> pid -> role; a server whose processes are not found here has an empty mapping."""
    world = _world(engines, (), tree, None, ExporterLocation(), resolved or {})
    return {engine.facts.server: dict(engine.roles) for engine in world.engines}


def _world(
    engines: Sequence[EngineFacts],
    gpus: Sequence[GpuFacts],
    tree: ProcessTree,
    pods: Pods | None,
    here: ExporterLocation,
    resolved: Mapping[str, tuple[str, ...]],
) -> _Surroundings:
    known = []
    for facts in engines:
        host, port = host_and_port(facts.url)
        addresses = numeric(host) or resolved.get(host, ())
        owners = serving_pids(tree, addresses, port)
        local = any(is_own(address, tree) for address in addresses)
        known.append(_Engine(facts, host, local, owners, engine_pids(tree, owners) if owners else {}))
    return _Surroundings(tuple(known), tuple(sorted(gpus, key=lambda gpu: gpu.index)), tree, pods, here)


def _from_config(engine: _Engine, world: _Surroundings) -> list[_Claim] | None:
    if not engine.facts.gpus:
        return None
    # Always wins: a configured GPU that is not there makes the engine unknown rather than placed by something weaker.
    found = [gpu for token in engine.facts.gpus if (gpu := configured(token, world.gpus)) is not None]
    claims = _ranked(found, engine, world)
    indices = sorted({index for index, _ in engine.facts.pairs}, key=lambda index: (len(index), index))
    if any(claim.rank for claim in claims) or len(indices) < 2 or len(found) % len(indices):
        return claims
    # vLLM gives data-parallel ranks consecutive devices, so a list in the order of its devices splits the same way.
    return [_Claim(gpu, indices[number * len(indices) // len(found)]) for number, gpu in enumerate(found)]


def _from_processes(engine: _Engine, world: _Surroundings) -> list[_Claim] | None:
    found = [
        _Claim(gpu, rank_of(world.tree, pid, engine.roles))
        for gpu in world.gpus
        for pid in _held(gpu, world.tree)
        if pid in engine.roles
    ]
    return found or None


def _from_environ(engine: _Engine, world: _Surroundings) -> list[_Claim] | None:
    ranks = defaultdict(set)
    workers = Counter[str]()
    for pid, kind in engine.roles.items():
        rank = rank_of(world.tree, pid, engine.roles)
        if kind == "engine_core":
            ranks[rank].add(pid)
        elif kind == "worker":
            workers[rank] += 1
    cores = {pid for pids in ranks.values() for pid in pids}
    if not ranks:  # no titles, or an engine that is not vLLM's: the servers and what is below inherit one list
        ranks[""] = set(engine.owners)
    shares: dict[str, tuple[GpuFacts, ...]] = {}
    for rank, pids in ranks.items():
        lists = {_visible(pid, world) for pid in pids}
        seen = lists.pop() if len(lists) == 1 else None
        if seen is None:
            return None
        shares[rank] = seen
    if any("--device-ids" in argument for pid in engine.roles for argument in world.tree.processes[pid].argv):
        return None  # vLLM then picks from the list by numbers of its own
    shared = len(shares) > 1 and len(set(shares.values())) == 1
    claims = []
    for position, rank in enumerate(sorted(shares, key=lambda rank: int(rank or 0))):
        mine = shares[rank]
        # vLLM: local worker i takes the i-th visible device; ranks that share one list take consecutive slices of it.
        needed = max(workers[rank], 1) if len(ranks[rank] & cores) == 1 else 0
        first = position * needed if shared else 0
        if needed and len(mine) >= first + needed:
            claims += [_Claim(gpu, rank) for gpu in mine[first : first + needed]]
        else:
            claims += [_Claim(gpu, "" if shared else rank) for gpu in mine]
    return claims


def _from_pods(engine: _Engine, world: _Surroundings) -> list[_Claim] | None:
    if world.pods is None:
        return None
    pod = _pod_of(engine, world)
    if pod is None or any(other is not engine and _pod_of(other, world) == pod for other in world.engines):
        return None  # List does not say which container of the pod a process is in
    found = [gpu for device in pod.devices if (gpu := named(device, world.gpus)) is not None]
    return _ranked(found, engine, world) or None


def _from_cgroups(engine: _Engine, world: _Surroundings) -> list[_Claim] | None:
    mine = _containers(engine, world)
    if not mine or any(other is not engine and _containers(other, world) & mine for other in world.engines):
        return None
    found = [
        gpu for gpu in world.gpus if any(world.tree.processes[pid].container in mine for pid in _held(gpu, world.tree))
    ]
    return _ranked(found, engine, world) or None


def _from_being_alone(engine: _Engine, world: _Surroundings) -> list[_Claim] | None:
    if len(world.engines) != 1 or not engine.local:
        return None
    return _ranked([gpu for gpu in world.gpus if not _is_anothers(gpu, engine, world)], engine, world) or None


_Source = Callable[[_Engine, _Surroundings], list[_Claim] | None]
SOURCES: Final[tuple[tuple[str, _Source], ...]] = (
    ("config", _from_config),
    ("process", _from_processes),
    ("environ", _from_environ),
    ("pod-resources", _from_pods),
    ("cgroup", _from_cgroups),
    ("sole-engine", _from_being_alone),
)


def _rows(engine: _Engine, world: _Surroundings) -> Iterable[Placed]:
    source, claims = next(
        ((name, found) for name, look in SOURCES if (found := look(engine, world)) is not None), ("unknown", [])
    )
    if not claims:
        indices = {index for index, _ in engine.facts.pairs}
        models = {model for _, model in engine.facts.pairs}
        yield Placed(engine.facts.server, _only(indices), _only(models), "", "", "unknown")
        return
    rows: dict[tuple[str, str, str], Placed] = {}
    for claim in claims:
        index = _index(claim.rank, engine.facts.pairs)
        models = {model for row, model in engine.facts.pairs if index in {row, ""}} or {""}
        for model in sorted(models):
            pids = _holders(claim.gpu, index, engine, world)
            size = memory(claim.gpu, pids)
            row = Placed(engine.facts.server, index, model, str(claim.gpu.index), claim.gpu.uuid, source, size, pids)
            rows.setdefault((index, model, claim.gpu.uuid), row)
    yield from rows.values()


def _index(rank: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Return the engine index on the page for a rank of a process title."""
    indices = {index for index, _ in pairs}
    if not indices or rank in indices:
        return rank
    return _only(indices)


def _only(values: Iterable[str]) -> str:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else ""


def _ranked(gpus: Sequence[GpuFacts], engine: _Engine, world: _Surroundings) -> list[_Claim]:
    """Return claims for these GPUs, with the ranks of the engine's processes on them where the driver tells."""
    claims = []
    for gpu in gpus:
        ranks = {rank_of(world.tree, pid, engine.roles) for pid in _held(gpu, world.tree) if pid in engine.roles}
        claims += [_Claim(gpu, rank) for rank in sorted(ranks or {""})]
    return claims


def _held(gpu: GpuFacts, tree: ProcessTree) -> list[int]:
    """Return the processes on a GPU that exist here, in our numbering."""
    return [local for pid, _, _ in gpu.pids if (local := tree.local_pid(pid)) is not None]


def _holders(gpu: GpuFacts, index: str, engine: _Engine, world: _Surroundings) -> frozenset[int]:
    """Return the driver's pids on a GPU that belong to one engine index."""
    found = set()
    for driver_pid, _, _ in gpu.pids:
        pid = world.tree.local_pid(driver_pid)
        if pid is None or pid not in engine.roles:
            continue
        if _index(rank_of(world.tree, pid, engine.roles), engine.facts.pairs) == index:
            found.add(driver_pid)
    return frozenset(found)


def memory(gpu: GpuFacts, driver_pids: frozenset[int]) -> int | None:
    """Return the bytes that these processes hold on a GPU; None when the driver does not tell them all."""
    sizes = dict.fromkeys(driver_pids & {pid for pid, _, _ in gpu.pids}, 0)
    for pid, size, _ in gpu.pids:  # a process has one entry per MIG device
        if pid in sizes:
            if size is None:
                return None
            sizes[pid] += size
    return sum(sizes.values()) if sizes else None


def _visible(pid: int, world: _Surroundings) -> tuple[GpuFacts, ...] | None:
    process = world.tree.processes[pid]
    if process.environ is None:
        return None
    return visible(
        process.environ,
        world.gpus,
        container=process.container,
        own_container=world.here.container,
        own_visible=world.here.nvidia_visible_devices,
    )


def _containers(engine: _Engine, world: _Surroundings) -> set[str]:
    return {world.tree.processes[pid].container for pid in engine.roles} - {""}


def _is_anothers(gpu: GpuFacts, engine: _Engine, world: _Surroundings) -> bool:
    """Return whether all processes on a GPU are known here and none of them is the engine's."""
    held = _held(gpu, world.tree)
    return (
        bool(engine.roles)
        and bool(held)
        and len(held) == len(gpu.pids)
        and not any(pid in engine.roles for pid in held)
    )


def _pod_of(engine: _Engine, world: _Surroundings) -> PodDevices | None:
    """Return the pod of an engine when exactly one answers to what is known of it.

    A loopback URL means our own pod (sidecar). Else the pod uid of the engine's cgroup is looked up in the kubelet's
    log folders; else the pod's name is its processes' POD_NAME or HOSTNAME (Kubernetes sets it to the pod's name unless
    told otherwise) or, in a StatefulSet, the first label of the URL's host with the namespace as third.
    """
    pods = world.pods.devices if world.pods else ()
    wanted: set[tuple[str | None, str]] = set()
    if world.here.pod and _is_loopback(engine.host):
        wanted.add((world.here.namespace or None, world.here.pod))
    processes = [world.tree.processes[pid] for pid in engine.roles]
    if not wanted and world.pods is not None:
        wanted = {world.pods.names[uid] for process in processes if (uid := process.pod_uid) in world.pods.names}
    if not wanted:
        variables = [process.environ for process in processes if process.environ and process.pod_uid]
        wanted = {
            (environ.get("POD_NAMESPACE"), name)
            for environ in variables
            if (name := environ.get("POD_NAME") or environ.get("HOSTNAME"))
        }
    labels = engine.host.split(".")
    if not wanted and len(labels) > 3 and labels[3] == "svc":
        wanted = {(labels[2], labels[0])}
    found = [pod for pod in pods if any(pod.pod == name and space in {None, pod.namespace} for space, name in wanted)]
    return found[0] if len(found) == 1 else None


# --- Addresses --------------------------------------------------------------------------------------------------------
def host_and_port(url: str) -> tuple[str, int]:
    """Return host and port of a URL; port 0 when it has none that is valid."""
    try:
        parts = urlsplit(url)
        default = 443 if parts.scheme == "https" else 80
        return (parts.hostname or "").rstrip("."), parts.port or default
    except ValueError:
        return "", 0


def numeric(host: str) -> tuple[str, ...]:
    """Return the addresses of a host that needs no look-up; empty for a name."""
    if host == "localhost":
        return ("127.0.0.1", "::1")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ()
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if address.is_unspecified:  # connecting to 0.0.0.0 reaches loopback
        return ("127.0.0.1",) if address.version == 4 else ("::1",)
    return (str(mapped or address),)


def _is_loopback(host: str) -> bool:
    return any(ipaddress.ip_address(address).is_loopback for address in numeric(host))


def resolve(host: str) -> tuple[str, ...]:
    """Return the addresses of a host name; the resolver's own timeouts apply, so never on the scrape path."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))


# --- Series -----------------------------------------------------------------------------------------------------------
def samples(placed: Iterable[Placed]) -> list[Sample]:
    """Return the join as samples; memory once per engine and GPU, however many models it serves."""
    rows = []
    sizes: dict[str, int] = {}
    for row in placed:
        labels = label_pairs(
            server=row.server,
            model_name=row.model_name,
            engine=row.engine,
            gpu=row.gpu,
            uuid=row.uuid,
            source=row.source,
        )
        rows.append(Sample("vllm_vitals_engine_gpu_info", labels, 1))
        if row.memory_bytes is not None:
            key = label_pairs(server=row.server, engine=row.engine, gpu=row.gpu, uuid=row.uuid)
            sizes[key] = row.memory_bytes
    return rows + [Sample("vllm_vitals_engine_gpu_memory_bytes", key, size) for key, size in sizes.items()]

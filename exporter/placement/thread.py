"""The thread that gathers the facts for placement between scrapes."""

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...runtime.background import Background
from ...runtime.log_once import LogOnce
from ...settings.installation import install_command
from ..machine.process_tree import PROC, own_container, read_tree, start_time
from ..pages.samples import Sample, label_pairs
from .pod_resources import DEADLINE_SECONDS, KUBELET_SOCKET, POD_LOGS, list_pods, pod_names
from .rules import (
    EngineFacts,
    ExporterLocation,
    Placed,
    Pods,
    host_and_port,
    memory,
    numeric,
    place,
    process_roles,
    resolve,
    samples,
)
from .visible_devices import GpuFacts, configured

log = logging.getLogger("vllm_vitals")


class Placement:
    """Walks in its own thread when something changed, and holds the last result.

    A walk is due when the key of the inputs differs, when a process of the last walk has gone, when the last walk left
    something to be found (with growing pauses), or after `backstop` seconds.

    Args:
        proc: where procfs is mounted.
        kubelet: the pod-resources socket; asked only where it exists.
        pod_logs: the kubelet's log folders.
        pause: least time between two walks, seconds.
        backstop: longest time between two walks, seconds.
    """

    def __init__(
        self,
        proc: Path = PROC,
        kubelet: Path | None = KUBELET_SOCKET,
        pod_logs: Path = POD_LOGS,
        pause: float = 5.0,
        backstop: float = 120.0,
    ) -> None:
        self._proc = proc
        self._kubelet = kubelet
        self._pod_logs = pod_logs
        self._pause = pause
        self._backstop = backstop
        self._inputs: tuple[tuple[EngineFacts, ...], tuple[GpuFacts, ...]] = ((), ())
        self._background = Background("placement", self._round, pause, on_error=self._walk_failed, at_once=False)
        self._tried_at = -float("inf")
        self._placed: tuple[Placed, ...] = ()
        self._roles: Mapping[str, Mapping[int, str]] = {}
        self._starts: Mapping[int, int] = {}
        self._walked_key: object = None
        self._walked_at = -float("inf")
        self._retry = pause
        self._is_settled = False
        self._duration = 0.0
        self._walks = 0
        self._failures = Counter({"config": 0, "process": 0, "pod-resources": 0})
        self._said = LogOnce()

    def start(self) -> None:
        """Start the thread; it is a daemon, since a name server or kubelet may hold it for seconds."""
        self._background.start()

    def stop(self) -> None:
        """Stop the thread, waiting two seconds at most."""
        self._background.stop()

    def update(self, engines: Sequence[EngineFacts], gpus: Sequence[GpuFacts]) -> None:
        """Take the newest facts; cheap, the walk happens elsewhere."""
        self._inputs = (tuple(engines), tuple(gpus))
        if _key(*self._inputs) != self._walked_key:
            self._background.wake()

    def placed(self) -> tuple[Placed, ...]:
        """Return the last result with today's memory; rows of engines that are no longer known are left out."""
        engines, gpus = self._inputs
        known = {engine.server for engine in engines}
        by_uuid = {gpu.uuid: gpu for gpu in gpus}
        rows = []
        for row in self._placed:
            if row.server in known:
                gpu = by_uuid.get(row.uuid)
                rows.append(replace(row, memory_bytes=memory(gpu, row.driver_pids) if gpu else None))
        return tuple(rows)

    def pids(self) -> Mapping[str, Mapping[int, str]]:
        """Return server -> pid -> role of the last walk."""
        return self._roles

    def samples(self) -> list[Sample]:
        """Return the join and what the walks cost; never waits."""
        rows = samples(self.placed())
        if self._walks:
            rows.append(Sample("vllm_vitals_placement_duration_seconds", "", self._duration))
        rows.append(Sample("vllm_vitals_placement_walks_total", "", self._walks))
        failures = sorted(self._failures.items())
        rows += [Sample("vllm_vitals_placement_failures_total", label_pairs(source=name), n) for name, n in failures]
        return rows

    def _round(self) -> float | None:
        rest = self._pause - (time.monotonic() - self._tried_at)
        if rest > 0:  # woken too early
            return rest
        if self._is_due():
            try:
                self.walk()
            finally:
                self._tried_at = time.monotonic()
        return None

    def _walk_failed(self, _: Exception) -> None:
        self._fail("walk", "placement walk failed")

    def _is_due(self) -> bool:
        engines, gpus = self._inputs
        if _key(engines, gpus) != self._walked_key:
            return True
        age = time.monotonic() - self._walked_at
        if age > self._backstop:
            return True
        if any(start_time(pid, self._proc) != start for pid, start in self._starts.items()):
            return True
        return not self._is_settled and age > self._retry

    def walk(self) -> None:
        """Gather, decide and keep; called by the thread, and by tests and one-shot commands directly."""
        began = time.monotonic()
        engines, gpus = self._inputs
        key = _key(engines, gpus)
        here = ExporterLocation(
            own_container(self._proc),
            os.environ.get("NVIDIA_VISIBLE_DEVICES", "").strip(),
            os.environ.get("POD_NAME", ""),
            os.environ.get("POD_NAMESPACE", ""),
        )
        resolved = {}
        ports = set()
        for host, port in {host_and_port(engine.url) for engine in engines}:
            ports.add(port)
            if host and not numeric(host):
                with contextlib.suppress(OSError, UnicodeError):  # then it is not local, as far as we know
                    resolved[host] = resolve(host)
        driver_pids = {pid for gpu in gpus for pid, _, _ in gpu.pids}
        tree = read_tree(self._proc, ports=ports, pids=driver_pids)
        if tree.denied and any(not sock.pids for sock in tree.listeners if sock.port in ports and not sock.namespace):
            self._fail(
                "process", "another user's process holds an engine's port: needs root or CAP_SYS_PTRACE", trace=False
            )
        self._check_config(engines, gpus)
        placed = place(engines, gpus, tree, self._ask_kubelet(), here, resolved)
        roles = process_roles(engines, tree, resolved)
        watched = {pid for members in roles.values() for pid in members}
        self._retry = self._pause if key != self._walked_key else min(self._retry * 2, self._backstop)
        self._is_settled = _is_settled(placed, roles)
        self._placed, self._roles = placed, roles
        self._starts = {pid: tree.processes[pid].start for pid in watched}
        self._walked_key = key
        self._walked_at = time.monotonic()
        self._duration = self._walked_at - began
        self._walks += 1

    def _ask_kubelet(self) -> Pods | None:
        if self._kubelet is None or not self._kubelet.exists():
            return None
        try:
            return Pods(list_pods(self._kubelet, DEADLINE_SECONDS), pod_names(self._pod_logs))
        except ImportError:
            advice = install_command("kubernetes")
            self._fail("pod-resources", f"the kubelet's socket is there, but not what asks it: {advice}", trace=False)
        except (OSError, RuntimeError) as error:
            self._fail("pod-resources", f"the kubelet's pod-resources API did not answer: {error!r}", trace=False)
        return None

    def _check_config(self, engines: Sequence[EngineFacts], gpus: Sequence[GpuFacts]) -> None:
        for engine in engines:
            missing = [token for token in engine.gpus if configured(token, gpus) is None]
            if missing:
                self._fail(
                    "config", f"{engine.server}: configured GPUs that are not here: {', '.join(missing)}", trace=False
                )

    def _fail(self, source: str, message: str, *, trace: bool = True) -> None:
        self._failures[source] += 1
        if self._said.is_news(message):
            log.warning(message, exc_info=trace)


def _is_settled(placed: Sequence[Placed], roles: Mapping[str, Mapping[int, str]]) -> bool:
    """Return whether nothing better is to be expected: a server that is still starting has no engine processes yet."""
    return all(row.source in {"config", "process"} for row in placed) and all(
        {"engine_core", "worker"} & set(members.values()) for members in roles.values()
    )


def _key(engines: Sequence[EngineFacts], gpus: Sequence[GpuFacts]) -> object:
    """Return what a walk depends on: not the memory of the processes, which changes all the time."""
    return (
        tuple(engines),
        tuple((gpu.index, gpu.uuid, gpu.mig_uuids, frozenset((pid, mig) for pid, _, mig in gpu.pids)) for gpu in gpus),
    )

"""CPU, memory, disks, file systems and network of the machine; silent where a node_exporter already tells them."""

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, NamedTuple

import psutil

from ...runtime.background import Background
from ...runtime.exchange import exchange
from ...runtime.log_once import LogOnce
from ...vocabulary.reasons import HostCode
from ..pages.samples import Sample, label_pairs

log = logging.getLogger("vllm_vitals")

Mode = Literal["auto", "on", "off"]
NODE_EXPORTER: Final = "http://127.0.0.1:9100/metrics"
_CHECK_SECONDS: Final = 60.0
_SERIES_LIMIT: Final = 64  # devices of a kind; a machine with more has them from churn
# Linux counts guest time inside user and nice, too, so those two modes would be counted twice.
_CPU_MODES: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_VIRTUAL_INTERFACE: Final = re.compile(
    r"^(lo|veth.*|docker.*|podman\d*|br-.*|cali.*|cni.*|cilium.*|lxc.*|lxd.*|flannel.*|weave.*|kube-.*|nodelocaldns"
    r"|virbr.*|vnet.*|tap.*|tun.*|tunl.*|ifb.*|dummy.*|vxlan.*|geneve.*|gre.*|gretap.*|erspan.*|sit.*|ip6tnl.*|ip_vti.*"
    r"|ip6_vti.*|ip6gre.*|teql.*|ovs-.*|azv.*|eni[0-9a-f]{11})$"  # the last two: AKS, EKS pods
)
_FILE_SYSTEMS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "vfat", "jfs"})


def disks(sysfs: Path) -> frozenset[str]:
    """Return whole physical disks: those with a device behind them (no loop, ram, zram, md, dm, no partitions)."""
    try:
        return frozenset(block.name for block in (sysfs / "block").iterdir() if (block / "device").exists())
    except OSError:
        return frozenset()


def is_physical_interface(name: str) -> bool:
    """Return whether an interface is the machine's rather than a container's or a tunnel's end."""
    return not _VIRTUAL_INTERFACE.match(name)


def has_node_exporter(url: str, deadline: float = 1.0) -> bool:
    """Return whether a page with node_ families answers there; about a second at most."""
    try:
        answer = exchange(url, deadline=deadline, limit=1 << 20, enough=lambda body: b"\nnode_" in body)
    except (OSError, ValueError):
        return False
    return answer.status == 200 and b"\nnode_" in answer.body


class _Roots(NamedTuple):
    procfs: str
    sysfs: Path


def _cpu(_: _Roots) -> list[Sample]:
    times = psutil.cpu_times()
    rows = [
        Sample("vllm_vitals_host_cpu_seconds_total", label_pairs(mode=mode), float(getattr(times, mode)))
        for mode in _CPU_MODES
        if hasattr(times, mode)
    ]
    cpus = psutil.cpu_count()
    return rows + ([Sample("vllm_vitals_host_cpus", "", cpus)] if cpus else [])


def _load(_: _Roots) -> list[Sample]:
    # os.getloadavg asks the kernel: true in a container, too, whatever procfs is mounted.
    return [Sample("vllm_vitals_host_load1", "", os.getloadavg()[0])]


def _memory(_: _Roots) -> list[Sample]:
    memory = psutil.virtual_memory()
    return [
        Sample("vllm_vitals_host_memory_total_bytes", "", memory.total),
        Sample("vllm_vitals_host_memory_available_bytes", "", memory.available),
    ]


def _swap(_: _Roots) -> list[Sample]:
    return [Sample("vllm_vitals_host_swap_used_bytes", "", psutil.swap_memory().used)]


def _oom_kills(roots: _Roots) -> list[Sample]:
    with (Path(roots.procfs) / "vmstat").open() as lines:
        return [
            Sample("vllm_vitals_host_oom_kills_total", "", int(line.split()[1]))
            for line in lines
            if line.startswith("oom_kill ")
        ]


def _disks(roots: _Roots) -> list[Sample]:
    physical = disks(roots.sysfs)
    rows = []
    counters = psutil.disk_io_counters(perdisk=True) or {}
    for name in sorted(physical & counters.keys())[:_SERIES_LIMIT]:
        labels = label_pairs(device=name)
        rows.append(Sample("vllm_vitals_host_disk_read_bytes_total", labels, counters[name].read_bytes))
        rows.append(Sample("vllm_vitals_host_disk_written_bytes_total", labels, counters[name].write_bytes))
    return rows


def _file_systems(_: _Roots) -> list[Sample]:
    by_device: dict[str, str] = {}
    for part in psutil.disk_partitions():  # no network file systems: statvfs on a dead one hangs
        point = part.mountpoint
        # The same device again is a bind mount: the shortest path is the machine's own name for it.
        if part.fstype in _FILE_SYSTEMS and Path(point).is_dir():
            by_device[part.device] = min(by_device.get(part.device, point), point, key=lambda p: (len(p), p))
    rows = []
    for point in sorted(set(by_device.values()))[:_SERIES_LIMIT]:
        space = os.statvfs(point)
        labels = label_pairs(mountpoint=point)
        rows.append(Sample("vllm_vitals_host_filesystem_size_bytes", labels, space.f_blocks * space.f_frsize))
        rows.append(Sample("vllm_vitals_host_filesystem_available_bytes", labels, space.f_bavail * space.f_frsize))
    return rows


def _network(_: _Roots) -> list[Sample]:
    rows = []
    counters = psutil.net_io_counters(pernic=True)
    for name in sorted(filter(is_physical_interface, counters))[:_SERIES_LIMIT]:
        seen = counters[name]
        errors = (("receive", seen.errin + seen.dropin), ("transmit", seen.errout + seen.dropout))
        labels = label_pairs(device=name)
        rows.append(Sample("vllm_vitals_host_network_receive_bytes_total", labels, seen.bytes_recv))
        rows.append(Sample("vllm_vitals_host_network_transmit_bytes_total", labels, seen.bytes_sent))
        for direction, count in errors:
            both = label_pairs(device=name, direction=direction)
            rows.append(Sample("vllm_vitals_host_network_errors_total", both, count))
    return rows


def _boot(_: _Roots) -> list[Sample]:
    return [Sample("vllm_vitals_host_boot_time_seconds", "", psutil.boot_time())]


_READERS: Final[tuple[Callable[[_Roots], list[Sample]], ...]] = (
    _cpu,
    _load,
    _memory,
    _swap,
    _oom_kills,
    _disks,
    _file_systems,
    _network,
    _boot,
)


class Host:
    """Reads the machine in its own thread, so that a page never waits for a disk.

    Args:
        mode: on, off, or auto (off while a node_exporter answers, asked each minute).
        procfs: where the machine's procfs is mounted; psutil takes one for the whole process.
        sysfs: likewise.
        node_exporter: its metrics URL.
        interval: seconds between two readings.
    """

    def __init__(
        self,
        mode: Mode = "auto",
        procfs: str = "/proc",
        sysfs: Path = Path("/sys"),
        node_exporter: str = NODE_EXPORTER,
        interval: float = 10.0,
    ) -> None:
        self._mode = mode
        self._roots = _Roots(procfs, sysfs)
        self._node_exporter = node_exporter
        self._interval = interval
        self._background = Background("host", self.collect, interval)
        self._checked_at = -float("inf")
        self._is_told_elsewhere = False
        self._said = LogOnce()
        self._samples: list[Sample] = [_up("off")] if mode == "off" else []
        self._read_at: float | None = None

    def start(self) -> None:
        """Start the thread; nothing to do when off."""
        if self._mode != "off":
            if self._roots.procfs != "/proc":
                psutil.PROCFS_PATH = self._roots.procfs
            self._background.start()

    def stop(self) -> None:
        """Stop the thread, waiting two seconds at most (a file system may hang)."""
        self._background.stop()

    def samples(self) -> list[Sample]:
        """Return what the last reading found; empty before the first, failed when a reading hangs."""
        if self._read_at is not None and time.monotonic() - self._read_at > 4 * self._interval + 30:
            return [_up("failed")]
        return self._samples

    def collect(self) -> None:
        """Read once; called by the thread."""
        now = time.monotonic()
        if self._mode == "auto" and now - self._checked_at >= _CHECK_SECONDS:
            self._is_told_elsewhere = has_node_exporter(self._node_exporter)
            self._checked_at = now
        if self._is_told_elsewhere:
            self._samples = [_up("node_exporter")]
            self._read_at = time.monotonic()
            return
        found: list[Sample] = []
        for read in _READERS:
            try:
                found += read(self._roots)
            except Exception as error:
                if self._said.is_news(read.__name__):
                    log.warning("host metrics: %s failed: %r", read.__name__.strip("_"), error)
        self._samples = [_up("" if found else "failed"), *found]
        self._read_at = time.monotonic()


def _up(reason: HostCode | Literal[""]) -> Sample:
    return Sample("vllm_vitals_host_up", label_pairs(reason=reason), 0 if reason else 1)

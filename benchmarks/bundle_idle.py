"""What the bundle's profile metrics needs while nothing happens, and how soon the first alert is evaluated.

    python benchmarks/bundle_idle.py [--settle 120] [--seconds 300]

As root on Debian: a Docker Engine of its own starts the shipped compose.yaml as the tests do (tests/docker_engine),
with two simulated engines, which are not counted. CPU and memory are those of the containers' cgroups, so healthchecks
count. Memory in use is what `docker stats` shows, without pages of files that can be dropped; resident is what its
processes hold, programs' own pages among it. Grafana is a stand-in: its own needs are in no figure.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from measured import table
from vllm_vitals.compose.bundle import SHIPPED, init

from docker_engine import bundles  # isort: skip  measured puts tests/ on the path
from support.compose_files import read_compose  # isort: skip
from support.fixtures import CACHE  # isort: skip

COUNTED = ("prometheus", "alertmanager", "node_exporter", "exporter")
STAND_IN = "grafana"
MIB = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")


class Look(NamedTuple):
    """One look at a container: CPU seconds so far, MiB in use, MiB resident."""

    cpu: float
    used: float
    resident: float


def look_at(pid: int) -> Look:
    """Return what the cgroups of a container's first process say, of version 1 or 2."""
    paths = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    root = Path("/sys/fs/cgroup")
    if "memory" in paths:
        memory = root / "memory" / paths["memory"]
        cpu = int((root / "cpuacct" / paths["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
        used, droppable = int((memory / "memory.usage_in_bytes").read_text()), "total_inactive_file"
    else:
        memory = root / paths[""]
        cpu = _numbers(memory / "cpu.stat")["usage_usec"] / 1e6
        used, droppable = int((memory / "memory.current").read_text()), "inactive_file"
    resident = sum(_resident(one) for one in (memory / "cgroup.procs").read_text().split())
    return Look(cpu, (used - _numbers(memory / "memory.stat")[droppable]) / MIB, resident)


def _resident(pid: str) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    except OSError:  # a healthcheck that has just ended
        return 0.0


def _numbers(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in map(str.split, path.read_text().splitlines())}


def of_docker(folder: Path) -> float:
    """Return the CPU seconds of the daemon, its containerd and the shims, with those of children that ended."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "cmdline").read_bytes():
                total += sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:  # it has just ended
            continue
    return total / _TICKS


def first_evaluation(bundle: bundles.Bundle, stopped: threading.Event) -> Iterator[datetime]:
    """Yield when the first alert was evaluated, then when the last of all of them had its first turn."""
    found: list[datetime] = []
    while not stopped.wait(0.5):
        try:
            groups = json.loads(bundle.get("http://prometheus:9090/api/v1/rules?type=alert"))["data"]["groups"]
        except (AssertionError, ValueError, KeyError):  # nobody there yet
            continue
        times = [datetime.fromisoformat(rule["lastEvaluation"]) for group in groups for rule in group["rules"]]
        evaluated = [one for one in times if one.year > 1]
        if evaluated and not found:
            found.append(min(evaluated))
            yield found[0]
        if times and len(evaluated) == len(times):
            yield max(evaluated)
            return


def started(bundle: bundles.Bundle, row: Callable[..., None]) -> None:
    """Start the bundle, images present, and tell how long what took."""
    bundle.compose("build")
    stopped, evaluated = threading.Event(), []
    began = datetime.now(UTC)
    watcher = threading.Thread(target=lambda: evaluated.extend(first_evaluation(bundle, stopped)), daemon=True)
    watcher.start()
    code, output = bundle.command("up", "--timeout", "5m")
    assert code == 0, output
    row("`bundle up`: everything healthy", f"{(datetime.now(UTC) - began).total_seconds():.1f} s")
    watcher.join(300)
    stopped.set()
    row("**first alert rule evaluated**", f"**{(evaluated[0] - began).total_seconds():.1f} s**")
    row("every alert rule evaluated once", f"{(evaluated[1] - began).total_seconds():.1f} s")


def idle(bundle: bundles.Bundle, seconds: float) -> list[tuple[object, ...]]:
    """Return what each container needed over some minutes, as rows."""
    found = bundle.containers()
    pids = {name: found[name]["State"]["Pid"] for name in (*COUNTED, STAND_IN)}
    looks: dict[str, list[Look]] = {name: [] for name in pids}
    began, docker = time.monotonic(), of_docker(bundle.docker.folder)
    while True:
        for name, pid in pids.items():
            looks[name].append(look_at(pid))
        took = time.monotonic() - began
        if took >= seconds:
            break
        time.sleep(5)

    def cells(*names: str) -> tuple[str, ...]:
        """Return CPU, most in use, most resident, limit: of some together."""
        cpu = sum(looks[name][-1].cpu - looks[name][0].cpu for name in names) / took
        together = [*zip(*(looks[name] for name in names), strict=True)]
        used = max(sum(look.used for look in at_once) for at_once in together)
        resident = max(sum(look.resident for look in at_once) for at_once in together)
        limit = sum(found[name]["HostConfig"]["Memory"] for name in names) / MIB
        return f"{cpu:.4f}", f"{used:.0f}", f"{resident:.0f}", f"{limit:.0f}"

    daemons = (of_docker(bundle.docker.folder) - docker) / took
    return [
        *((name, *cells(name)) for name in COUNTED),
        ("**these four**", *(f"**{cell}**" for cell in cells(*COUNTED))),
        ("grafana: a stand-in, not counted", *cells(STAND_IN)),
        ("dockerd, containerd, shims: not counted", f"{daemons:.4f}", "", "", ""),
    ]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--settle", type=float, default=120)
    options.add_argument("--seconds", type=float, default=300)
    chosen = options.parse_args()
    services = read_compose(SHIPPED / "compose.yaml")["services"]
    engines = {
        "image": bundles.PINS["EXPORTER_IMAGE"],
        "build": {"context": "./exporter", "args": {"PYTHON_IMAGE": bundles.PINS["PYTHON_IMAGE"]}, "network": "none"},
        "command": ["demo", "--pages-only", "--engines", "2"],
        "network_mode": "service:netns",
    }
    with bundles.engine(bundles.unpacked(CACHE), CACHE) as docker, tempfile.TemporaryDirectory() as work:
        bundle = bundles.Bundle(docker, Path(work, "bundle"))
        init(bundle.folder, profiles=["metrics"], engines=[f"http://127.0.0.1:{port}" for port in (18100, 18101)])
        (bundle.folder / "compose.offline.yaml").write_text(bundles.offline(services, {"engines": engines}))
        bundle.set(COMPOSE_FILE="compose.yaml:compose.offline.yaml")
        times: list[tuple[object, ...]] = []
        try:
            started(bundle, lambda *cells: times.append(cells))
            time.sleep(chosen.settle)
            engines_up = bundle.query("sum(vllm_vitals_server_up)")
            series = bundle.query("prometheus_tsdb_head_series")
            rows = idle(bundle, chosen.seconds)
        finally:
            docker("compose", "down", "--volumes", "--timeout", "2", check=False, cwd=bundle.folder)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.2f} over 5 minutes")
    print(f"engines up: {engines_up[0]['value'][1]}, series: {series[0]['value'][1]}\n")
    table(("from `up`, images present", "after"), times)
    print()
    table(("service", "CPU, cores", "in use at most, MiB", "resident at most, MiB", "limit, MiB"), rows)


if __name__ == "__main__":
    main()

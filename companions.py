"""Prometheus and Alertmanager beside the sidecar: started from PATH, on loopback, with their data in a state folder.

They watch the promises of an SLA: its rules are written at each start. So is Alertmanager's configuration where the
user named an SLA; without one it is written once and then the user's to change.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Self

from .alerts.build import generate, write
from .alerts.sla import Sla

_STOP_SECONDS: Final = 10.0
_START_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.2
PROMETHEUS: Final = ("prometheus",)
ALERTMANAGER: Final = ("alertmanager", "prometheus-alertmanager")  # upstream's name and Debian's

_PROMETHEUS_YML: Final = """\
# Written by vllm-vitals at each start; changes are lost.
global:
  scrape_interval: 5s
  scrape_timeout: 4s
  evaluation_interval: 5s
rule_files: [rules/*.rules.yml]
alerting:
  alertmanagers:
    - static_configs:
        - targets: [{alertmanager}]
scrape_configs:
  - job_name: vllm-vitals
    scheme: {scheme}
    tls_config:
      insecure_skip_verify: true  # our own exporter over loopback; its certificate carries another name
    static_configs:
      - targets: ["{exporter}"]
  - job_name: vllm-vitals-requests
    metrics_path: /metrics/requests
    scheme: {scheme}
    tls_config:
      insecure_skip_verify: true
    static_configs:
      - targets: ["{exporter}"]
  - job_name: prometheus
    static_configs:
      - targets: ["{prometheus}"]
"""


class Missing(NamedTuple):
    """A program that was not started, and what to do about it."""

    name: str
    advice: str


class Companions:
    """Prometheus and Alertmanager as child processes; an async context manager.

    Args:
        state: the folder that is theirs.
        exporter_url: what Prometheus scrapes.
        sla: the promises that are watched.
        own_sla: whether they are the user's, so that they say who hears of it.

    Attributes:
        prometheus_url, alertmanager_url: where they answer; empty when not running.
        missing: what was not started, and why.
    """

    def __init__(self, state: Path, exporter_url: str, sla: Sla, *, own_sla: bool = False) -> None:
        self._state = state
        self._files = generate(sla)
        self._own_sla = own_sla
        self._scheme, _, self._exporter = exporter_url.partition("://")
        self._processes: list[tuple[str, asyncio.subprocess.Process]] = []
        self.prometheus_url = ""
        self.alertmanager_url = ""
        self.missing: list[Missing] = []

    async def __aenter__(self) -> Self:
        self._state.mkdir(parents=True, exist_ok=True)
        self._state.chmod(0o700)
        alertmanager, prometheus = on_path(ALERTMANAGER), on_path(PROMETHEUS)
        try:
            if alertmanager is None:
                self.missing.append(
                    Missing("alertmanager", "not on PATH (Debian: apt install prometheus-alertmanager)")
                )
            else:
                self.alertmanager_url = await self._start_alertmanager(alertmanager)
            if prometheus is None:
                self.missing.append(Missing("prometheus", "not on PATH (Debian: apt install prometheus)"))
            else:
                self.prometheus_url = await self._start_prometheus(prometheus)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def first_scrape(self) -> None:
        """Return once Prometheus holds a sample of ours."""
        query = f"{self.prometheus_url}/api/v1/query?query=vllm_vitals_build_info"
        while True:
            with contextlib.suppress(OSError, ValueError):
                answer = json.loads(await asyncio.to_thread(_get, query))
                if answer["data"]["result"]:
                    return
            await asyncio.sleep(_POLL_SECONDS)

    async def _start_alertmanager(self, program: str) -> str:
        config = self._state / "alertmanager.yml"
        if self._own_sla or not config.exists():
            config.write_text(self._files["alertmanager.yml"], encoding="utf-8")
        address = f"127.0.0.1:{free_port(9093)}"
        arguments = (
            f"--config.file={config}",
            f"--storage.path={self._state / 'alertmanager'}",
            f"--web.listen-address={address}",
            "--cluster.listen-address=",  # one of us needs no gossip, and no second port
            "--log.level=warn",
        )
        return await self._start("alertmanager", program, arguments, address)

    async def _start_prometheus(self, program: str) -> str:
        address = f"127.0.0.1:{free_port(9090)}"
        config = self._state / "prometheus.yml"
        alertmanager = self.alertmanager_url.removeprefix("http://")
        text = _PROMETHEUS_YML.format(
            scheme=self._scheme,
            exporter=self._exporter,
            prometheus=address,
            alertmanager=f'"{alertmanager}"' if alertmanager else "",
        )
        config.write_text(text, encoding="utf-8")
        rules = self._state / "rules"
        shutil.rmtree(rules, ignore_errors=True)  # those of services that the SLA no longer has
        write({name: text for name, text in self._files.items() if name.endswith(".rules.yml")}, rules)
        arguments = (
            f"--config.file={config}",
            "--enable-feature=exemplar-storage",
            f"--storage.tsdb.path={self._state / 'prometheus'}",
            "--storage.tsdb.retention.time=45d",
            "--storage.tsdb.retention.size=2GB",
            f"--web.listen-address={address}",
            "--log.level=warn",
        )
        return await self._start("prometheus", program, arguments, address)

    async def _start(self, name: str, program: str, arguments: tuple[str, ...], address: str) -> str:
        """Return the URL once the program is ready, or an empty text with the reason in `missing`."""
        pid_file = self._state / f"{name}.pid"
        _end_leftover(pid_file, f"{self._state}/")
        log = self._state / f"{name}.log"
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C is ours to handle: the exporter goes last
            )
        self._processes.append((name, process))
        pid_file.write_text(str(process.pid), encoding="ascii")
        url = f"http://{address}"
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while asyncio.get_running_loop().time() < deadline and process.returncode is None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(_get, f"{url}/-/ready")
                return url
            await asyncio.sleep(_POLL_SECONDS)
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        self.missing.append(Missing(name, f"did not start: {''.join(last) or 'no answer'} (see {log})"))
        return ""

    async def _stop(self) -> None:
        for name, process in reversed(self._processes):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), _STOP_SECONDS)
                except TimeoutError:
                    process.kill()
                    await process.wait()
            (self._state / f"{name}.pid").unlink(missing_ok=True)


def on_path(programs: Iterable[str]) -> str | None:
    """Return the first of these programs that is on PATH."""
    return next((path for program in programs if (path := shutil.which(program))), None)


def free_port(preferred: int) -> int:
    """Return the preferred loopback port when nobody listens there, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise OSError("no free port on loopback")


def _end_leftover(pid_file: Path, mark: str) -> None:
    """End a program that an earlier run left behind (it was killed); it would hold the lock on the data."""
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
        if mark in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"):
            os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return


def _get(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy
    with opener.open(url, timeout=2.0) as answer:
        content: bytes = answer.read()
        return content

"""Prometheus and Alertmanager beside the sidecar: found on PATH, configured, on loopback, with their data in a folder.

They watch the promises of an SLA: its rules are written at each start. Alertmanager's configuration is written once and
then the user's to change; where they named an SLA of their own, a second file follows that one and is used instead.
"""

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple, Self

from ..alerts.build import generate
from ..alerts.sla import Sla
from ..exporter.scrape_listener import ScrapeListener
from .companion_process import Command, CompanionProcess, fetch
from .leftovers import end_leftovers, environment, users_of
from .standard_output import say
from .state_folder import StateFolder

_POLL_SECONDS: Final = 0.2
_PORTS_TRIED: Final = 3
_TAKEN: Final = "address already in use"  # as Go says it
PROMETHEUS: Final = ("prometheus",)
ALERTMANAGER: Final = ("alertmanager", "prometheus-alertmanager")  # upstream's name and Debian's

_OURS: Final = "# Written by vllm-vitals at each start; changes are lost.\n"
_PROMETHEUS_YML: Final = (
    _OURS
    + """\
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
    authorization: &token
      credentials_file: {token_file}
    static_configs: &exporter  # its listener for this Prometheus alone; the instance is the one that you read
      - targets: ["{listener}"]
        labels: {{instance: "{exporter}"}}
  - job_name: vllm-vitals-requests
    metrics_path: /metrics/requests
    authorization: *token
    static_configs: *exporter
  - job_name: prometheus
    static_configs:
      - targets: ["{prometheus}"]
"""
)
_TOKEN_FILE: Final = "scrape-token"  # noqa: S105  a file's name


class Missing(NamedTuple):
    """A program that was not started, and what to do about it."""

    name: str
    advice: str


class Companions:
    """Prometheus and Alertmanager as child processes, those of them that are on PATH; an async context manager.

    Args:
        folder: for their data; held by us.
        exporter_url: the exporter as a person names it.
        listener: what Prometheus scrapes of it.
        sla: the promises that are watched.
        own_sla: whether they are the user's, so that they say who hears of it.

    Attributes:
        prometheus_url, alertmanager_url: where they answer, new starts included; empty when they never ran.
        routes: the file that says who hears of an alert.
        missing: what was not started, and why.
    """

    def __init__(
        self, folder: StateFolder, exporter_url: str, listener: ScrapeListener, sla: Sla, *, own_sla: bool = False
    ) -> None:
        self._folder = folder
        self._files = generate(sla)
        self._own_sla = own_sla
        self._exporter = exporter_url.partition("://")[2]
        self._listener = listener
        self._processes: list[CompanionProcess] = []
        self.prometheus_url = ""
        self.alertmanager_url = ""
        self.routes = Path()
        self.missing: list[Missing] = []

    async def __aenter__(self) -> Self:
        """Start them; raises StateError where the folder cannot be written."""
        try:
            if left := await asyncio.to_thread(end_leftovers, self._folder.path):
                say(f"data, logs    ended what an `up` that was killed left running: pid {', '.join(map(str, left))}")
            if alertmanager := on_path(ALERTMANAGER):
                self.routes = self._alertmanager_yml()
                self.alertmanager_url = await self._start(
                    "alertmanager", 9093, lambda address: self._alertmanager(alertmanager, address)
                )
            if prometheus := on_path(PROMETHEUS):
                self._write_rules()
                self._folder.write(_TOKEN_FILE, self._listener.token)
                self.prometheus_url = await self._start(
                    "prometheus", 9090, lambda address: self._prometheus(prometheus, address)
                )
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
            with contextlib.suppress(OSError, ValueError, KeyError):
                answer = json.loads(await asyncio.to_thread(fetch, query))
                if answer["data"]["result"]:
                    return
            await asyncio.sleep(_POLL_SECONDS)

    async def scrape_problem(self) -> str:
        """Return what Prometheus says about its scrapes of us that fail."""
        try:
            answer = json.loads(await asyncio.to_thread(fetch, f"{self.prometheus_url}/api/v1/targets?state=active"))
            targets = answer["data"]["activeTargets"]
            errors = [each["lastError"] for each in targets if each["scrapePool"] == "vllm-vitals"]
        except OSError as error:
            return f"Prometheus does not answer: {error}"
        except (ValueError, KeyError, TypeError):
            return "Prometheus does not say why"
        return next(filter(None, errors), "Prometheus has not tried yet")

    def _alertmanager_yml(self) -> Path:
        generated = self._files["alertmanager.yml"]
        if self._own_sla:
            return self._folder.write("alertmanager.sla.yml", _OURS + generated)
        config = self._folder.path / "alertmanager.yml"
        return config if config.exists() else self._folder.write(config.name, generated)

    def _write_rules(self) -> None:
        """Write the SLA's rules; of what else is there, only rules that were generated are removed."""
        rules = {name: text for name, text in self._files.items() if name.endswith(".rules.yml")}
        heading = next(iter(rules.values())).partition("\n")[0]
        for path in (self._folder.path / "rules").glob("*.rules.yml"):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if path.name not in rules and path.read_text(encoding="utf-8").startswith(heading):
                    path.unlink()
        for name, text in rules.items():
            self._folder.write(f"rules/{name}", text)

    def _alertmanager(self, program: str, address: str) -> Command:
        arguments = (
            f"--config.file={self.routes}",
            f"--storage.path={self._folder.path / 'alertmanager'}",
            f"--web.listen-address={address}",
            "--cluster.listen-address=",  # one of us needs no gossip, and no second port
            "--log.level=warn",
        )
        return Command("alertmanager", program, arguments, address)

    def _prometheus(self, program: str, address: str) -> Command:
        alertmanager = self.alertmanager_url.removeprefix("http://")
        text = _PROMETHEUS_YML.format(
            exporter=self._exporter,
            listener=self._listener.address,
            token_file=_TOKEN_FILE,
            prometheus=address,
            alertmanager=f'"{alertmanager}"' if alertmanager else "",
        )
        arguments = (
            f"--config.file={self._folder.write('prometheus.yml', text)}",
            "--enable-feature=exemplar-storage",
            f"--storage.tsdb.path={self._folder.path / 'prometheus'}",
            "--storage.tsdb.retention.time=45d",
            "--storage.tsdb.retention.size=2GB",
            f"--web.listen-address={address}",
            "--log.level=warn",
        )
        return Command("prometheus", program, arguments, address)

    async def _start(self, name: str, port: int, command: Callable[[str], Command]) -> str:
        """Return the URL once the program is ready, or an empty text with the reason in `missing`."""
        log = self._folder.path / f"{name}.log"
        if others := await asyncio.to_thread(users_of, self._folder.path / name):
            advice = f"not started: process {others[0]}, which `up` did not start, uses {self._folder.path / name}"
            self.missing.append(Missing(name, advice))
            return ""
        for _ in range(_PORTS_TRIED):
            address = f"127.0.0.1:{free_port(port)}"
            process = CompanionProcess(command(address), log, environment(self._folder.path), say)
            self._processes.append(process)
            why = await process.start()
            if not why:
                process.watch()
                return process.url
            if _TAKEN not in process.output():  # between our look and its own somebody else can take the port
                break
        self.missing.append(Missing(name, f"did not start: {why} (see {log})"))
        return ""

    async def _stop(self) -> None:
        for process in reversed(self._processes):
            await process.stop()
        with contextlib.suppress(OSError):
            (self._folder.path / _TOKEN_FILE).unlink(missing_ok=True)


def not_installed() -> list[Missing]:
    """Return which of the programs are not on PATH, and how to get them."""
    wanted = {"alertmanager": (ALERTMANAGER, "prometheus-alertmanager"), "prometheus": (PROMETHEUS, "prometheus")}
    return [
        Missing(name, f"not on PATH (Debian: apt install {package})")
        for name, (programs, package) in wanted.items()
        if on_path(programs) is None
    ]


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

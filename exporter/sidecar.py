"""Wires the sidecar: who reads what on which clock, and how one scrape is put together."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Literal

from ..settings.config import EngineSettings, Settings
from ..vocabulary.reasons import GpusCode, RefusalCode
from .engines.discovery import Finder, ServerList
from .engines.engine import Engine, Fetched
from .engines.history import WINDOW_SECONDS, Track
from .gpus.monitor import GpuMonitor
from .gpus.reading import GpuReading
from .gpus.types import GpuSnapshot, GpuSource
from .inline import JOINING, inline_or_thread
from .live.health import Verdict, engine_verdict, gpu_verdict, is_stalled
from .live.page import EnergyWindow, vitals
from .live.rows import Vitals
from .machine.engine_processes import EngineProcesses
from .machine.host import Host
from .machine.self_metrics import self_samples
from .machine.spot import SpotWatcher
from .pages.families import merge
from .pages.request_pages import merged as merged_request_pages
from .pages.samples import Sample, label_pairs, page, render
from .parts import Counted, Part, Parts
from .placement.rules import EngineFacts, GpuFacts
from .placement.thread import Placement
from .promises.alerts import AlertWatch
from .promises.promised import Promises
from .promises.watch import PromiseWatch

# What of a GPU's readings has a history on the live page.
_GPU_TRACKS: Final[Mapping[str, Callable[[GpuReading], float | None]]] = {
    "utilization_ratio": lambda reading: reading.utilization_ratio,
    "power_watts": lambda reading: reading.power_watts,
    "temperature_celsius": lambda reading: reading.temperature_celsius,
    "memory_used_bytes": lambda reading: reading.memory_used_bytes,
}


class Sidecar:
    """Everything behind the HTTP routes.

    Args:
        settings: the user's settings.
        gpu_source: where GPUs come from; None for NVML.
        finder: looks for servers on this machine.
        scene: name of the demo's scene, for the page.
        promises: what the live page judges by; None for nothing.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        gpu_source: GpuSource | None = None,
        finder: Finder | None = None,
        scene: str = "",
        promises: Promises | None = None,
    ) -> None:
        self.settings = settings
        self._scene = scene
        self._servers = ServerList(settings.engines, settings.discovery, finder)
        self._engines: dict[EngineSettings, Engine] = {}
        self._gpus = _monitor(settings, gpu_source)
        self._placement = Placement(settings.placement.procfs, settings.placement.pod_resources_socket)
        self._engine_processes = EngineProcesses(settings.placement.procfs)
        # Three samples, as a scraper would take them: the page's figures are of minutes.
        self._promises = PromiseWatch(promises, 3 * settings.sample_interval) if promises is not None else None
        self._alerts = AlertWatch(alertmanager=settings.alertmanager_url or "")
        self._gpu_tracks: dict[str, dict[str, Track]] = defaultdict(self._new_gpu_tracks)
        self._energy: dict[str, EnergyWindow] = defaultdict(EnergyWindow)
        self._tasks: list[asyncio.Task[None]] = []
        self._scrapes = 0
        self._scrape_seconds: float | None = None
        self._first_discovery = asyncio.Event()
        self._first_discovery.set()
        self.ready = asyncio.Event()
        self.rejected: Callable[[], Counter[RefusalCode]] = Counter
        self.web_reload_failures: Callable[[], int] = lambda: 0
        self._parts = Parts(self._all_parts())

    @property
    def engines(self) -> list[Engine]:
        """The servers, in the order of the settings."""
        return list(self._engines.values())

    async def start(self) -> None:
        """Start every reader; returns at once, whatever hangs."""
        self._parts.start()
        self._take_servers()
        rounds = [self._every(self.settings.sample_interval, self._observe)]
        if self._servers.dynamic:
            self._first_discovery.clear()
            rounds.append(self._every(self.settings.discovery.refresh, self._discover))
        self._tasks += [asyncio.create_task(each) for each in rounds]

    async def stop(self) -> None:
        """Stop every reader; bounded, whatever hangs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for engine in self.engines:
            engine.close()
        await self._parts.stop()

    async def metrics(self, timeout: float) -> bytes:
        """Return the merged page; engines have `timeout` seconds, and what fails becomes a metric."""
        started = time.monotonic()
        engines = self.engines
        fetched = await asyncio.gather(*(engine.fetch(timeout) for engine in engines))
        size = sum(len(one.raw) for one in fetched)
        result = await inline_or_thread(size, JOINING, partial(self._page, engines, fetched))
        self._scrapes += 1
        self._scrape_seconds = time.monotonic() - started
        return result

    async def request_metrics(self, timeout: float, *, openmetrics: bool) -> bytes:
        """Return the plugins' request metrics of all engines as one page; engines have `timeout` seconds."""
        engines = self.engines
        fetched = await asyncio.gather(*(engine.fetch_requests(timeout, openmetrics=openmetrics) for engine in engines))
        pages = [(engine, page) for engine, page in zip(engines, fetched, strict=True) if page is not None]
        result, conflicts = merged_request_pages((page for _, page in pages), openmetrics=openmetrics)
        for (engine, _), count in zip(pages, conflicts, strict=True):
            engine.type_conflicts += count
        return result

    def _page(self, engines: Sequence[Engine], fetched: Sequence[Fetched]) -> bytes:
        pages = [(engine, one.page) for engine, one in zip(engines, fetched, strict=True) if one.page is not None]
        theirs, conflicts = merge(page for _, page in pages)
        for (engine, _), count in zip(pages, conflicts, strict=True):
            engine.type_conflicts += count
        samples: list[Sample] = []
        for engine, one in zip(engines, fetched, strict=True):
            samples += engine.samples(one, is_stalled(engine, self.settings.health))
        return page([render(samples), *self._parts.lines()]) + theirs

    def _all_parts(self) -> dict[str, Part]:
        """Return everything that has samples of its own for the page, by the name that its cost and failures bear."""
        settings = self.settings
        parts: dict[str, Part] = {
            "placement": self._placement,
            "engine_processes": Counted(self._engine_processes.samples),
            "host": Host(
                settings.host.mode, str(settings.placement.procfs), node_exporter=settings.host.node_exporter_url
            ),
            "spot": SpotWatcher(settings.spot.cloud, settings.spot.endpoint),
            "alerts": self._alerts,
            "self": Counted(self._self_samples),
        }
        return parts | ({"gpus": self._gpus} if self._gpus is not None else {})

    def _self_samples(self) -> list[Sample]:
        origins = Counter(engine.origin for engine in self.engines)
        samples = [
            *self_samples(),
            Sample("vllm_vitals_scrapes_total", "", self._scrapes),
            Sample("vllm_vitals_web_config_reload_failures_total", "", self.web_reload_failures()),
            *(Sample("vllm_vitals_discovery_servers", label_pairs(origin=name), n) for name, n in origins.items()),
        ]
        for name, count in self._servers.failures.items():
            samples.append(Sample("vllm_vitals_discovery_failures_total", label_pairs(origin=name), count))
        for reason, count in self.rejected().items():
            samples.append(Sample("vllm_vitals_http_rejected_total", label_pairs(reason=reason), count))
        if self._scrape_seconds is not None:
            samples.append(Sample("vllm_vitals_scrape_duration_seconds", "", self._scrape_seconds))
        return samples

    async def _every(self, interval: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            started = time.monotonic()
            with self._parts.watched(work.__name__.strip("_")):  # a failed round must not end the rounds
                await work()
            await asyncio.sleep(max(0.1, interval - (time.monotonic() - started)))

    async def _discover(self) -> None:
        try:
            await asyncio.to_thread(self._servers.refresh)
            self._take_servers()
        finally:
            self._first_discovery.set()

    def _take_servers(self) -> None:
        """Open what is new and close what is gone; what stays keeps its connection and history."""
        wanted = dict(self._servers.servers())
        for gone in self._engines.keys() - wanted.keys():
            self._engines.pop(gone).close()
        known = self._engines
        self._engines = {
            settings: known.get(settings)
            or Engine(
                settings,
                origin,
                raw_names=self.settings.raw_names,
                max_page_bytes=self.settings.max_page_bytes,
                sample_interval=self.settings.sample_interval,
            )
            for settings, origin in wanted.items()
        }

    async def _observe(self) -> None:
        """Take a reading of everything: for health, placement and the live page."""
        await self._first_discovery.wait()
        interval = self.settings.sample_interval
        timeout = self.settings.scrape_timeout
        await asyncio.gather(*(engine.observe(interval, timeout) for engine in self.engines))
        if self._promises is not None and self._promises.is_due:
            with self._parts.watched("promises"):
                await self._promises.look(self.engines, timeout)
        gpus = self.gpu_snapshots()
        for gpu in gpus:
            for name, of in _GPU_TRACKS.items():
                self._gpu_tracks[gpu.uuid][name].add(of(gpu.reading))
            self._energy[gpu.uuid].add(gpu.taken_at, gpu.reading.energy_joules, WINDOW_SECONDS)
        if self.gpu_reason() != "starting":  # else a GPU named in the settings would count as missing
            self._placement.update(
                [_engine_facts(engine) for engine in self.engines], [_gpu_facts(gpu) for gpu in gpus]
            )
        await asyncio.to_thread(self._engine_processes.collect, self._placement.pids())
        self.ready.set()

    def gpu_snapshots(self) -> tuple[GpuSnapshot, ...]:
        """Return the GPUs as last read."""
        return self._gpus.snapshots() if self._gpus is not None else ()

    def gpu_reason(self) -> GpusCode | Literal[""]:
        """Return why no GPU is read, empty when they are."""
        return self._gpus.reason() if self._gpus is not None else "off"

    def gpu_verdicts(self) -> list[tuple[GpuSnapshot, Verdict]]:
        """Return the verdict on every GPU."""
        now = time.time()
        return [(gpu, gpu_verdict(gpu, self.settings.health, now)) for gpu in self.gpu_snapshots()]

    def engine_verdicts(self) -> list[tuple[Engine, Verdict]]:
        """Return the verdict on every server, from the last observation."""
        return [(engine, engine_verdict(engine, engine.latest, self.settings.health)) for engine in self.engines]

    def vitals(self) -> Vitals:
        """Return the answer of /api/vitals."""
        return vitals(
            self.engines,
            self.gpu_snapshots(),
            self._gpu_tracks,
            self._energy,
            self._placement.placed(),
            self.settings.health,
            gpu_reason=self.gpu_reason(),
            interval=self.settings.sample_interval,
            promises=self._promises.rows if self._promises is not None else (),
            sla=self._promises.origin if self._promises is not None else "",
            alerts=self._alerts.latest,
            scene=self._scene,
        )

    def watch_alerts(self, *, prometheus: str, alertmanager: str) -> None:
        """Show the alerts of these from now on, by URL, empty for none; an Alertmanager of the settings stays."""
        self._alerts = AlertWatch(prometheus, self.settings.alertmanager_url or alertmanager)
        self._parts.replace("alerts", self._alerts)

    def _new_gpu_tracks(self) -> dict[str, Track]:
        return {name: Track(self.settings.sample_interval) for name in _GPU_TRACKS}


def _monitor(settings: Settings, source: GpuSource | None) -> GpuMonitor | None:
    if not settings.gpus.enabled:
        return None
    if source is None:
        from .gpus.nvml.source import NvmlSource  # noqa: PLC0415  the demo needs no NVML

        source = NvmlSource()
    off = frozenset(name for name, on in settings.gpus.families.items() if not on)
    return GpuMonitor(source, settings.gpus.interval, settings.gpus.slow_interval, off)


def _engine_facts(engine: Engine) -> EngineFacts:
    known = engine.ring.known
    return EngineFacts(
        server=engine.server,
        url=engine.settings.url,
        pairs=known.pairs if known else (),
        gpus=engine.settings.gpus,
        state=f"{engine.latest.reason} {engine.ring.restarts}",
    )


def _gpu_facts(gpu: GpuSnapshot) -> GpuFacts:
    return GpuFacts(
        index=gpu.index,
        uuid=gpu.uuid,
        pids=tuple((process.pid, process.used_memory_bytes, process.mig_uuid) for process in gpu.processes),
        mig_uuids=gpu.mig_uuids,
        name=gpu.name,
    )

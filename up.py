"""`vllm-vitals up` and `demo`: the sidecar together with what makes it useful on one machine."""

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

from .alerts.sla import DEFAULT, load
from .companions import Companions, Missing
from .config import EngineSettings, Settings
from .demo.fleet import Fleet
from .demo.scenes import SCENES, Play
from .demo.serve import DemoServers
from .exporter.local_servers import find_local_servers
from .exporter.promised import Promises
from .exporter.serve import running, stop_signal
from .exporter.sidecar import Sidecar
from .in_force import in_force

TARGET_LABELS: Final = {"job": "vllm-vitals"}  # what the Prometheus beside us calls our series
_FIRST_LOOK_SECONDS: Final = 10.0
_FIRST_SCRAPE_SECONDS: Final = 30.0


async def up(settings: Settings, *, play: Play | None, state: Path, with_prometheus: bool, sla: Path | None) -> int:
    """Run everything until SIGINT or SIGTERM; returns the exit code.

    Args:
        settings: the user's settings.
        play: the demo's scene, None for the real machine.
        state: where Prometheus and Alertmanager keep their data.
        with_prometheus: start them when they are on PATH.
        sla: the promises that they watch, None for the default ones.
    """
    promises = load(sla or DEFAULT)  # a wrong file is told before anything starts
    watched = in_force(promises, sla, TARGET_LABELS if with_prometheus else {})
    stop = stop_signal()
    async with contextlib.AsyncExitStack() as stack:
        if play is None:
            sidecar = _real(settings, watched)
        else:
            sidecar = await stack.enter_async_context(_simulated(settings, play, watched))
        url = await stack.enter_async_context(running(settings, sidecar))
        await _wait(stop, sidecar.ready.wait(), _FIRST_LOOK_SECONDS)
        _describe(sidecar)
        print(f"live page     {url}/\nmetrics       {url}/metrics", flush=True)
        if with_prometheus:
            companions = await stack.enter_async_context(Companions(state, url, promises, own_sla=sla is not None))
            sidecar.watch_alerts(prometheus=companions.prometheus_url, alertmanager=companions.alertmanager_url)
            for missing in companions.missing:
                _explain(missing)
            if companions.prometheus_url:
                print("prometheus    waiting for the first scrape ...", flush=True)
                landed = await _wait(stop, companions.first_scrape(), _FIRST_SCRAPE_SECONDS)
                note = "" if landed else "  (no scrape landed yet: see the log)"
                print(f"prometheus    {companions.prometheus_url}/{note}")
                print(f"alerts        {companions.prometheus_url}/alerts  (promises: {sla or 'the default ones'})")
            if companions.alertmanager_url:
                print(f"alertmanager  {companions.alertmanager_url}/")
            if companions.prometheus_url:
                print(f"data, logs    {state}")
        if not stop.is_set():
            print("Ctrl-C stops everything", flush=True)
        await stop.wait()
        print("stopping ...", flush=True)
    return 0


async def demo(
    settings: Settings,
    *,
    play: Play,
    engines: int,
    gpus: int,
    base_port: int,
    seed: int,
    pages_only: bool,
    sla: Path | None,
) -> int:
    """Run simulated engines, and the sidecar over them, until SIGINT or SIGTERM; returns the exit code."""
    promises = in_force(load(sla or DEFAULT), sla, {})
    stop = stop_signal()
    fleet = Fleet.build(play.scene, engines, gpus, seed, times=play.times)
    print(f"scene {play.scene}: {SCENES[play.scene].description}")
    async with contextlib.AsyncExitStack() as stack:
        servers = DemoServers(fleet, base_port=base_port, speed=play.speed, when_over=partial(_say_over, play))
        await servers.start()
        stack.push_async_callback(servers.close)
        for name, engine_url in servers.urls.items():
            print(f"engine     {engine_url}/metrics  {name}")
        if not pages_only:
            url = await stack.enter_async_context(running(settings, _over(fleet, servers, settings, play, promises)))
            print(f"live page  {url}/\nmetrics    {url}/metrics")
        print("Ctrl-C stops everything", flush=True)
        await stop.wait()
    return 0


def _say_over(play: Play) -> None:
    print(f"scene {play.scene} is over: even load goes on", flush=True)


def _real(settings: Settings, promises: Promises) -> Sidecar:
    named = settings.engines or settings.discovery.files or settings.discovery.dns
    finder = None if named else partial(find_local_servers, settings.placement.procfs)
    return Sidecar(settings, finder=finder, promises=promises)


@contextlib.asynccontextmanager
async def _simulated(settings: Settings, play: Play, promises: Promises) -> AsyncIterator[Sidecar]:
    fleet = Fleet.build(play.scene, times=play.times)
    print(f"demo          scene {play.scene}: {SCENES[play.scene].description}")
    servers = DemoServers(fleet, base_port=0, speed=play.speed, when_over=partial(_say_over, play))
    await servers.start()
    try:
        yield _over(fleet, servers, settings, play, promises)
    finally:
        await servers.close()


def _over(fleet: Fleet, servers: DemoServers, settings: Settings, play: Play, promises: Promises) -> Sidecar:
    """Return a sidecar over a simulated fleet; the placement is given, since simulated engines have no processes."""
    placement = fleet.placement()
    engines = tuple(EngineSettings(url, name, gpus=placement[name]) for name, url in servers.urls.items())
    scene = play.scene if play.speed == 1.0 else f"{play.scene}, {play.speed:g} times as fast"
    return Sidecar(
        dataclasses.replace(settings, engines=engines), gpu_source=fleet.gpus, scene=scene, promises=promises
    )


async def _wait(stop: asyncio.Event, work: Coroutine[Any, Any, object], seconds: float) -> bool:
    """Return whether the work was done before the deadline and before somebody stopped us."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    done = working.done()
    working.cancel()
    stopping.cancel()
    return done


def _describe(sidecar: Sidecar) -> None:
    answer = sidecar.vitals()
    for sentence in answer["messages"]:
        print(f"note          {sentence}")
    for engine in answer["engines"]:
        state = "up" if engine["up"] else f"down: {engine['reason']}"
        print(f"engine        {engine['url']}  {', '.join(engine['models']) or '-'}  ({state})")
    kinds = Counter((gpu["name"], "up" if gpu["up"] else gpu["reason"]) for gpu in answer["gpus"])
    for (name, state), count in kinds.items():
        print(f"gpus          {count} x {name}  ({state})")


def _explain(missing: Missing) -> None:
    print(f"{missing.name:<13} {missing.advice}")

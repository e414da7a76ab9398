"""`vllm-vitals up` and `demo`: the sidecar together with what makes it useful on one machine."""

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..alerts.runbooks import runbooks
from ..alerts.sla_file import DEFAULT, load
from ..demo.fleet import Fleet
from ..demo.scenes import SCENES, Play
from ..demo.serve import DemoServers
from ..exporter.engines.local_servers import find_local_servers
from ..exporter.promises.promised import Promises
from ..exporter.scrape_listener import scrape_listener
from ..exporter.serve import running
from ..exporter.sidecar import Sidecar
from ..exporter.stopping import forever, until_stopped
from ..settings.config import EngineSettings, Settings
from ..settings.scalars import ConfigError
from .companions import Companions, Missing, not_installed
from .in_force import in_force
from .older_state import take_over
from .standard_output import say
from .state_folder import DEMO, REAL, StateError, StateFolder, default_folder, expanded, held

TARGET_LABELS: Final = {"job": "vllm-vitals"}  # what the Prometheus beside us calls our series
_FIRST_LOOK_SECONDS: Final = 10.0
_FIRST_SCRAPE_SECONDS: Final = 30.0


async def up(settings: Settings, *, play: Play | None, state: Path | None, with_prometheus: bool) -> int:
    """Run everything until SIGINT, SIGTERM or SIGHUP; returns the exit code.

    Args:
        settings: the user's settings; without an SLA the default promises are watched.
        play: the demo's scene, None for the real machine.
        state: the folder in which Prometheus and Alertmanager get one for their data, None for the default one.
        with_prometheus: start them when they are on PATH.

    Raises:
        ConfigError: something that the user named is wrong.
    """
    sla = settings.sla
    promises = load(sla or DEFAULT)  # a wrong file is told before anything starts
    watched = in_force(promises, sla, TARGET_LABELS if with_prometheus else {})

    async def work() -> None:
        async with contextlib.AsyncExitStack() as stack:
            name = REAL if play is None else DEMO
            folder = _hold(stack, state, name) if with_prometheus and state is not None else None
            if play is None:
                sidecar = _real(settings, watched)
            else:
                sidecar = await stack.enter_async_context(_simulated(settings, play, watched))
            url = await stack.enter_async_context(running(settings, sidecar, runbooks(promises)))
            if with_prometheus and state is None:  # a taken address is the first thing to say, then a taken folder
                folder = _hold(stack, None, name)
            await _within(_FIRST_LOOK_SECONDS, sidecar.ready.wait())
            _describe(sidecar)
            say(f"live page     {url}/\nmetrics       {url}/metrics")
            if isinstance(folder, StateFolder):
                listener = await stack.enter_async_context(scrape_listener(sidecar))
                companions = Companions(folder, url, listener, promises.with_exporter(url), own_sla=sla is not None)
                try:
                    await stack.enter_async_context(companions)
                except StateError as error:
                    _unusable(error, state)
                else:
                    sidecar.watch_alerts(prometheus=companions.prometheus_url, alertmanager=companions.alertmanager_url)
                    await _introduce(companions, f"{sla or 'the default ones'}")
                    say(f"data, logs    {folder.path}")
            say("Ctrl-C stops everything")
            await forever()

    await until_stopped(work(), farewell=lambda: say("stopping ..."))
    return 0


async def demo(
    settings: Settings, *, play: Play, engines: int, gpus: int, base_port: int, seed: int, pages_only: bool
) -> int:
    """Run simulated engines, and the sidecar over them, until SIGINT, SIGTERM or SIGHUP; returns the exit code."""
    promises = in_force(load(settings.sla or DEFAULT), settings.sla, {})
    fleet = Fleet.build(play.scene, engines, gpus, seed, times=play.times)
    say(f"scene {play.scene}: {SCENES[play.scene].description}")

    async def work() -> None:
        async with contextlib.AsyncExitStack() as stack:
            servers = DemoServers(fleet, base_port=base_port, speed=play.speed, when_over=partial(_say_over, play))
            stack.push_async_callback(servers.close)
            try:
                await servers.start()
            except (OSError, OverflowError) as error:  # the latter beyond 65535
                last = base_port + len(fleet.servers) - 1
                raise ConfigError(
                    f"--base-port: expected ports {base_port} to {last} to be free, found: {error}"
                ) from None
            for name, engine_url in servers.urls.items():
                say(f"engine     {engine_url}/metrics  {name}")
            if not pages_only:
                sidecar = _over(fleet, servers, settings, play, promises)
                url = await stack.enter_async_context(running(settings, sidecar))
                say(f"live page  {url}/\nmetrics    {url}/metrics")
            say("Ctrl-C stops everything")
            await forever()

    await until_stopped(work(), farewell=lambda: say("stopping ..."))
    return 0


def _hold(stack: contextlib.AsyncExitStack, state: Path | None, name: str) -> StateFolder | None:
    """Return our folder, None where no program would use it or the default one cannot be used."""
    absent = not_installed()
    for missing in absent:
        _explain(missing)
    if {"prometheus", "alertmanager"} <= {missing.name for missing in absent}:
        return None
    try:
        base = default_folder() if state is None else expanded(state)
        folder = stack.enter_context(held(base, name))
        if name == REAL and folder.new and (found := take_over(base, folder)):
            say(f"note          {found}")
    except StateError as error:
        _unusable(error, state)
        return None
    return folder


def _unusable(error: StateError, state: Path | None) -> None:
    """Say why there is no Prometheus; a folder that the user named is an error."""
    if state is not None:
        raise ConfigError(f"--state: {error}") from None
    _explain(Missing("prometheus", f"not started: {error}"))


async def _introduce(companions: Companions, promises: str) -> None:
    for missing in companions.missing:
        _explain(missing)
    if companions.prometheus_url:
        say("prometheus    waiting for the first scrape ...")
        landed = await _within(_FIRST_SCRAPE_SECONDS, companions.first_scrape())
        note = "" if landed else f"  (no scrape landed yet: {await companions.scrape_problem()})"
        say(f"prometheus    {companions.prometheus_url}/{note}")
        say(f"alerts        {companions.prometheus_url}/alerts  (promises: {promises})")
    if companions.alertmanager_url:
        say(f"alertmanager  {companions.alertmanager_url}/\nroutes        {companions.routes}")


def _say_over(play: Play) -> None:
    say(f"scene {play.scene} is over: even load goes on")


def _real(settings: Settings, promises: Promises) -> Sidecar:
    named = settings.engines or settings.discovery.files or settings.discovery.dns
    finder = None if named else partial(find_local_servers, settings.placement.procfs)
    return Sidecar(settings, finder=finder, promises=promises)


@contextlib.asynccontextmanager
async def _simulated(settings: Settings, play: Play, promises: Promises) -> AsyncIterator[Sidecar]:
    fleet = Fleet.build(play.scene, times=play.times)
    say(f"demo          scene {play.scene}: {SCENES[play.scene].description}")
    servers = DemoServers(fleet, base_port=0, speed=play.speed, when_over=partial(_say_over, play))
    try:
        await servers.start()
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


async def _within(seconds: float, work: Coroutine[Any, Any, object]) -> bool:
    """Return whether the work was done before the deadline."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True


def _describe(sidecar: Sidecar) -> None:
    answer = sidecar.vitals()
    for sentence in answer.messages:
        say(f"note          {sentence}")
    for engine in answer.engines:
        state = "up" if engine.up else f"down: {engine.reason}"
        say(f"engine        {engine.url}  {', '.join(engine.models) or '-'}  ({state})")
    kinds = Counter((gpu.name, "up" if gpu.up else gpu.reason) for gpu in answer.gpus)
    for (name, state), count in kinds.items():
        say(f"gpus          {count} x {name}  ({state})")


def _explain(missing: Missing) -> None:
    say(f"{missing.name:<13} {missing.advice}")

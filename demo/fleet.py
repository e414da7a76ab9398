"""Simulated servers, their GPUs and one clock, playing a scene."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final, NamedTuple

from .clock import Clock
from .engine import SimulatedEngine, Work
from .gpus import Load, SimulatedGpus
from .models import MODELS, Model
from .scenes import SCENES, Action, Scene, SceneEvent, shaped
from .server import Server

TICK: Final = 0.1  # seconds; GPUs, dispatch and scene events go by ticks, engine steps do not
_EPOCH: Final = 1_767_225_600.0  # 2026-01-01, so that an unattended fleet has the same page every time


class EngineGpu(NamedTuple):
    """One engine on one GPU."""

    server: str
    engine: int
    model_name: str
    gpu: int
    uuid: str


class _Seat(NamedTuple):
    """Where an engine sits: indices into servers, their engines, and GPUs."""

    server: int
    engine: int
    gpus: tuple[int, ...]


class Fleet:
    """Servers and GPUs that follow one scene. Advance and read pages from one thread; GPUs may be read from any.

    Attributes:
        epoch: Unix time at which the clock was 0.
        now: seconds played so far.
        servers: the simulated servers.
        gpus: a GPU source for the exporter.
        over: whether the scene has been played as often as it should; even load goes on.
    """

    def __init__(
        self,
        scene: Scene,
        servers: tuple[Server, ...],
        seats: tuple[_Seat, ...],
        gpus: SimulatedGpus,
        times: int | None = None,
    ) -> None:
        self.now = 0.0
        self.servers = servers
        self.gpus = gpus
        self.over = False
        self._scene = scene
        self._times = times
        self._seats = seats
        self._ticks = 0
        self._played = 0  # events, over all cycles
        self._keep_time(gpus.clock)
        self._before: dict[tuple[int, int], tuple[SimulatedEngine, Work]] = {}
        self._actions: dict[Action, Callable[[SceneEvent], None]] = {
            Action.HEAT: lambda event: self._on_gpu(event, gpus.heat),
            Action.COOL: lambda event: self._on_gpu(event, gpus.cool),
            Action.XID: lambda event: self._on_gpu(event, lambda gpu: gpus.report_xid(gpu, event.code)),
            Action.LOSE: lambda event: self._on_gpu(event, gpus.lose),
            Action.RECOVER: lambda event: self._on_gpu(event, gpus.recover),
            Action.STALL: lambda event: servers[event.server].stall(),
            Action.CRASH: lambda event: servers[event.server].crash(),
            Action.RESTART: lambda event: servers[event.server].restart(),
        }

    @classmethod
    def build(
        cls,
        scene: str,
        engines: int = 2,
        gpus: int = 8,
        seed: int = 0,
        epoch: float = _EPOCH,
        *,
        times: int | None = None,
    ) -> "Fleet":
        """Return a fleet of `engines` servers; those for which no GPU is left run without one.

        Args:
            scene: its name.
            engines: number of servers.
            gpus: number of GPUs.
            seed: of everything random.
            epoch: Unix time at which the clock is 0.
            times: how often the scene is played before even load goes on; None: again and again.

        Raises:
            KeyError: the scene is not in SCENES.
        """
        playing = SCENES[scene]
        servers: list[Server] = []
        seats: list[_Seat] = []
        free = list(range(gpus))
        for number in range(engines):
            model = MODELS[number % len(MODELS)]
            servers.append(_server(model, playing, number, seed))
            for engine in range(model.engines):
                size = model.config.tensor_parallel_size
                seats.append(_Seat(number, engine, tuple(free[:size])))
                del free[:size]
        return cls(playing, tuple(servers), tuple(seats), SimulatedGpus(gpus, seed, epoch), times)

    @property
    def epoch(self) -> float:
        """Return the Unix time at which the clock was 0."""
        return self.gpus.clock.epoch

    def begin_at(self, epoch: float, speed: float = 1.0) -> None:
        """Set the Unix time of clock 0, and its speed; raises RuntimeError once the fleet has been played."""
        if self._ticks:
            raise RuntimeError("the fleet has been played already")
        self._keep_time(Clock(epoch, speed))

    def _keep_time(self, clock: Clock) -> None:
        self.gpus.keep_time(clock)
        for server in self.servers:
            server.clock = clock

    def advance(self, to: float) -> None:
        """Play up to a moment, in whole ticks."""
        while (self._ticks + 1) * TICK <= to + 1e-9:
            self._ticks += 1
            now = self._ticks * TICK
            for server in self.servers:
                server.advance(now)
            self.gpus.advance(now, self._loads(now - self.now))
            for seat in self._seats:
                speed = min((self.gpus.speed(gpu) for gpu in seat.gpus), default=1.0)
                self.servers[seat.server].engines[seat.engine].slowdown = speed
            self.now = now
            self._play()
            if self._times is not None and not self.over and now >= self._times * self._scene.period:
                self._end()

    def page(self, server: Server) -> bytes:
        """Return a server's metrics page."""
        return server.page()

    def placement(self) -> dict[str, tuple[str, ...]]:
        """Return the UUIDs of each server's GPUs, as a config would name them."""
        placed: dict[str, tuple[str, ...]] = {server.name: () for server in self.servers}
        for row in self.engine_gpus():
            placed[row.server] += (row.uuid,)
        return placed

    def engine_gpus(self) -> tuple[EngineGpu, ...]:
        """Return which engine is on which GPU."""
        return tuple(
            EngineGpu(server.name, seat.engine, server.config.model_name, gpu, self.gpus.uuids[gpu])
            for seat in self._seats
            for server in (self.servers[seat.server],)
            for gpu in seat.gpus
        )

    def _loads(self, seconds: float) -> dict[int, Load]:
        loads: dict[int, Load] = {}
        for seat in self._seats:
            server = self.servers[seat.server]
            if not server.up:
                continue
            engine = server.engines[seat.engine]
            work = engine.work
            known, before = self._before.get((seat.server, seat.engine), (None, Work(0.0, 0.0, 0.0)))
            if known is not engine:  # restarted
                before = Work(0.0, 0.0, 0.0)
            self._before[seat.server, seat.engine] = (engine, work)
            load = Load(
                prefill=min(1.0, (work.prefill_seconds - before.prefill_seconds) / seconds),
                decode=min(1.0, (work.decode_seconds - before.decode_seconds) / seconds),
                link_bytes=(work.tokens - before.tokens) * server.config.collective_bytes_per_token,
                memory_share=server.config.gpu_memory_utilization,
                pace=engine.slowdown,
                hung=engine.stalled,
            )
            for rank, gpu in enumerate(seat.gpus):
                loads[gpu] = load._replace(pid=server.worker_pid(seat.engine, rank))
        return loads

    def _play(self) -> None:
        """Let the scene's events happen that are due."""
        events = self._scene.events
        while events:
            cycle, index = divmod(self._played, len(events))
            event = events[index]
            if cycle * self._scene.period + event.at > self.now or cycle == self._times:
                return
            self._played += 1
            if event.server < len(self.servers):
                self._actions[event.action](event)

    def _end(self) -> None:
        """Go on with what the servers usually get; each scene leaves GPUs and servers as it found them."""
        self.over = True
        for number, server in enumerate(self.servers):
            model = MODELS[number % len(MODELS)]
            server.change(model.config, model.traffic)

    def _on_gpu(self, event: SceneEvent, act: Callable[[int], None]) -> None:
        gpus = [gpu for seat in self._seats if seat.server == event.server for gpu in seat.gpus]
        if event.gpu < len(gpus):
            act(gpus[event.gpu])


def _server(model: Model, scene: Scene, number: int, seed: int) -> Server:
    shape = scene.shapes[number % len(scene.shapes)]
    config = model.config
    if shape.batched_tokens is not None:
        config = replace(config, max_num_batched_tokens=shape.batched_tokens)
    again = number // len(MODELS)
    name = f"{model.name}-{again + 1}" if again else model.name
    traffic = shaped(model.traffic, shape, scene.period)
    random = Random(f"{seed}:{name}")  # noqa: S311  reproducible, and nothing secret
    return Server(name, config, traffic, engines=model.engines, number=number, random=random)

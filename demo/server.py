"""One simulated vLLM server: an API process in front of its engine cores (data parallel), and the clients it has."""

from random import Random
from typing import Final

from .clock import Clock
from .engine import EngineConfig, SimulatedEngine
from .exposition import Page, Process
from .http_layer import HttpLayer
from .request_page import RequestPage
from .workload import Traffic, Workload

LOAD_SECONDS: Final = 22.0  # from the process's start until the port answers: weights, graph capture
_REFUSAL_SECONDS: Final = 0.003
# Above every kernel's pid_max (4194304), so that nobody takes a simulated engine for a process of this machine.
_FIRST_PID: Final = 5_000_000


class Server:
    """A server that can crash and come back; counters start anew each time, clients keep sending meanwhile.

    Attributes:
        name: what a config would call it.
        up: whether the port answers.
        started: when its present process began to answer, on the fleet's clock.
        engines: its engine cores; replaced at a restart.
        requests: what the plugin would count.
        clock: the fleet's.
    """

    def __init__(
        self, name: str, config: EngineConfig, traffic: Traffic, *, engines: int, number: int, random: Random
    ) -> None:
        self.name = name
        self.config = config
        self.up = True
        self._size = engines
        self._pid = _FIRST_PID + number * 10_000
        self._workload = Workload(traffic, config.max_model_len, random)
        self._traces = Random(f"{name}:traces")  # noqa: S311  of their own, so that no traffic depends on them
        self.clock = Clock(0.0)
        self._start(0.0)

    def _start(self, now: float) -> None:
        self.engines = tuple(SimulatedEngine(self.config, now) for _ in range(self._size))
        self.http = HttpLayer()
        self.requests = RequestPage(self.config.model_name, self._traces)
        self.started = now
        self._page: Page | None = None
        self.now = now

    def crash(self) -> None:
        """Stop answering; what was running is lost."""
        self.up = False
        self._pid += 100

    def restart(self) -> None:
        """Answer again, as a new process with counters at 0."""
        self._start(self.now)
        self.up = True

    def stall(self) -> None:
        """Let the engines hang in the middle of a step while the API process keeps answering."""
        for engine in self.engines:
            engine.stall()

    def change(self, config: EngineConfig, traffic: Traffic) -> None:
        """Go on with other settings and other traffic; counters and running requests stay."""
        self.config = config
        for engine in self.engines:
            engine.config = config
        self._workload.change(traffic, self.now)

    def worker_pid(self, engine: int, rank: int) -> int:
        """Return the simulated process that holds a GPU."""
        return self._pid + 1 + engine * 8 + rank

    def advance(self, to: float) -> None:
        """Let clients and engines do what happens up to a moment."""
        arrivals = list(self._workload.until(to))
        self.now = to
        if not self.up:
            return  # connection refused; these clients do not come back
        for request in arrivals:
            if request.bad:
                self.http.refused(request, request.arrival + _REFUSAL_SECONDS)
                self.requests.refused(request, request.arrival + _REFUSAL_SECONDS, self.clock)
            else:
                min(self.engines, key=_load).submit(request)
        for engine in self.engines:
            for outcome in engine.advance(to):
                self.http.answered(outcome.request, outcome.at, outcome.generated)
                self.requests.answered(outcome, self.clock)
                if outcome.reason != "abort":
                    self._workload.answered(outcome.request, outcome.generated)

    def page(self) -> bytes:
        """Return the metrics page."""
        if self._page is None:
            self._page = Page(self.config, self._size, self.clock.unix(self.started))
        return self._page.text(self._process(), self.engines, self.http, self.clock)

    def _process(self) -> Process:
        requests = sum(number for number, _ in self.http.requests.values())
        tokens = sum(engine.stats.generation_tokens for engine in self.engines)
        uptime = self.now - self.started
        return Process(
            start_time_seconds=round(self.clock.unix(self.started) - LOAD_SECONDS, 2),
            cpu_seconds_total=15.0 + 0.01 * uptime + 0.004 * requests + 0.0001 * tokens,
            resident_memory_bytes=float(620 * 2**20),
            open_fds=40 + sum(engine.running for engine in self.engines),
            gc_collections=(1500 + requests, 140 + requests // 11, 10 + requests // 130),
        )


def _load(engine: SimulatedEngine) -> int:
    return engine.load

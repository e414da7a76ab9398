"""What clients send to one server: arrivals, lengths, shared prefixes, conversations, disconnects, bad requests."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"

_SESSIONS_KEPT: Final = 256  # conversations that may go on; the oldest are forgotten
_INGRESS_BASE: Final = 0.004  # seconds in the API server before the core sees a request: HTTP, tokeniser, IPC
_INGRESS_PER_TOKEN: Final = 2e-6
_INGRESS_JITTER: Final = 0.004


class Lengths(NamedTuple):
    """A log-normal length in tokens."""

    median: float
    sigma: float

    def draw(self, random: Random) -> int:
        """Return one length, at least 1."""
        return max(1, round(random.lognormvariate(math.log(self.median), self.sigma)))


class TrafficPhase(NamedTuple):
    """From `start` seconds of a cycle on, arrivals come at `factor` times the base rate."""

    start: float
    factor: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """What arrives at one server.

    Attributes:
        rate: requests per second at factor 1.
        prompt: new tokens of a turn, without shared prefix and history.
        output: tokens that the model wants to say.
        max_tokens: values that clients ask for, equally often.
        prefixes: lengths of the shared system prompts, in tokens.
        follow_up: share of requests that continue an earlier conversation.
        abort: share of requests whose client goes away early.
        bad: share of requests that validation refuses.
        cycle: seconds after which the phases repeat.
        phases: arrival rate over the cycle, by start.
    """

    rate: float
    prompt: Lengths
    output: Lengths
    max_tokens: tuple[int, ...] = (256, 512, 1024, 4096)
    prefixes: tuple[int, ...] = (1200, 640, 320, 0)
    follow_up: float = 0.45
    abort: float = 0.015
    bad: float = 0.004
    cycle: float = 3600.0
    phases: tuple[TrafficPhase, ...] = (TrafficPhase(0.0, 1.0),)

    def rate_at(self, time: float) -> float:
        """Return the arrival rate at a moment, in requests per second."""
        within = time % self.cycle
        factor = next(phase.factor for phase in reversed(self.phases) if phase.start <= within)
        return self.rate * factor

    @property
    def highest_rate(self) -> float:
        """Return the highest arrival rate of the cycle."""
        return self.rate * max(phase.factor for phase in self.phases)


class SimulatedRequest(NamedTuple):
    """One request, with everything that its client and the model's answer will decide.

    Attributes:
        number: unique within its server.
        arrival: seconds on the fleet's clock.
        ingress: seconds until the engine core may see it.
        prompt_tokens: whole prompt, shared prefix and history included.
        output_tokens: tokens until the model stops or max_tokens cuts it.
        max_tokens: the request's parameter.
        prefix: name of the shared prefix; empty for none.
        prefix_tokens: its length.
        session: number of the conversation.
        gives_up: moment at which the client disconnects; infinite for never.
        handler: HTTP path.
        streaming: whether the answer is streamed, which leaves out its Content-Length.
        bad: whether validation refuses it.
    """

    number: int
    arrival: float
    ingress: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    prefix: str
    prefix_tokens: int
    session: int
    gives_up: float
    handler: str
    streaming: bool
    bad: bool


class _Session(NamedTuple):
    number: int
    prefix: str
    prefix_tokens: int
    history: int  # tokens after the shared prefix


class Workload:
    """An endless, reproducible stream of requests for one server.

    Open loop: arrivals do not wait for answers, so an overloaded engine really builds a queue.
    """

    def __init__(self, traffic: Traffic, max_model_len: int, random: Random) -> None:
        self._traffic = traffic
        self._max_model_len = max_model_len
        self._random = random
        self._number = 0
        self._sessions: list[_Session] = []
        self._next_arrival = 0.0
        self._draw_arrival()

    def until(self, time: float) -> Iterator[SimulatedRequest]:
        """Yield the requests that arrive up to a moment, once each."""
        while self._next_arrival <= time:
            arrival = self._next_arrival
            self._draw_arrival()
            yield self._request(arrival)

    def change(self, traffic: Traffic, now: float) -> None:
        """Let other traffic arrive from now on, which has conversations of its own."""
        self._traffic = traffic
        self._sessions.clear()
        self._next_arrival = now  # a Poisson process has no memory, so the arrival that was drawn may be forgotten
        self._draw_arrival()

    def answered(self, request: SimulatedRequest, generated: int) -> None:
        """Let a conversation go on: its next turn repeats prompt and answer."""
        history = request.prompt_tokens - request.prefix_tokens + generated
        if request.prefix_tokens + history > self._max_model_len // 2:
            return
        self._sessions.append(_Session(request.session, request.prefix, request.prefix_tokens, history))
        if len(self._sessions) > _SESSIONS_KEPT:
            del self._sessions[0]

    def _draw_arrival(self) -> None:
        """Draw the next arrival of a Poisson process of changing rate, by thinning (Lewis and Shedler 1979)."""
        highest = self._traffic.highest_rate
        while True:
            self._next_arrival += self._random.expovariate(highest)
            if self._random.random() * highest <= self._traffic.rate_at(self._next_arrival):
                return

    def _request(self, arrival: float) -> SimulatedRequest:
        traffic, random = self._traffic, self._random
        self._number += 1
        if self._sessions and random.random() < traffic.follow_up:
            session = self._sessions.pop(random.randrange(len(self._sessions)))
        else:
            kind = random.randrange(len(traffic.prefixes))
            tokens = traffic.prefixes[kind]
            session = _Session(self._number, f"system-{kind}" if tokens else "", tokens, 0)
        max_tokens = random.choice(traffic.max_tokens)
        room = self._max_model_len - session.prefix_tokens - session.history - 2
        new_tokens = min(traffic.prompt.draw(random), room)
        prompt_tokens = session.prefix_tokens + session.history + new_tokens
        max_tokens = min(max_tokens, self._max_model_len - prompt_tokens)
        early = random.random() < traffic.abort
        return SimulatedRequest(
            number=self._number,
            arrival=arrival,
            ingress=_INGRESS_BASE + prompt_tokens * _INGRESS_PER_TOKEN + random.expovariate(1 / _INGRESS_JITTER),
            prompt_tokens=prompt_tokens,
            output_tokens=min(traffic.output.draw(random), max_tokens),
            max_tokens=max_tokens,
            prefix=session.prefix,
            prefix_tokens=session.prefix_tokens,
            session=session.number,
            gives_up=arrival + random.expovariate(0.5) if early else math.inf,
            handler=CHAT if random.random() < 0.85 else COMPLETIONS,
            streaming=random.random() < 0.7,
            bad=random.random() < traffic.bad,
        )

"""The demo's scenes as a table: what arrives, and what happens to GPUs and servers; every scene can repeat."""

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Final, NamedTuple

from .workload import Lengths, Traffic, TrafficPhase


class Action(Enum):
    """What can happen; `fleet` says how."""

    HEAT = "a GPU loses its cooling"
    COOL = "its cooling is back"
    XID = "the driver reports an XID"
    LOSE = "a GPU falls off the bus"
    RECOVER = "a reset brings a GPU back, rows remapped"
    STALL = "the engines hang inside a collective, the API process still answers"
    CRASH = "the server's process ends"
    RESTART = "a new process answers"


class SceneEvent(NamedTuple):
    """One thing that happens.

    Attributes:
        at: seconds into the scene's period.
        server: index of the server.
        gpu: which of the server's GPUs, for actions on a GPU.
        code: XID.
    """

    at: float
    action: Action
    server: int = 0
    gpu: int = 0
    code: int = 0


class Shape(NamedTuple):
    """How a scene changes a server's usual traffic; `None` leaves it.

    Attributes:
        rate_factor: arrivals relative to the usual rate.
        batched_tokens: max_num_batched_tokens of the engines.
    """

    rate_factor: float = 1.0
    prompt: Lengths | None = None
    output: Lengths | None = None
    follow_up: float | None = None
    max_tokens: tuple[int, ...] | None = None
    phases: tuple[TrafficPhase, ...] = (TrafficPhase(0.0, 1.0),)
    batched_tokens: int | None = None


class Scene(NamedTuple):
    """One scene; shapes are by server index, and further servers repeat them."""

    description: str
    period: float
    shapes: tuple[Shape, ...] = (Shape(),)
    events: tuple[SceneEvent, ...] = ()


class Play(NamedTuple):
    """How a scene is played.

    Attributes:
        scene: its name.
        times: how often, before even load goes on; None: again and again.
        speed: seconds of the scene per second.
    """

    scene: str
    times: int | None = None
    speed: float = 1.0


def shaped(traffic: Traffic, shape: Shape, period: float) -> Traffic:
    """Return a server's traffic in a scene."""
    return replace(
        traffic,
        rate=traffic.rate * shape.rate_factor,
        prompt=shape.prompt or traffic.prompt,
        output=shape.output or traffic.output,
        follow_up=traffic.follow_up if shape.follow_up is None else shape.follow_up,
        max_tokens=shape.max_tokens or traffic.max_tokens,
        cycle=period,
        phases=shape.phases,
    )


_FILL: Final = (TrafficPhase(0, 4.0), TrafficPhase(30, 1.2), TrafficPhase(150, 0.2))  # fast, then held, then drained

SCENES: Final[Mapping[str, Scene]] = {
    "steady": Scene("two models under even load: the normal picture", period=60),
    "burst": Scene(
        "every 90 s six times the arrivals for 14 s: a queue builds up and TTFT p99 grows",
        period=90,
        shapes=(Shape(phases=(TrafficPhase(0, 1.0), TrafficPhase(25, 6.0), TrafficPhase(39, 1.0))),),
    ),
    "kv-pressure": Scene(
        "long contexts and long answers: the KV cache fills up, sequences are preempted and computed again",
        period=240,
        shapes=(
            Shape(0.14, Lengths(6000, 0.35), Lengths(2000, 0.3), 0.0, (4096,), _FILL),
            Shape(0.105, Lengths(6000, 0.35), Lengths(2000, 0.3), 0.0, (4096,), _FILL),
        ),
    ),
    "slow-prefill": Scene(
        "long prompts, short answers, small chunks: TTFT is seconds while the time per output token stays fine",
        period=60,
        shapes=(
            Shape(0.15, Lengths(12000, 0.4), Lengths(90, 0.5), 0.0, batched_tokens=512),
            Shape(0.16, Lengths(14000, 0.4), Lengths(90, 0.5), 0.0, batched_tokens=512),
        ),
    ),
    "gpu-throttle": Scene(
        "one of the first engine's GPUs overheats from 20 s to 110 s of every 180 s: clocks and power fall, TPOT grows",
        period=180,
        shapes=(Shape(prompt=Lengths(520, 0.75)), Shape()),  # so much that half the clocks are felt
        events=(SceneEvent(20, Action.HEAT, gpu=2), SceneEvent(110, Action.COOL, gpu=2)),
    ),
    "xid": Scene(
        "at 30 s of every 180 s a GPU falls off the bus (XID 79): its engine hangs, crashes and comes back at 115 s; "
        "at 75 s another GPU reports a contained memory error (XID 94)",
        period=180,
        events=(
            SceneEvent(30, Action.XID, gpu=1, code=79),
            SceneEvent(30, Action.LOSE, gpu=1),
            SceneEvent(30, Action.STALL),
            SceneEvent(60, Action.CRASH),
            SceneEvent(75, Action.XID, server=1, code=94),
            SceneEvent(90, Action.RECOVER, gpu=1),
            SceneEvent(115, Action.RESTART),
            SceneEvent(150, Action.RECOVER, server=1),
        ),
    ),
    "engine-crash": Scene(
        "at 40 s of every 120 s the first engine refuses connections, and at 70 s it is back with counters at 0",
        period=120,
        events=(SceneEvent(40, Action.CRASH), SceneEvent(70, Action.RESTART)),
    ),
}

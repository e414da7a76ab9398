"""A demo in fast motion: more happens per second, and everything on its pages agrees about how much."""

import re

import pytest
from vllm_vitals.demo.fleet import Fleet

SPEEDS = (1.0, 3.0, 10.0)


def gpu(fleet: Fleet) -> dict[str, float]:
    return {f"{family}{{{labels}}}": value for family, labels, value in fleet.gpus.open()[0].read(slow=True)}


def tokens(fleet: Fleet) -> float:
    return sum(engine.stats.generation_tokens for engine in fleet.servers[0].engines)


def played(speed: float) -> tuple[Fleet, dict[str, float], float]:
    """A fleet after 60 of its seconds, and what the next 60 brought."""
    fleet = Fleet.build("steady")
    fleet.begin_at(1_700_000_000.0, speed)
    fleet.advance(60.0)
    before, made = gpu(fleet), tokens(fleet)
    fleet.advance(120.0)
    return fleet, {name: value - before[name] for name, value in gpu(fleet).items()}, tokens(fleet) - made


@pytest.mark.parametrize("speed", SPEEDS)
def test_joules_per_token_do_not_depend_on_the_speed(speed):
    _, gained, made = played(speed)
    _, usual, made_usually = played(1.0)
    energy = "nvidia_gpu_energy_joules_total{}"
    assert gained[energy] / made == pytest.approx(usual[energy] / made_usually)


@pytest.mark.parametrize("speed", SPEEDS)
def test_watts_are_the_joules_of_a_second_and_a_second_has_one_busy_second_at_most(speed):
    fleet, gained, _ = played(speed)
    seconds = 60.0 / speed
    now = gpu(fleet)
    watts = gained["nvidia_gpu_energy_joules_total{}"] / seconds
    assert now['nvidia_gpu_power_watts{kind="average"}'] == pytest.approx(watts, rel=0.2)
    assert now['nvidia_gpu_power_watts{kind="average"}'] < now['nvidia_gpu_power_limit_watts{kind="enforced"}']
    assert 0.5 < gained["nvidia_gpu_busy_seconds_total{}"] / seconds <= 1.0 + 1e-6
    held = [value for name, value in gained.items() if name.startswith("nvidia_gpu_throttle_seconds_total")]
    assert max(held) <= seconds + 1e-6


@pytest.mark.parametrize("speed", SPEEDS)
def test_times_on_pages_are_never_in_the_future(speed):
    fleet = Fleet.build("xid")
    fleet.begin_at(1_700_000_000.0, speed)
    fleet.advance(179.0)
    now = 1_700_000_000.0 + 179.0 / speed
    events = fleet.gpus.events(0.0)
    assert [event.timestamp for event in events] == pytest.approx([now - 149 / speed, now - 104 / speed], abs=0.2)
    for server in fleet.servers:
        lines = fleet.page(server).decode().splitlines()
        told = [float(line.rsplit(" ", 1)[1]) for line in lines if re.match(r"\w+[:\w]*_created|process_start", line)]
        assert told
        assert max(told) <= now + 0.2
        exemplars = re.findall(rb" # \{.*?\} \S+ (\S+)\n", server.requests.text(openmetrics=True))
        assert exemplars
        assert max(map(float, exemplars)) <= now + 0.2

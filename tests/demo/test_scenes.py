"""Each scene shows what its description says, in its first cycle and in a later one."""

import pytest
from vllm_vitals.demo.engine import SimulatedEngine
from vllm_vitals.demo.fleet import Fleet
from vllm_vitals.demo.scenes import SCENES
from vllm_vitals.exporter.gpus.types import GpuError


def mean(engine: SimulatedEngine, family: str, since: tuple[int, float] = (0, 0.0)) -> float:
    """Mean of what a histogram observed since an earlier `mark`."""
    histogram = engine.stats.histograms[family]
    return (histogram.sum - since[1]) / (histogram.count - since[0])


def mark(engine: SimulatedEngine, family: str) -> tuple[int, float]:
    histogram = engine.stats.histograms[family]
    return histogram.count, histogram.sum


GAP = "vllm:inter_token_latency_seconds"
TTFT = "vllm:time_to_first_token_seconds"
TPOT = "vllm:request_time_per_output_token_seconds"


def gpu_values(fleet: Fleet, index: int) -> dict[str, float]:
    return {f"{family}{{{labels}}}": value for family, labels, value in fleet.gpus.open()[index].read(slow=True)}


def is_lost(fleet: Fleet, index: int) -> bool:
    try:
        fleet.gpus.open()[index].read(slow=False)
    except GpuError as error:
        return error.reason == "lost"
    return False


def test_every_scene_says_what_it_shows():
    assert set(SCENES) == {
        "steady",
        "burst",
        "kv-pressure",
        "slow-prefill",
        "gpu-throttle",
        "xid",
        "engine-crash",
    }
    assert all(len(scene.description) > 20 for scene in SCENES.values())


def test_an_unknown_scene_is_refused():
    with pytest.raises(KeyError):
        Fleet.build("calm")


def test_steady_keeps_its_promises():
    fleet = Fleet.build("steady")
    fleet.advance(200.0)
    for server in fleet.servers:
        for engine in server.engines:
            assert mean(engine, TTFT) < 0.3
            assert mean(engine, TPOT) < 0.04
            assert engine.stats.preemptions == 0
            assert engine.stats.prefix_hits / engine.stats.prefix_queries > 0.3
            assert engine.stats.finished["stop"] > engine.stats.finished["length"] > 0


@pytest.mark.parametrize("cycle", [0, 2])
def test_burst_builds_up_a_queue_and_works_it_off(cycle):
    fleet = Fleet.build("burst")
    engine = fleet.servers[0].engines[0]
    start = cycle * SCENES["burst"].period
    fleet.advance(start + 24.0)
    calm = (engine.waiting, mark(engine, TTFT))
    longest = 0
    for second in range(24, 60):
        fleet.advance(start + second)
        longest = max(longest, engine.waiting)
    assert calm[0] < 5
    assert longest > 50
    assert mean(engine, TTFT, calm[1]) > 2.0
    fleet.advance(start + 90.0 + 20.0)
    assert engine.waiting < 5


def test_kv_pressure_fills_the_cache_and_preempts():
    fleet = Fleet.build("kv-pressure")
    fullest = 0.0
    for second in range(240):
        fleet.advance(second)
        fullest = max(fullest, fleet.servers[0].engines[0].pool.used / fleet.servers[0].config.num_gpu_blocks)
    engine = fleet.servers[0].engines[0]
    assert fullest > 0.98
    assert engine.stats.preemptions > 0
    assert engine.stats.histograms["vllm:request_num_preemptions"].sum > 0
    in_first_cycle = engine.stats.preemptions
    fleet.advance(480.0)
    assert engine.stats.preemptions > in_first_cycle


def test_slow_prefill_shows_in_ttft_and_not_in_tpot():
    slow, steady = Fleet.build("slow-prefill"), Fleet.build("steady")
    for fleet in (slow, steady):
        fleet.advance(200.0)
    ours, usual = slow.servers[0].engines[0], steady.servers[0].engines[0]
    assert mean(ours, TTFT) > 2.0 > 10 * mean(usual, TTFT)
    assert mean(ours, TPOT) < 0.08


@pytest.mark.parametrize("cycle", [0, 1])
def test_gpu_throttle_heats_one_gpu_and_slows_its_engine(cycle):
    fleet = Fleet.build("gpu-throttle")
    engine = fleet.servers[0].engines[0]
    start = cycle * SCENES["gpu-throttle"].period
    fleet.advance(start + 3.0)
    usual = mark(engine, GAP)
    fleet.advance(start + 19.0)
    usual_gap, usual_gpu = mean(engine, GAP, usual), gpu_values(fleet, 2)
    fleet.advance(start + 60.0)
    slowed = mark(engine, GAP)
    fleet.advance(start + 109.0)
    gpu, neighbour = gpu_values(fleet, 2), gpu_values(fleet, 3)
    seconds = 'nvidia_gpu_throttle_seconds_total{reason="sw_thermal"}'
    assert mean(engine, GAP, slowed) > 1.5 * usual_gap
    assert 88 <= gpu['nvidia_gpu_temperature_celsius{sensor="gpu"}'] <= 92
    assert gpu['nvidia_gpu_throttle_active{reason="sw_thermal"}'] == 1
    assert gpu[seconds] > usual_gpu[seconds] + 40.0
    assert gpu['nvidia_gpu_clock_hertz{domain="sm"}'] < 0.6 * usual_gpu['nvidia_gpu_clock_hertz{domain="sm"}']
    average = 'nvidia_gpu_power_watts{kind="average"}'
    assert gpu[average] < 0.6 * usual_gpu[average]
    assert gpu[average] < neighbour[average] < usual_gpu[average]  # the others wait for it
    assert neighbour[seconds] == 0
    fleet.advance(start + 170.0)
    cooled = gpu_values(fleet, 2)
    assert cooled['nvidia_gpu_throttle_active{reason="sw_thermal"}'] == 0
    assert cooled['nvidia_gpu_temperature_celsius{sensor="gpu"}'] < 70


@pytest.mark.parametrize("cycle", [0, 1])
def test_xid_79_takes_the_gpu_and_then_its_engine(cycle):
    fleet = Fleet.build("xid")
    server = fleet.servers[0]
    start = cycle * SCENES["xid"].period
    fleet.advance(start + 29.0)
    fleet.gpus.events(0.0)
    assert not is_lost(fleet, 1)
    fleet.advance(start + 31.0)
    assert [(event.uuid, event.code, event.timestamp) for event in fleet.gpus.events(0.0)] == [
        (fleet.gpus.uuids[1], 79, pytest.approx(fleet.epoch + start + 30.0))
    ]
    assert [is_lost(fleet, gpu) for gpu in range(8)] == [gpu == 1 for gpu in range(8)]
    assert server.up
    assert server.engines[0].running > 0
    tokens = server.engines[0].stats.generation_tokens
    fleet.advance(start + 59.0)
    assert server.engines[0].stats.generation_tokens == tokens
    assert gpu_values(fleet, 0)["nvidia_gpu_utilization_ratio{}"] == 1.0  # the others spin in the collective
    fleet.advance(start + 61.0)
    assert not server.up
    fleet.advance(start + 80.0)
    assert [event.code for event in fleet.gpus.events(0.0)] == [94]
    contained = gpu_values(fleet, 4)
    assert contained["nvidia_gpu_row_remap_pending{}"] == 1
    assert contained['nvidia_gpu_ecc_errors_total{severity="uncorrected",scope="volatile"}'] == cycle + 1
    assert fleet.servers[1].up
    fleet.advance(start + 175.0)
    assert server.up
    assert server.engines[0].stats.generation_tokens > 0
    assert not is_lost(fleet, 1)
    remapped = gpu_values(fleet, 4)
    assert remapped["nvidia_gpu_row_remap_pending{}"] == 0
    assert remapped['nvidia_gpu_remapped_rows{cause="uncorrectable"}'] == cycle + 1


@pytest.mark.parametrize("cycle", [0, 1])
def test_engine_crash_restarts_with_new_counters_and_a_new_start_time(cycle):
    fleet = Fleet.build("engine-crash")
    server = fleet.servers[0]
    start = cycle * SCENES["engine-crash"].period
    fleet.advance(start + 39.0)
    before = server.page().decode()
    tokens = server.engines[0].stats.generation_tokens
    fleet.advance(start + 41.0)
    assert not server.up
    assert fleet.servers[1].up
    assert fleet.gpus.open()[0].processes() == []
    fleet.advance(start + 71.0)
    assert server.up
    assert 0 < server.engines[0].stats.generation_tokens < tokens

    def started(page: str) -> float:
        return float(next(line for line in page.splitlines() if line.startswith("process_start")).split()[1])

    now = server.page().decode()
    assert started(now) > started(before)
    assert fleet.epoch + start + 40.0 < started(now) < fleet.epoch + start + 70.0


def test_a_scene_that_is_played_once_is_followed_by_even_load():
    fleet = Fleet.build("slow-prefill", times=1)
    fleet.advance(59.0)
    engine = fleet.servers[0].engines[0]
    assert not fleet.over
    assert mean(engine, TTFT) > 2.0
    fleet.advance(75.0)  # what was queued is worked off
    assert fleet.over
    assert engine.config.max_num_batched_tokens == Fleet.build("steady").servers[0].config.max_num_batched_tokens
    late = mark(engine, TTFT)
    fleet.advance(180.0)
    assert mean(engine, TTFT, late) < 0.3
    assert engine.stats.histograms[TTFT].count - late[0] > 3.5 * 105 * 0.8, "as many arrive as in an even hour"


@pytest.mark.parametrize("scene", SCENES)
def test_a_scene_that_is_over_leaves_servers_and_gpus_as_it_found_them(scene):
    fleet = Fleet.build(scene, times=2)
    fleet.advance(2 * SCENES[scene].period)
    assert fleet.over
    fleet.gpus.events(0.0)
    for second in range(60):
        fleet.advance(2 * SCENES[scene].period + second)
        assert all(server.up for server in fleet.servers)
        assert not any(is_lost(fleet, gpu) for gpu in range(8))
        assert fleet.gpus.events(0.0) == []
    assert all(fleet.gpus.speed(gpu) == 1.0 for gpu in range(8))
    assert not any(engine.stalled for server in fleet.servers for engine in server.engines)

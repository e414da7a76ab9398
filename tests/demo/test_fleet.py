"""Building fleets, their clock, and what they cost."""

import gc
import time
import tracemalloc

import pytest
from vllm_vitals.demo.fleet import Fleet
from vllm_vitals.demo.scenes import SCENES


def pages(fleet: Fleet) -> list[bytes]:
    return [fleet.page(server) for server in fleet.servers]


def readings(fleet: Fleet) -> list[object]:
    return [list(gpu.read(slow=True)) for gpu in fleet.gpus.open() if not gpu.lost]


@pytest.mark.parametrize("scene", SCENES)
def test_the_same_seed_plays_the_same_scene(scene):
    one, other = Fleet.build(scene, seed=5), Fleet.build(scene, seed=5)
    one.advance(45.0)
    for tenth in range(451):
        other.advance(tenth / 10)
    assert pages(one) == pages(other)
    assert readings(one) == readings(other)


def test_another_seed_plays_another_one():
    one, other = Fleet.build("steady", seed=1), Fleet.build("steady", seed=2)
    for fleet in (one, other):
        fleet.advance(20.0)
    assert pages(one) != pages(other)
    assert one.placement() != other.placement()


def test_two_models_on_six_of_eight_gpus():
    fleet = Fleet.build("steady")
    uuids = fleet.gpus.uuids
    assert fleet.placement() == {"llama-3.1-70b": uuids[:4], "qwen3-8b": uuids[4:6]}
    assert [(row.server, row.engine, row.gpu) for row in fleet.engine_gpus()] == [
        *(("llama-3.1-70b", 0, gpu) for gpu in range(4)),
        ("qwen3-8b", 0, 4),
        ("qwen3-8b", 1, 5),
    ]
    assert {row.model_name for row in fleet.engine_gpus()} == {
        "meta-llama/Llama-3.1-70B-Instruct",
        "Qwen/Qwen3-8B",
    }
    assert all(row.uuid == uuids[row.gpu] for row in fleet.engine_gpus())


@pytest.mark.parametrize(("engines", "gpus"), [(1, 8), (5, 8), (5, 32), (2, 3), (2, 0), (0, 8)])
def test_any_number_of_engines_and_gpus_plays_every_event(engines, gpus):
    fleet = Fleet.build("xid", engines=engines, gpus=gpus)
    fleet.advance(185.0)
    assert len({server.name for server in fleet.servers}) == engines
    placed = [uuid for uuids in fleet.placement().values() for uuid in uuids]
    assert len(placed) == len(set(placed)) <= gpus
    assert len(pages(fleet)) == engines


def test_the_epoch_is_fixed_once_the_fleet_has_been_played():
    fleet = Fleet.build("steady")
    fleet.begin_at(1_700_000_000.0)
    fleet.advance(1.0)
    assert b"process_start_time_seconds 1.699999978e+09" in fleet.page(fleet.servers[0])
    with pytest.raises(RuntimeError):
        fleet.begin_at(0.0)


@pytest.mark.parametrize("scene", SCENES)
def test_real_time_costs_less_than_two_percent_of_a_core(scene):
    fleet = Fleet.build(scene)
    before = time.process_time()
    for second in range(60):
        fleet.advance(second)
        pages(fleet)  # one scrape per second
        readings(fleet)
    assert time.process_time() - before < 0.02 * 60


def test_memory_stays_below_ten_mebibytes():
    tracemalloc.start()
    try:
        fleet = Fleet.build("burst")
        fleet.advance(100.0)
        pages(fleet)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 2**20


def test_nothing_piles_up_from_one_cycle_to_the_next():
    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    fleet = Fleet.build("engine-crash")
    fleet.advance(220.0)  # long after a restart
    early = objects()
    fleet.advance(580.0)
    assert objects() - early < 500  # thousands of requests came and went

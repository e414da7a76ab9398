import asyncio
import time

import pytest
from support import faulty_server as faulty
from support.faulty_server import FaultyServer, page
from vllm_vitals.exporter.engines.engine import Engine, Fetched
from vllm_vitals.settings.config import EngineSettings

PAGE = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1.0\n"


def engine(url: str) -> Engine:
    return Engine(
        EngineSettings(url=f"{url}/x"),
        "config",
        raw_names=False,
        max_page_bytes=1_000_000,
        sample_interval=1.0,
    )


def run(url: str, work) -> list[Fetched]:
    async def inside() -> list[Fetched]:
        looked_at = engine(url)
        try:
            return await work(looked_at)
        finally:
            looked_at.close()
            assert looked_at._waiting == 0

    return asyncio.run(inside())


def test_callers_at_the_same_time_share_one_request():
    with FaultyServer(x=page(PAGE)) as server:

        async def work(looked_at: Engine) -> list[Fetched]:
            return await asyncio.gather(*(looked_at.fetch(5.0) for _ in range(5)))

        fetched = run(server.url, work)
        assert [one.raw for one in fetched] == [PAGE] * 5
        assert len(server.requests) == 1


def test_the_most_patient_caller_decides_how_long_a_request_lasts():
    with FaultyServer(x=faulty.hang) as server:

        async def work(looked_at: Engine) -> list[Fetched]:
            hasty = asyncio.create_task(looked_at.fetch(0.05))
            patient = asyncio.create_task(looked_at.fetch(20.0))
            first = await hasty
            assert not patient.done()
            server.drop()  # the request of the hasty one is still there
            return [first, await patient]

        assert [one.reason for one in run(server.url, work)] == ["timeout", "closed"]
        assert len(server.requests) == 1


def test_a_request_nobody_waits_for_ends():
    with FaultyServer(x=faulty.in_turn(faulty.hang, page(PAGE))) as server:

        async def work(looked_at: Engine) -> list[Fetched]:
            return [await looked_at.fetch(0.05), looked_at.latest, await looked_at.fetch(5.0)]

        assert [one.reason for one in run(server.url, work)] == ["timeout", "timeout", ""]


def test_a_server_that_is_dropped_in_mid_request_is_a_reason_and_no_exception():
    with FaultyServer(x=faulty.hang) as server:

        async def work(looked_at: Engine) -> list[Fetched]:
            waiting = asyncio.create_task(looked_at.fetch(20.0))
            while not server.requests:
                await asyncio.sleep(0.01)
            looked_at.close()
            return [await waiting]

        assert [one.reason for one in run(server.url, work)] == ["removed"]


def test_a_caller_that_is_cancelled_is_cancelled_and_the_others_get_their_page():
    with FaultyServer(x=page(PAGE)) as server:

        async def work(looked_at: Engine) -> list[Fetched]:
            leaving, staying = (asyncio.create_task(looked_at.fetch(5.0)) for _ in range(2))
            await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            return [await staying]

        assert [one.raw for one in run(server.url, work)] == [PAGE]


def test_a_fault_of_ours_is_a_reason_logged_once(monkeypatch, caplog):
    with FaultyServer(x=page(PAGE)) as server:

        async def work(looked_at: Engine) -> list[Fetched]:
            monkeypatch.setattr(looked_at._relabeler, "relabel", lambda _: 1 / 0)
            return [await looked_at.fetch(5.0), await looked_at.fetch(5.0)]

        assert [one.reason for one in run(server.url, work)] == ["internal", "internal"]
        assert sum(record.exc_info is not None for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [(200, True), (503, False), (500, False), (404, None), (401, None), (302, None)],
)
def test_only_a_clear_word_of_its_health_counts(answer, healthy):
    with FaultyServer(x=page(PAGE)) as server:
        server.health = faulty.status(answer)

        async def work(looked_at: Engine) -> list[Fetched]:
            await looked_at.observe(1.0, 5.0)
            assert looked_at.healthy is healthy
            return []

        run(server.url, work)


def test_an_observation_takes_the_page_that_a_scrape_just_brought():
    with FaultyServer(x=page(PAGE)) as server:

        async def work(looked_at: Engine) -> list[Fetched]:
            await looked_at.fetch(5.0)
            await looked_at.observe(60.0, 5.0)
            assert looked_at.ring.last is not None
            assert time.monotonic() - looked_at.ring.last.at < 30
            return []

        run(server.url, work)
        assert len([request for request in server.requests if request.path == "/x/metrics"]) == 1

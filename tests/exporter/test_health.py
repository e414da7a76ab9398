import asyncio

import pytest
from support import faulty_server as faulty
from support.faulty_server import FaultyServer, page
from vllm_vitals.exporter.engines.engine import Engine, Fetched
from vllm_vitals.exporter.engines.readings import Reading
from vllm_vitals.exporter.gpus.reading import XidCount, reading_of
from vllm_vitals.exporter.gpus.types import GpuSnapshot
from vllm_vitals.exporter.live.health import (
    RECOVERY_ACTIONS,
    XID_WINDOW_SECONDS,
    Symptom,
    Verdict,
    engine_verdict,
    gpu_verdict,
    is_stalled,
    worst,
)
from vllm_vitals.exporter.pages.relabel import ServerPage
from vllm_vitals.exporter.pages.samples import Sample
from vllm_vitals.settings.config import EngineSettings, HealthSettings
from vllm_vitals.settings.scalars import Ratio, Seconds
from vllm_vitals.vocabulary.xids import XIDS

LIMITS = HealthSettings()
NOW = 1_800_000_000.0
CRITICAL_XID = next(code for code, known in XIDS.items() if known.critical)
HARMLESS_XID = next(code for code, known in XIDS.items() if not known.critical)


def gpu(values=None, *, up: bool = True, reason: str = "", xids=()) -> GpuSnapshot:
    samples = [Sample(f"nvidia_gpu_{name}", labels, value) for (name, labels), value in (values or {}).items()]
    reading = reading_of(samples, xids)
    return GpuSnapshot(0, "GPU-0", "H100", "0000:01:00.0", 1.0, up, reason, samples, reading, (), ())


def memory(used: float, total: float = 100.0):
    return {("memory_used_bytes", ""): used, ("memory_total_bytes", ""): total}


def xid(code: int, ago: float) -> tuple[XidCount, ...]:
    return (XidCount(code, 1, NOW - ago),)


@pytest.mark.parametrize(
    ("values", "status", "words"),
    [
        ({}, "ok", None),
        (memory(98), "ok", None),
        (memory(98.1), "critical", "memory 98.1% used, limit 98%"),
        (memory(0, 0), "ok", None),
        ({("temperature_celsius", 'sensor="gpu"'): 90.0}, "ok", None),
        ({("temperature_celsius", 'sensor="gpu"'): 91.0}, "critical", "temperature 91 C, limit 90 C"),
        ({("temperature_celsius", 'sensor="memory"'): 99.0}, "ok", None),
        ({("recovery_action", ""): 0.0}, "ok", None),
        ({("recovery_action", ""): 2.0}, "critical", "the driver asks for: node reboot"),
        ({("recovery_action", ""): 99.0}, "critical", "the driver asks for: unknown"),
        (xid(CRITICAL_XID, 10), "critical", f"XID {CRITICAL_XID}: "),
        (xid(CRITICAL_XID, XID_WINDOW_SECONDS + 1), "ok", None),
        (xid(HARMLESS_XID, 10), "warning", f"XID {HARMLESS_XID}: "),
        (xid(9999, 10), "warning", "XID 9999"),
        ({("row_remap_failure", ""): 1.0}, "critical", "row remapping failed"),
        ({("row_remap_pending", ""): 1.0}, "warning", "row remapping waits for a GPU reset"),
    ],
)
def test_the_verdict_on_a_gpu(values, status, words):
    snapshot = gpu(values) if isinstance(values, dict) else gpu(xids=values)
    verdict = gpu_verdict(snapshot, LIMITS, NOW)
    assert verdict.status == status
    assert verdict.ok == (status != "critical")
    if words is None:
        assert verdict.reasons == ()
    else:
        assert verdict.reasons[0].startswith(words)


def test_a_gpu_that_is_not_read_is_critical():
    verdict = gpu_verdict(gpu(up=False, reason="lost"), LIMITS, NOW)
    assert (verdict.status, verdict.reasons) == ("critical", ("not readable: lost",))


def test_the_limits_are_those_of_the_settings():
    limits = HealthSettings(gpu_memory_ratio=Ratio(0.5), gpu_temperature_celsius=40.0)
    hot = gpu({**memory(60), ("temperature_celsius", 'sensor="gpu"'): 41.0})
    assert len(gpu_verdict(hot, limits, NOW).reasons) == 2


def test_what_is_critical_comes_before_what_is_a_warning():
    both = gpu({("row_remap_pending", ""): 1.0, ("recovery_action", ""): 1.0})
    verdict = gpu_verdict(both, LIMITS, NOW)
    assert (verdict.status, len(verdict.reasons)) == ("critical", 2)
    assert "GPU reset" in verdict.reasons[0]


def test_every_recovery_action_has_a_name():
    from vllm_vitals.vocabulary.ours import OURS

    stated = OURS["nvidia_gpu_recovery_action"].help
    for number, name in enumerate(RECOVERY_ACTIONS):
        assert f"{number} {name}" in stated


def test_the_worst_status_wins():
    ok = Verdict()
    warning, critical = (Verdict((Symptom("memory", level, "w"),)) for level in ("warning", "critical"))
    assert worst([]) == "ok"
    assert worst([ok, warning]) == "warning"
    assert worst([critical, ok, warning]) == "critical"


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine() -> Engine:
    settings = EngineSettings(url="http://127.0.0.1:1")
    return Engine(settings, "config", raw_names=False, max_page_bytes=1000, sample_interval=1.0)


def fetched(reason: str = "") -> Fetched:
    return Fetched(1.0, 0.1, b"", None if reason else ServerPage({}, 0, 0, 0, 0), reason, "detail")


def reading(at: float, **values) -> Reading:
    known = {"kind": "vllm", "pairs": (), "running": 1.0, "progress": 5.0, **values}
    return Reading(at=at, **{name: known.get(name) for name in Reading.__slots__ if name != "at"})


def test_an_engine_whose_page_came_is_ok(engine):
    assert engine_verdict(engine, fetched(), LIMITS) == Verdict()


@pytest.mark.parametrize("reason", ["refused", "timeout", "protocol", "pending"])
def test_an_engine_without_a_page_is_down_with_the_reason_in_words(engine, reason):
    verdict = engine_verdict(engine, fetched(reason), LIMITS)
    assert verdict.status == "critical"
    assert verdict.reasons[0].startswith(f"down ({reason}): ")


def test_an_engine_that_is_dead_behind_its_page_is_critical(engine):
    engine.healthy = False
    assert "dead" in engine_verdict(engine, fetched(), LIMITS).reasons[0]


@pytest.mark.parametrize(("seconds", "stalled"), [(299, False), (300, True)])
def test_an_engine_without_progress_is_critical_after_the_limit(engine, seconds, stalled):
    engine.ring.add(reading(0))
    engine.ring.add(reading(seconds))
    assert is_stalled(engine, LIMITS) is stalled
    assert engine_verdict(engine, fetched(), LIMITS).ok is not stalled
    assert is_stalled(engine, HealthSettings(engine_stall=Seconds(10)))


def test_an_idle_engine_is_never_stalled(engine):
    for at in (0, 1000, 2000):
        engine.ring.add(reading(at, running=0.0, waiting=0.0))
    assert not is_stalled(engine, LIMITS)


def test_a_health_route_that_hangs_says_nothing():
    body = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1.0\n"
    with FaultyServer(x=page(body)) as server:
        server.health = faulty.hang

        async def look() -> tuple[bool | None, Verdict]:
            settings = EngineSettings(url=f"{server.url}/x")
            looked_at = Engine(settings, "config", raw_names=False, max_page_bytes=1000, sample_interval=1.0)
            await looked_at.observe(1.0, 0.2)
            looked_at.close()
            return looked_at.healthy, engine_verdict(looked_at, looked_at.latest, LIMITS)

        assert asyncio.run(look()) == (None, Verdict())

"""Which GPUs an engine runs on, as its plugin learns it from a real exporter over the fake driver."""

import json
import time

import pytest
from support import faulty_server as faulty
from support.faulty_server import FaultyServer, page
from support.waiting import wait_for
from vllm_vitals.settings.scalars import Seconds
from vllm_vitals.settings.tracing import GpuFactSettings
from vllm_vitals.tracing.counters import Counters
from vllm_vitals.tracing.metrics import gpu_facts
from vllm_vitals.tracing.metrics.gpu_facts import GPU_FACTS_FAILURES, GpuFactsWatch, is_this_machine, told
from vllm_vitals.tracing.request.records import Gpu

PAGE = b'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0",model_name="m"} 1.0\n'


@pytest.fixture
def ask():
    """Start asking an exporter; ends with the test."""
    started = []

    def run(url: str | None) -> GpuFactsWatch:
        facts = GpuFactsWatch(GpuFactSettings(exporter_url=url, interval=Seconds(0.2)), Counters())
        started.append(facts)
        facts.start()
        return facts

    yield run
    for facts in started:
        facts.close()


def test_each_of_two_engines_finds_its_own_gpus_with_memory_and_power(ask, run_exporter, fake_nvml, tmp_path):
    with FaultyServer(metrics=page(PAGE)) as one, FaultyServer(metrics=page(PAGE)) as other:
        config = tmp_path / "vitals.yaml"
        engines = [{"url": one.url, "gpus": [0, 1]}, {"url": other.url, "gpus": [2]}]
        config.write_text(json.dumps({"engines": engines, "sample_interval": "1s"}))
        exporter = run_exporter("--config", config, env=fake_nvml.env, gpus="on")
        facts = ask(exporter.url)
        first = wait_for(lambda: facts.current(one.port), "the GPUs of the first engine")
        second = facts.current(other.port)
        shown = {row["uuid"]: row for row in exporter.get("/api/vitals").json["gpus"]}
    assert [len(first), len(second)] == [2, 1]
    assert {gpu.uuid for gpu in first}.isdisjoint(gpu.uuid for gpu in second)
    for gpu in (*first, *second):
        assert gpu.model == shown[gpu.uuid]["name"]
        assert gpu.memory_used > 0
        assert gpu.power > 0
    assert facts.current(1) == ()
    assert facts.current(None) == ()  # two engines: which one we are is not known


def test_without_a_url_nothing_is_asked(ask):
    facts = ask(None)
    assert facts._background._thread is None
    assert facts.current(8000) == ()


def vitals(*urls: str) -> dict:
    rows = [{"url": url, "gpus": [{"uuid": f"GPU-{n}"}]} for n, url in enumerate(urls)]
    gpus = [{"uuid": f"GPU-{n}", "name": "H100", "memory_used_bytes": 5, "power_watts": None} for n in range(len(urls))]
    return {"engines": rows, "gpus": gpus}


@pytest.mark.parametrize(
    ("url", "exporter_is_here", "found"),
    [
        ("http://127.0.0.1:8000", True, True),
        ("http://localhost:8000/v1", True, True),
        ("http://[::1]:8000", True, True),
        ("http://127.0.0.1:8000", False, False),  # loopback of another machine
        ("http://pod-7:8000", False, True),
        ("http://pod-7:8000", True, True),
        ("http://elsewhere:8000", True, False),
        ("http://pod-7:8001", True, False),
    ],
)
def test_an_engine_is_us_when_its_port_is_ours_and_its_host_is_this_machine(url, exporter_is_here, found):
    engines = told(vitals(url), exporter_is_here=exporter_is_here, is_here=lambda host: host == "pod-7")
    gpus = [engine.gpus for engine in engines if engine.port == 8000]
    assert gpus == ([(Gpu("GPU-0", "H100", 5, None),)] if found else [])


def test_this_machine_is_what_one_can_bind_to():
    assert is_this_machine("127.0.0.1")
    assert is_this_machine("localhost")
    assert not is_this_machine("192.0.2.7")  # reserved for documentation
    assert not is_this_machine("no-such-host.invalid")
    assert not is_this_machine("\ud800")


@pytest.mark.parametrize(
    "answer",
    [
        faulty.status(500),
        faulty.status(302, "location: http://127.0.0.1:1/"),
        faulty.reset,
        page(b"{", "application/json"),
        page(b"[]", "application/json"),
        page(b'{"engines": 1, "gpus": []}', "application/json"),
        page(b'{"engines": [{}], "gpus": []}', "application/json"),
        page(b'{"engines": [], "gpus": [{}]}', "application/json"),
        faulty.raw(b"hello\r\n\r\n"),
        faulty.hang,
        faulty.drip(b"x" * 10_000),
        faulty.endless(b"x" * 65536, 100),
    ],
)  # fmt: skip
def test_a_sick_exporter_is_counted_and_asked_again(ask, monkeypatch, answer):
    monkeypatch.setattr(gpu_facts, "_DEADLINE_SECONDS", 0.2)
    with FaultyServer() as server:
        good = page(json.dumps(vitals(server.url)).encode(), "application/json")
        server.behaviours["api"] = faulty.in_turn(answer, answer, good)
        facts = ask(server.url)
        assert wait_for(lambda: facts.current(server.port), "its recovery") == (Gpu("GPU-0", "H100", 5, None),)
        assert facts._counters.total(GPU_FACTS_FAILURES) == 2
        assert server.requests[0].path == "/api/vitals?history=off"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://[", "http://h:port", "", "ftp://x"])
def test_an_address_that_cannot_be_asked_is_counted_and_logged_once(ask, url, caplog):
    facts = ask(url)
    wait_for(lambda: facts._counters.total(GPU_FACTS_FAILURES) >= 2, "two failures")
    assert facts.current(None) == ()
    assert len([record for record in caplog.records if "does not tell" in record.message]) == 1


def test_an_answer_older_than_half_a_minute_is_none(ask):
    with FaultyServer() as server:
        server.behaviours["api"] = page(json.dumps(vitals(server.url)).encode(), "application/json")
        facts = ask(server.url)
        wait_for(lambda: facts.current(server.port), "the first answer")
        facts.close()
        facts._background.stop(5)
    _, engines = facts._answer
    facts._answer = (time.monotonic() - 29, engines)
    assert facts.current(server.port)
    facts._answer = (time.monotonic() - 31, engines)
    assert facts.current(server.port) == ()


def test_the_sole_engine_of_this_machine_needs_no_port(ask):
    with FaultyServer() as server:
        server.behaviours["api"] = page(json.dumps(vitals(server.url)).encode(), "application/json")
        facts = ask(server.url)
        assert wait_for(lambda: facts.current(None), "the first answer")

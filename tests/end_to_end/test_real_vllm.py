"""The exporter beside a real vLLM that serves real traffic on CPU."""

import os
import re
import threading

import psutil
from support.exposition import labels_of, series, value
from support.waiting import wait_for

# Between our fetch and the exporter's, these move without any request: clocks and the process itself.
MOVING = re.compile(r"process_|python_")


def fetch_both(vllm, exporter):
    """Return the engine's page and ours, taken while the engine stood still."""

    def standing_still():
        before = vllm.page()
        ours = exporter.page()
        same = {k: v for k, v in series(before).items() if not MOVING.match(k[0])}
        if same == {k: v for k, v in series(vllm.page()).items() if not MOVING.match(k[0])}:
            return same, ours
        return None

    return wait_for(standing_still, "a moment in which the engine's counters stand still")


def test_every_sample_of_the_engine_is_found_again_with_its_value_and_the_server(vllm, run_exporter):
    exporter = run_exporter("--engine", f"tiny-one={vllm.url}")
    seen = []
    traffic = threading.Thread(target=lambda: seen.extend(vllm.traffic(6)))
    traffic.start()
    while traffic.is_alive():  # under real traffic every page must be whole
        assert value(exporter.page(), "vllm_vitals_server_up", server="tiny-one") == 1
    traffic.join()
    assert seen == [200] * 6
    assert vllm.complete(model="unknown") == 404

    theirs, page = fetch_both(vllm, exporter)
    ours = series(page)
    assert len(theirs) > 300
    for (name, labels), expected in theirs.items():
        assert ours[name, tuple(sorted((*labels, ("server", "tiny-one"))))] == expected, (name, labels)
    added = {key for key in ours if ("server", "tiny-one") in key[1] and not key[0].startswith("vllm_vitals_")} - {
        (name, tuple(sorted((*labels, ("server", "tiny-one"))))) for name, labels in theirs
    }
    assert {(name, ours[name, labels]) for name, labels in added} == {("http_requests_total", 0)}, (
        "only zeros are added"
    )
    assert sum(v for (name, _), v in ours.items() if name == "vllm:generation_tokens_total") >= 6 * 24


def test_the_first_client_error_is_an_increase_from_zero(vllm, run_exporter):
    exporter = run_exporter("--engine", vllm.url)
    labels = {"handler": "/v1/chat/completions", "method": "POST", "status": "5xx"}
    assert value(exporter.page(), "http_requests_total", **labels) == 0


def test_placement_by_process_finds_the_gpu_of_the_engine_core(vllm, run_exporter, fake_nvml):
    """The worker's real pid, reported by the driver, leads to the server that owns the port."""
    fake_nvml.state.gpus(2)
    descendants = psutil.Process(vllm.process.pid).children(recursive=True)
    engine = next(process for process in descendants if "EngineCore" in " ".join(process.cmdline()))
    worker = next(iter(engine.children(recursive=True)), engine)
    fake_nvml.state.processes(1, [(worker.pid, 7 * 2**30)])
    exporter = run_exporter("--engine", vllm.url, env=fake_nvml.env, gpus="on")

    def placed():
        rows = [row for row in labels_of(exporter.page(), "vllm_vitals_engine_gpu_info") if row["source"] == "process"]
        return rows or None

    rows = wait_for(placed, "a placement by process")
    assert [(row["gpu"], row["engine"], row["model_name"]) for row in rows] == [("1", "0", "tiny")]
    assert value(exporter.page(), "vllm_vitals_engine_gpu_memory_bytes", gpu="1") == 7 * 2**30

    def roles():
        page = exporter.page()
        found = {row["role"] for row in labels_of(page, "vllm_vitals_engine_process_resident_memory_bytes")}
        return page if {"api_server", "engine_core"} <= found else None

    page = wait_for(roles, "process metrics by role")
    assert value(page, "vllm_vitals_engine_process_resident_memory_bytes", role="api_server") > 100e6


def test_live_numbers_and_health_of_a_working_engine(vllm, run_exporter):
    exporter = run_exporter("--engine", vllm.url, "--sample-interval", "0.5s")
    wait_for(lambda: exporter.get("/readyz").status == 200, "readiness")
    assert exporter.get("/health/engine").status == 200

    def numbers():
        vllm.traffic(2, max_tokens=8)
        engine = exporter.get("/api/vitals").json["engines"][0]
        known = (
            engine["generation_tokens_per_second"] and engine["ttft_seconds"]["p95"] and engine["tpot_seconds"]["p50"]
        )
        return engine if known else None

    engine = wait_for(numbers, "rates and quantiles from real traffic", seconds=60)
    assert engine["models"] == ["tiny"]
    assert engine["kind"] == "vllm"
    assert engine["status"] == "ok"
    assert 0 < engine["ttft_seconds"]["p50"] <= engine["ttft_seconds"]["p95"] < 60
    assert engine["joules_per_output_token"] is None  # no GPU, so missing, not zero


def test_doctor_names_the_version_of_a_real_engine(vllm, run_program):
    from support.programs import VITALS

    doctor = run_program(VITALS, "doctor", "--engine", vllm.url, "--gpus", "off", env=os.environ)
    assert doctor.process.wait(60) == 0, doctor.output
    assert re.search(r"\[ok\].*vLLM 0\.\d+\.\d+", doctor.output)


def test_up_finds_the_engine_by_itself(vllm, run_exporter, tmp_path):
    from support.programs import Exporter

    up = Exporter(
        "--gpus", "off", "--no-prometheus", "--state", tmp_path / "state", log=tmp_path / "up.log", command="up"
    )
    try:
        up.ready(f"{up.url}/healthz")

        def found():
            return [engine for engine in up.get("/api/vitals").json["engines"] if engine["url"] == vllm.url]

        engine = wait_for(found, "the engine that nobody named")[0]
        assert engine["origin"] == "process"
        wait_for(lambda: f"engine        {vllm.url}" in up.output, "its line")
        assert up.interrupt() == 0, up.output
    finally:
        up.stop()

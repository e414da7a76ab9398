"""Sick GPUs and drivers, seen through the exporter as an operator sees them: on the page and at /health/gpu."""

import pytest
from support.exposition import labels_of, series, value, values
from support.waiting import wait_for


@pytest.fixture
def exporter(run_exporter, fake_nvml):
    started = run_exporter(env=fake_nvml.env, gpus="on")
    wait_for(lambda: len(values(started.page(), "nvidia_gpu_energy_joules_total")) == 8, "eight GPUs")
    return started


def page_where(exporter, condition, what: str, seconds: float = 30.0) -> str:
    def found():
        page = exporter.page()
        return page if condition(page) else None

    return wait_for(found, what, seconds)


def test_a_gpu_that_hangs_takes_only_itself_off_the_page_and_comes_back(exporter, fake_nvml):
    fake_nvml.state.hang("nvmlDeviceGetTotalEnergyConsumption", 3)
    fake_nvml.state.hang("nvmlDeviceGetFieldValues", 3)
    page = page_where(exporter, lambda page: values(page, "nvidia_gpu_up", gpu="3", reason="hang") == [0], "the hang")
    assert not values(page, "nvidia_gpu_energy_joules_total", gpu="3"), "stale values stay nowhere"
    assert len(values(page, "nvidia_gpu_energy_joules_total")) == 7
    health = exporter.get("/health/gpu")
    assert health.status == 503
    assert health.json["gpus"][3] == {
        "gpu": "3",
        "uuid": health.json["gpus"][3]["uuid"],
        "name": "NVIDIA H100 80GB HBM3",
        "status": "critical",
        "reasons": ["not readable: hang"],
    }
    assert exporter.get("/health/gpu?gpu=2").status == 200
    fake_nvml.state.release()
    page_where(exporter, lambda page: values(page, "nvidia_gpu_up", gpu="3", reason="") == [1], "the return")
    assert exporter.get("/health/gpu").status == 200


def test_a_lost_gpu_is_a_verdict_and_a_metric_with_its_reason(exporter, fake_nvml):
    fake_nvml.state.lose(5)
    page = page_where(exporter, lambda page: values(page, "nvidia_gpu_up", gpu="5", reason="lost") == [0], "the loss")
    assert value(page, "nvidia_gpu_collect_failures_total", gpu="5", reason="lost") >= 1
    assert exporter.get("/health/gpu?gpu=5").json["gpus"][0]["reasons"] == ["not readable: lost"]
    fake_nvml.state.find(5)
    page_where(exporter, lambda page: values(page, "nvidia_gpu_up", gpu="5", reason="") == [1], "the return")


def test_an_xid_is_counted_from_zero_and_a_critical_one_turns_health_red(exporter, fake_nvml):
    assert value(exporter.page(), "nvidia_gpu_xid_errors_total", gpu="1", xid="79") == 0
    fake_nvml.state.xid(1, 79)
    page = page_where(
        exporter, lambda page: value(page, "nvidia_gpu_xid_errors_total", gpu="1", xid="79") == 1, "the XID"
    )
    assert value(page, "nvidia_gpu_xid_last_timestamp_seconds", gpu="1", xid="79") > 1.7e9
    health = exporter.get("/health/gpu")
    assert health.status == 503
    (reason,) = [reason for gpu in health.json["gpus"] for reason in gpu["reasons"]]
    assert reason.startswith("XID 79: ")


@pytest.mark.parametrize(
    ("key", "figure", "word"),
    [("temp", 95, "temperature 95 C, limit 90 C"), ("mem_used", 84_900_000_000, "memory 99.3% used, limit 98%")],
)
def test_values_beyond_the_limits_turn_health_red_and_back(exporter, fake_nvml, key, figure, word):
    fake_nvml.state.set(2, key, figure)
    answer = wait_for(lambda: (found := exporter.get("/health/gpu")).status == 503 and found, "the verdict")
    assert answer.json["gpus"][2]["reasons"] == [word]
    fake_nvml.state.set(2, key, 50)
    wait_for(lambda: exporter.get("/health/gpu").status == 200, "recovery")


def test_a_driver_reload_is_survived_and_counted(exporter, fake_nvml):
    before = value(exporter.page(), "vllm_vitals_nvml_restarts_total")
    fake_nvml.state.reload_driver()
    page_where(
        exporter,
        lambda page: (
            value(page, "vllm_vitals_nvml_restarts_total") > before
            and len(values(page, "nvidia_gpu_energy_joules_total")) == 8
        ),
        "NVML opened again",
    )


def test_without_a_driver_library_the_page_stays_and_says_why(run_exporter):
    exporter = run_exporter(gpus="on")
    page = page_where(
        exporter, lambda page: values(page, "vllm_vitals_nvml_up", reason="no_library") == [0], "the reason"
    )
    assert not [name for name, _ in series(page) if name.startswith("nvidia_gpu_")]
    assert exporter.get("/health/gpu").json["reason"] == "no_library"
    assert "libnvidia-ml.so.1" in exporter.get("/api/vitals").json["messages"][0]


@pytest.mark.parametrize(("code", "reason"), [(9, "no_driver"), (4, "no_permission")])
def test_a_driver_that_refuses_is_a_reason_not_a_crash(run_exporter, fake_nvml, code, reason):
    from fake_nvml.state import NO_GPU

    for function in ("nvmlInitWithFlags", "nvmlInit_v2"):
        fake_nvml.state.error(function, NO_GPU, code)
    exporter = run_exporter(env=fake_nvml.env, gpus="on")
    page_where(exporter, lambda page: values(page, "vllm_vitals_nvml_up", reason=reason) == [0], reason)
    assert exporter.get("/health/gpu").status == 503


def test_families_that_are_off_are_absent(run_exporter, fake_nvml, tmp_path):
    (tmp_path / "vitals.yaml").write_text("gpus:\n  families: {clocks: off, gpm: off}\n")
    exporter = run_exporter("--config", tmp_path / "vitals.yaml", env=fake_nvml.env, gpus="on")
    page = page_where(exporter, lambda page: "nvidia_gpu_energy_joules_total{" in page, "GPUs")
    names = {name for name, _ in series(page)}
    assert not names & {"nvidia_gpu_clock_hertz", "nvidia_gpu_sm_active_ratio"}
    assert "nvidia_gpu_power_watts" in names


def test_labels_of_gpu_series_are_index_and_uuid_and_names_stand_in_info(exporter):
    page = page_where(exporter, lambda page: len(values(page, "nvidia_gpu_info")) == 8, "info")
    allowed = {"gpu", "uuid", "kind", "sensor", "domain", "reason", "direction", "type", "severity", "scope", "cause"}
    allowed |= {"xid", "fan", "code", "mig_uuid"}
    for name, labels in series(page):
        if name.startswith("nvidia_gpu_") and name not in {"nvidia_gpu_info", "nvidia_gpu_mig_info"}:
            assert dict(labels).keys() <= allowed, name
    assert {row["name"] for row in labels_of(page, "nvidia_gpu_info")} == {"NVIDIA H100 80GB HBM3"}

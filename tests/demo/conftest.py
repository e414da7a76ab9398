from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def captured() -> str:
    return (DATA / "vllm-0.32.0-metrics.prom").read_text()


@pytest.fixture(scope="session")
def captured_preemption() -> str:
    return (DATA / "vllm-0.32.0-metrics-preemption.prom").read_text()


@pytest.fixture(scope="session")
def captured_data_parallel() -> str:
    return (DATA / "vllm-0.32.0-metrics-dp2-api2.prom").read_text()

"""A collector, and span sinks that send to it."""

import os
import time

import pytest
from support.otlp_receiver import OtlpReceiver
from vllm_vitals.tracing.counters import Counters
from vllm_vitals.tracing.spans.otlp_settings import otlp_settings


@pytest.fixture
def receiver():
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def open_sink():
    """Make sinks of a class that are closed at the end; variables without their OTEL_EXPORTER_OTLP_."""
    sinks = []

    def make(kind, url, protocol="http/protobuf", queue=16_384, **variables):
        environ = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "20",
            "OTEL_BSP_MAX_QUEUE_SIZE": str(queue),
        }
        environ |= {f"OTEL_EXPORTER_OTLP_{name}": str(value) for name, value in variables.items()}
        sinks.append(kind(otlp_settings(environ), {"service.name": "test", "process.pid": os.getpid()}, Counters()))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close(time.monotonic() + 1)

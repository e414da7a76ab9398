"""Spans pass real collectors that others wrote, and arrive as they left."""

import random
import subprocess

import pytest
import yaml
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from support.collectors import CORE, KINDS, Collector, core_part
from support.otlp_receiver import OtlpReceiver, settled
from support.span_sinks import SPANS, counts, sampled
from vllm_vitals.compose.bundle import SHIPPED
from vllm_vitals.tracing.spans import tree as span_tree
from vllm_vitals.tracing.spans.export import SpanSink

needs_core = pytest.mark.skipif(not CORE.exists(), reason=f"tests/otelcol/build.sh {CORE.parent} builds it, in minutes")


@pytest.fixture(params=KINDS)
def collector(request, receiver, tmp_path):
    program = Collector(request.param, receiver.grpc_url, tmp_path)
    yield program
    program.stop()


def taken(receiver: OtlpReceiver, number: int) -> list[tuple[dict, bytes]]:
    found = receiver.wait_for(lambda spans: len(spans) == number)
    for _, span in found:
        if span.status == Status():  # the OpenTelemetry Collector writes it down even where nothing is in it
            span.ClearField("status")
    pairs = [(resource, span.SerializeToString(deterministic=True)) for resource, span in found]
    return sorted(pairs, key=lambda pair: pair[1])


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_every_span_arrives_as_it_left(collector, receiver, open_sink, protocol, monkeypatch):
    requests = [sampled(number) for number in range(40)]

    def sent(url: str, receiver: OtlpReceiver) -> list[tuple[dict, bytes]]:
        monkeypatch.setattr(span_tree, "_ids", random.Random(1))  # the same span ids both times
        sink = open_sink(SpanSink, url, protocol)
        for one in requests:
            sink.take(one)
        arrived = taken(receiver, SPANS * len(requests))
        settled(lambda: counts(sink) == (SPANS * len(requests), 0, 0), "the count")
        return arrived

    passed = sent(collector.grpc_url if protocol == "grpc" else f"{collector.http_url}/v1/traces", receiver)
    with OtlpReceiver() as direct:
        assert sent(direct.url(protocol), direct) == passed


@needs_core
def test_the_collector_takes_the_core_part_of_what_is_shipped(tmp_path):
    config = core_part(yaml.safe_load((SHIPPED / "collector/config.yaml").read_text()))
    assert judged(config, tmp_path) == (0, "")


@needs_core
def test_the_collector_finds_a_fault_there(tmp_path):
    config = core_part(yaml.safe_load((SHIPPED / "collector/config.yaml").read_text()))
    config["processors"]["memory_limiter"]["limit_percentagee"] = 80
    code, said = judged(config, tmp_path)
    assert code == 1
    assert "limit_percentagee" in said


def judged(config: dict, folder) -> tuple[int, str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    said = subprocess.run([CORE, "validate", f"--config={folder}/config.yaml"], capture_output=True, text=True)
    return said.returncode, said.stderr

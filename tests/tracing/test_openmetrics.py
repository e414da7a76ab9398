"""The page's text, as the parsers of others read it."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from support.exposition import value
from support.finished_requests import request, sequence
from vllm_vitals.settings.tracing import GoodputSettings
from vllm_vitals.tracing.metrics.openmetrics import render
from vllm_vitals.tracing.metrics.request_metrics import RequestMetricsSink
from vllm_vitals.tracing.metrics.self_metrics import self_values
from vllm_vitals.tracing.metrics.values import Values
from vllm_vitals.vocabulary.exposition_formats import REQUEST_PAGE_BEGIN, accepts_openmetrics
from vllm_vitals.vocabulary.ours import PLUGIN

PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3_5 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.fixture(scope="module")
def values() -> Values:
    sink = RequestMetricsSink(["tiny"], GoodputSettings())
    sink.take(request(sequence(), sampled=True, trace_id=0xABC))
    sink.take(request(outcome="client_error", model="nope"))
    parts = (
        sink.values(),
        Values({("vllm_vitals_engine_fatal_errors_total", ("cuda_oom",)): 1}, {}),
        self_values({("hook_failures", "a"): 2}, ("own", "thread", "1", "0.32.0")),
    )
    return Values({k: v for part in parts for k, v in part.numbers.items()}, parts[0].histograms)


def test_the_reference_parser_reads_all_families_with_type_unit_and_help(values):
    families = {family.name: family for family in openmetrics_families(render(values, openmetrics=True).decode())}
    for family, _ in (*values.numbers, *values.histograms):
        metric = PLUGIN[family]
        found = families[family.removesuffix("_total")]
        assert (found.type, found.documentation) == (metric.kind, metric.help)
        assert found.unit == ("seconds" if found.name.endswith("_seconds") else "")


def test_exemplars_lead_to_the_trace(values):
    families = {family.name: family for family in openmetrics_families(render(values, openmetrics=True).decode())}
    for phase in ("ingress", "queue", "prefill", "decode", "time_to_first_token", "time_per_output_token", "e2e"):
        samples = families[f"vllm_vitals_request_{phase}_seconds"].samples
        (sample,) = [sample for sample in samples if sample.exemplar]
        assert sample.exemplar.labels == {"trace_id": f"{0xABC:032x}", "span_id": f"{0xDEF:016x}"}
        assert sample.exemplar.value <= float(sample.labels["le"])
        assert float(sample.exemplar.timestamp) == pytest.approx(1_750_000_001.05)


def test_text_0_0_4_has_the_same_samples_and_no_exemplars(values):
    text = render(values, openmetrics=False).decode()
    assert " # {" not in text
    assert "# EOF" not in text
    assert "# TYPE vllm_vitals_requests_total counter" in text
    assert value(text, "vllm_vitals_requests_total", model_name="other", outcome="client_error") == 1
    assert value(text, "vllm_vitals_request_e2e_seconds_count", model_name="tiny") == 1
    openmetrics = render(values, openmetrics=True).decode()
    samples = lambda page: [line.partition(" # ")[0] for line in page.splitlines() if not line.startswith("#")]
    assert samples(text) == samples(openmetrics)


def test_promtool_has_nothing_to_say(values):
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=render(values, openmetrics=False), capture_output=True
    )
    assert (checked.returncode, checked.stderr + checked.stdout) == (0, b"")


@pytest.mark.parametrize("openmetrics", [True, False])
def test_the_page_begins_as_no_page_of_prometheus_client_does(values, openmetrics):
    from prometheus_client import REGISTRY, generate_latest
    from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

    assert render(values, openmetrics=openmetrics).startswith(REQUEST_PAGE_BEGIN)
    assert generate_latest(REGISTRY).startswith(b"# HELP ")
    assert generate_openmetrics(REGISTRY).startswith(b"# HELP ")


@given(st.text(max_size=20))
def test_any_model_name_comes_back_as_it_was(name):
    values = Values({("vllm_vitals_request_preemptions_total", (name,)): 1}, {})
    for openmetrics in (True, False):
        text = render(values, openmetrics=openmetrics)
        assert text.count(b"\n") == (4 if openmetrics else 3)
        if openmetrics and "\r" not in name:
            (family,) = openmetrics_families(text.decode())
            assert family.samples[0].labels == {"model_name": name.encode(errors="replace").decode()}


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=1.0.0;q=0", False),
        ("application/openmetrics-text;version=1.0.0;q=oops", False),
        (PROMETHEUS_2_42, True),
        (PROMETHEUS_3_5, True),
    ],
)
def test_who_takes_openmetrics(accept, expected):
    assert accepts_openmetrics(accept) is expected

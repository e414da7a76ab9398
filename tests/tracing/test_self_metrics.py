"""The plugin's own counts on vLLM's page and in the log."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support.exposition import families, value
from vllm_vitals.exporter.pages.families import merge as merged
from vllm_vitals.exporter.pages.relabel import Relabeler
from vllm_vitals.tracing import counters as kinds
from vllm_vitals.tracing.counters import Counters
from vllm_vitals.tracing.metrics.self_metrics import SelfMetrics, minute_line
from vllm_vitals.vocabulary.ours import TRACING

INFO = {"mode": "own", "export": "thread", "version": "1", "vllm_version": "0.32.0"}
KINDS = sorted(value for name, value in vars(kinds).items() if name.isupper() and isinstance(value, str))


@pytest.fixture
def registry(monkeypatch):
    """Stands for the default registry, which other tests share."""
    fresh = CollectorRegistry()
    monkeypatch.setattr("prometheus_client.REGISTRY", fresh)
    return fresh


def page(registry) -> str:
    return generate_latest(registry).decode()


def test_every_count_of_the_plugin_is_on_vllms_page(registry):
    counters = Counters()
    SelfMetrics(counters, INFO).register()
    for number, kind in enumerate(KINDS, 1):
        before = sum(sample.value for family in families(page(registry)).values() for sample in family.samples)
        counters.add(kind, number, detail="some")
        after = sum(sample.value for family in families(page(registry)).values() for sample in family.samples)
        assert after - before == number, kind


def test_what_has_no_detail_is_there_with_0_from_the_start(registry):
    SelfMetrics(Counters(), INFO).register()
    text = page(registry)
    for result in ("emitted", "dropped", "failed"):
        assert value(text, "vllm_vitals_tracing_spans_total", result=result) == 0
    assert value(text, "vllm_vitals_tracing_requests_dropped_total") == 0
    assert value(text, "vllm_vitals_tracing_info", **INFO) == 1


def test_details_become_labels(registry):
    counters = Counters()
    SelfMetrics(counters, INFO).register()
    counters.add(kinds.HOOK_FAILURES, 2, detail="do_tracing")
    counters.add(kinds.SINK_FAILURES, 3, detail="audit")
    assert value(page(registry), "vllm_vitals_tracing_hook_failures_total", hook="do_tracing") == 2
    assert value(page(registry), "vllm_vitals_tracing_sink_failures_total", sink="audit") == 3


def test_registering_twice_leaves_one_of_each(registry):
    counters = Counters()
    SelfMetrics(counters, INFO).register()
    SelfMetrics(counters, INFO).register()
    assert page(registry).count("# TYPE vllm_vitals_tracing_spans_total ") == 1


def test_a_fault_of_ours_leaves_vllms_page(registry):
    from prometheus_client import Gauge

    Gauge("vllms", "own", registry=registry).set(7)
    counters = Counters()
    SelfMetrics(counters, INFO).register()
    counters.snapshot = lambda: 1 / 0
    assert value(page(registry), "vllms") == 7


def test_vllms_clean_up_of_its_own_collectors_spares_ours(registry):
    SelfMetrics(Counters(), INFO).register()
    assert not any(hasattr(collector, "_name") for collector in registry._collector_to_names)


def test_the_exporter_passes_them_on_with_the_servers_name(registry):
    counters = Counters()
    for kind in KINDS:
        counters.add(kind, detail="some")
    SelfMetrics(counters, INFO).register()
    text = merged([Relabeler("a").relabel(generate_latest(registry))])[0].decode()
    assert value(text, "vllm_vitals_tracing_spans_total", server="a", result="emitted") == 1
    passed = families(text)
    assert all(metric.name.removesuffix("_total") in passed for metric in TRACING)


def test_the_line_of_the_minute_says_what_happened():
    counters = Counters()
    counters.add(kinds.SPANS_EMITTED, 12)
    counters.add(kinds.SPANS_DROPPED, 1)
    counters.add(kinds.HOOK_FAILURES, 2, detail="do_tracing")
    assert minute_line(counters) == (
        "tracing since the start: 12 spans emitted, 1 dropped, 0 failed, hook failures of do_tracing: 2"
    )

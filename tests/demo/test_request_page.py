"""The page of request metrics of a simulated server: the plugin's families, and sums that agree with the engine's."""

import re
from collections import defaultdict

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from vllm_vitals.demo.fleet import Fleet
from vllm_vitals.exporter.pages.request_pages import is_request_page, relabelled


def values(page: bytes) -> dict[str, float]:
    """Values by sample name and label values, over all models: `other` is one of them."""
    found: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = [value for name, value in sorted(sample.labels.items()) if name != "model_name"]
            found["|".join((sample.name, *labels))] += sample.value
    return found


def test_requests_are_counted_as_the_plugin_counts_them():
    fleet = Fleet.build("burst", seed=2)
    fleet.advance(120.0)
    server = fleet.servers[0]
    page = server.requests.text(openmetrics=True)
    assert is_request_page(page)
    found = values(page)
    engine = server.engines[0]
    finished = sum(engine.stats.finished.values())
    assert found["vllm_vitals_requests_total|ok"] == finished
    assert found["vllm_vitals_requests_total|disconnected"] == engine.stats.aborted
    assert found["vllm_vitals_request_output_tokens_total|ok"] == engine.stats.finished_tokens
    assert found["vllm_vitals_request_e2e_seconds_count"] == finished
    slow = sum(value for name, value in found.items() if name.startswith("vllm_vitals_requests_slow_total"))
    assert found["vllm_vitals_requests_good_total"] + slow == finished
    assert slow > 0
    for phase in ("ingress", "queue", "prefill", "decode"):
        assert found[f"vllm_vitals_request_{phase}_seconds_sum"] > 0


def test_exemplars_have_traces_of_their_own_and_pass_the_exporter():
    fleet = Fleet.build("steady")
    fleet.advance(60.0)
    page = fleet.servers[1].requests.text(openmetrics=True)
    traces = re.findall(rb'trace_id="([0-9a-f]{32})",span_id="([0-9a-f]{16})"', page)
    assert len(set(traces)) > 20
    assert relabelled(page, "a", openmetrics=True).dropped_lines == 0
    assert b"trace_id" not in fleet.servers[1].requests.text(openmetrics=False)


def test_preemptions_are_counted_with_the_time_that_they_took():
    fleet = Fleet.build("kv-pressure")
    fleet.advance(240.0)
    found = values(fleet.servers[0].requests.text(openmetrics=True))
    assert found["vllm_vitals_request_preemptions_total"] > 0
    assert found["vllm_vitals_request_preempted_seconds_total"] > 0

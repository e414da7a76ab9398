"""The simulated page against pages of a real vLLM 0.32.0."""

import re
from collections import defaultdict
from random import Random

import pytest
from prometheus_client.parser import text_string_to_metric_families
from vllm_vitals.demo.engine import EngineConfig, StepCost
from vllm_vitals.demo.exposition import go_float
from vllm_vitals.demo.server import Server
from vllm_vitals.demo.workload import Lengths, Traffic


def simulated_page(max_model_len: int, engines: int = 1, seconds: float = 60.0) -> str:
    config = EngineConfig("tiny", max_model_len, num_gpu_blocks=200, cost=StepCost(5e-3, 1e-5, 1e-5, 1e-9))
    traffic = Traffic(5.0, Lengths(40, 0.5), Lengths(20, 0.5), prefixes=(64, 0), abort=0.1, bad=0.1)
    server = Server("tiny", config, traffic, engines=engines, number=0, random=Random(0))
    server.advance(seconds)
    return server.page().decode()


def shape(page: str) -> dict[str, tuple[str, str, dict[str, set[tuple[str, ...]]], set[str]]]:
    """Type, help, label names by sample name, and bucket bounds of every family."""
    families = {}
    for family in text_string_to_metric_families(page):
        labels = defaultdict(set)
        for sample in family.samples:
            labels[sample.name].add(tuple(sorted(sample.labels)))
        bounds = {sample.labels["le"] for sample in family.samples if "le" in sample.labels}
        families[family.name] = (family.type, family.documentation, dict(labels), bounds)
    return families


def headers(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("#")]


def test_help_and_type_lines_are_those_of_the_captured_page_in_the_same_order(captured):
    assert headers(simulated_page(1024)) == headers(captured)


def test_families_labels_and_buckets_are_those_of_the_captured_page(captured):
    assert shape(simulated_page(1024)) == shape(captured)


def test_token_buckets_follow_the_context_length(captured_preemption):
    ours, theirs = shape(simulated_page(512)), shape(captured_preemption)
    assert {name: ours[name][3] for name in theirs} == {name: theirs[name][3] for name in theirs}


def test_children_with_a_fixed_set_of_values_are_all_there(captured):
    def children(page: str) -> set[tuple[str, str]]:
        pattern = re.compile(r'^(vllm:\w+)\{.*?(?:reason|source|sleep_state)="(\w+)"', re.MULTILINE)
        return set(pattern.findall(page))

    assert children(simulated_page(1024)) == children(captured)


def test_cache_config_has_the_same_settings(captured):
    def names(page: str) -> list[str]:
        line = next(line for line in page.splitlines() if line.startswith("vllm:cache_config_info{"))
        return re.findall(r'(\w+)="', line)

    assert names(simulated_page(1024)) == names(captured)


def test_two_engines_give_the_rows_of_a_data_parallel_page(captured_data_parallel):
    def rows(page: str) -> dict[str, set[tuple[str, str | None]]]:
        found = defaultdict(set)
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if family.name.startswith("vllm:") and not family.name.endswith("_created"):
                    found[sample.name].add((sample.labels.get("engine"), sample.labels.get("le")))
        return dict(found)

    assert rows(simulated_page(1024, engines=2)) == rows(captured_data_parallel)


def test_an_idle_server_has_no_http_children_yet():
    page = simulated_page(1024, seconds=0.0)
    assert "http_requests_total{" not in page
    assert 'http_request_duration_highr_seconds_bucket{le="+Inf"} 0.0' in page


@pytest.mark.parametrize("name", ["captured", "captured_preemption", "captured_data_parallel"])
def test_numbers_are_written_as_vllm_writes_them(name, request):
    texts = {line.rsplit(" ", 1)[1] for line in request.getfixturevalue(name).splitlines() if line[0] != "#"}
    assert {text: go_float(float(text)) for text in texts} == {text: text for text in texts}

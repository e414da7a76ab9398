"""What has to hold between the numbers of one page, at every moment of every scene."""

import math
from collections import defaultdict

import pytest
from vllm_vitals.demo.engine import SimulatedEngine
from vllm_vitals.demo.families import ENGINE
from vllm_vitals.demo.fleet import Fleet
from vllm_vitals.demo.scenes import SCENES
from vllm_vitals.demo.server import Server


def samples(page: bytes) -> dict[str, dict[str, float]]:
    """Values by sample name and label text."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for line in page.decode().splitlines():
        if line[0] != "#":
            series, value = line.rsplit(" ", 1)
            name, _, labels = series.partition("{")
            assert labels not in found[name], f"twice on the page: {series}"
            found[name][labels] = float(value)
    return found


def check_histograms(page: dict[str, dict[str, float]]) -> None:
    for name in [name for name in page if name.endswith("_bucket")]:
        base = name.removesuffix("_bucket")
        rows: dict[str, list[float]] = defaultdict(list)
        for labels, value in page[name].items():
            before, _, rest = labels.partition('le="')
            rows[before + rest.partition('"')[2].removeprefix(",")].append(value)
        assert all(values == sorted(values) for values in rows.values()), name
        assert sorted(values[-1] for values in rows.values()) == sorted(page[f"{base}_count"].values()), name


def check_engine(page: dict[str, dict[str, float]], index: int, engine: SimulatedEngine) -> None:
    def of(name: str) -> dict[str, float]:
        return {labels: value for labels, value in page[name].items() if f'engine="{index}"' in labels}

    def total(name: str) -> float:
        return sum(of(name).values())

    def child(name: str, value: str) -> float:
        return next(number for labels, number in of(name).items() if f'"{value}"' in labels)

    def seconds(phase: str) -> float:
        return total(f"vllm:request_{phase}_time_seconds_sum")

    stats = engine.stats
    assert total("vllm:prompt_tokens_by_source_total") == total("vllm:prompt_tokens_total")
    cached = child("vllm:prompt_tokens_by_source_total", "local_cache_hit")
    assert total("vllm:prompt_tokens_cached_total") == cached
    assert total("vllm:prompt_tokens_cached_by_source_total") == total("vllm:prefix_cache_hits_total")
    assert total("vllm:prefix_cache_hits_total") <= total("vllm:prefix_cache_queries_total")
    assert total("vllm:prompt_tokens_total") <= total("vllm:prefix_cache_queries_total")

    finished = total("vllm:request_success_total")
    per_request = [
        family.name
        for family in ENGINE
        if family.kind == "histogram" and family.name.startswith(("vllm:request_", "vllm:e2e_"))
    ]
    assert {total(f"{name}_count") for name in per_request} == {finished}
    first_tokens = total("vllm:time_to_first_token_seconds_count")
    generated = total("vllm:generation_tokens_total")
    assert first_tokens >= finished
    assert generated == stats.finished_tokens + stats.aborted_tokens + engine.tokens_in_flight
    assert total("vllm:request_generation_tokens_sum") == stats.finished_tokens
    assert total("vllm:inter_token_latency_seconds_count") == generated - first_tokens
    computed = child("vllm:prompt_tokens_by_source_total", "local_compute")
    assert total("vllm:iteration_tokens_total_sum") == computed + generated

    assert total("vllm:num_requests_running") == engine.running <= engine.config.max_num_seqs
    assert total("vllm:num_requests_waiting") == engine.waiting == total("vllm:num_requests_waiting_by_reason")
    assert total("vllm:kv_cache_usage_perc") == engine.pool.used / engine.pool.capacity <= 1.0
    assert total("vllm:num_preemptions_total") >= total("vllm:request_num_preemptions_sum")
    assert total("vllm:engine_sleep_state") == 1.0

    assert math.isclose(seconds("inference"), seconds("prefill") + seconds("decode"), rel_tol=1e-9, abs_tol=1e-6)
    parts = stats.ingress_seconds + seconds("queue") + seconds("prefill") + seconds("decode")
    assert math.isclose(total("vllm:e2e_request_latency_seconds_sum"), parts, rel_tol=1e-9, abs_tol=1e-6)


def check_http(page: dict[str, dict[str, float]], server: Server) -> None:
    requests = page["http_requests_total"]
    answered = sum(value for labels, value in requests.items() if 'status="2xx"' in labels)
    outcomes = sum(sum(engine.stats.finished.values()) + engine.stats.aborted for engine in server.engines)
    assert answered == outcomes
    everything = sum(requests.values())
    assert page["http_request_duration_highr_seconds_count"][""] == everything
    assert sum(page["http_request_duration_seconds_count"].values()) == everything
    assert sum(page["http_request_size_bytes_count"].values()) == everything


def counters(page: dict[str, dict[str, float]]) -> dict[tuple[str, str], float]:
    ends = ("_total", "_bucket", "_count", "_sum")
    return {(name, labels): v for name in page if name.endswith(ends) for labels, v in page[name].items()}


@pytest.mark.parametrize("scene", SCENES)
def test_the_page_agrees_with_itself_and_with_the_model(scene):
    fleet = Fleet.build(scene, seed=3)
    before: dict[str, tuple[float, dict[tuple[str, str], float]]] = {}
    for moment in range(7, 260, 11):
        fleet.advance(moment)
        for server in fleet.servers:
            if not server.up:
                continue
            page = samples(fleet.page(server))
            check_histograms(page)
            for index, engine in enumerate(server.engines):
                check_engine(page, index, engine)
            check_http(page, server)
            started, now = page["process_start_time_seconds"][""], counters(page)
            known, earlier = before.get(server.name, (started, {}))
            if known == started:
                assert not {series for series, value in earlier.items() if now[series] < value}
            before[server.name] = (started, now)


def test_requests_in_the_system_are_rate_times_latency():
    """Little's law, on the steady scene."""
    fleet = Fleet.build("steady", seed=1)
    inside = dict.fromkeys((server.name for server in fleet.servers), 0.0)
    ticks = 4000
    for tick in range(1, ticks + 1):
        fleet.advance(tick * 0.1)
        for server in fleet.servers:
            inside[server.name] += sum(engine.running + engine.waiting for engine in server.engines) / ticks
    for server in fleet.servers:
        latency = [engine.stats.histograms["vllm:e2e_request_latency_seconds"] for engine in server.engines]
        rate = sum(histogram.count for histogram in latency) / (ticks * 0.1)
        mean = sum(histogram.sum for histogram in latency) / sum(histogram.count for histogram in latency)
        assert inside[server.name] == pytest.approx(rate * mean, rel=0.15)

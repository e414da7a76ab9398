import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import exposition
from vllm_vitals.exporter.engines.readings import Histogram, Reading, read
from vllm_vitals.exporter.pages.relabel import Relabeler
from vllm_vitals.exporter.pages.samples import label_pairs


def reading(raw: bytes) -> Reading:
    return read(Relabeler("s").relabel(raw), raw, 1.0)


def test_the_captured_page_is_read_as_the_reference_parser_reads_it(captured):
    raw = captured("metrics")
    found = reading(raw)
    text = raw.decode()

    def total(name: str) -> float:
        return sum(exposition.values(text, name))

    assert found.kind == "vllm"
    assert found.pairs == (("0", exposition.labels_of(text, "vllm:num_requests_running")[0]["model_name"]),)
    assert found.running == total("vllm:num_requests_running")
    assert found.waiting == total("vllm:num_requests_waiting")
    assert found.kv_cache_ratio == total("vllm:kv_cache_usage_perc")
    assert found.prompt_tokens == total("vllm:prompt_tokens_total") > 0
    assert found.generation_tokens == total("vllm:generation_tokens_total") > 0
    assert found.finished == total("vllm:request_success_total") > 0
    assert found.prefix_queries == total("vllm:prefix_cache_queries_total")
    assert found.prefix_hits == total("vllm:prefix_cache_hits_total")
    assert found.preemptions == total("vllm:num_preemptions_total")
    assert found.start_time == total("process_start_time_seconds")
    assert found.progress == (
        found.prompt_tokens + found.generation_tokens + total("vllm:iteration_tokens_total_count")
    )
    for histogram, name in (
        (found.ttft, "vllm:time_to_first_token_seconds"),
        (found.tpot, "vllm:request_time_per_output_token_seconds"),
    ):
        assert histogram is not None
        assert histogram.counts[-1] == total(f"{name}_count") > 0
        for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
            (stated,) = [
                value
                for (found_name, labels), value in exposition.series(text).items()
                if found_name == f"{name}_bucket" and float(dict(labels)["le"]) == bound
            ]
            assert count == stated


def test_a_data_parallel_page_is_summed_and_its_fullest_cache_counts(captured):
    raw = captured("metrics-dp2-api2")
    found = reading(raw)
    rows = exposition.values(raw.decode(), "vllm:prompt_tokens_total")
    assert [engine for engine, _ in found.pairs] == ["0", "1"]
    assert len(rows) == 2
    assert found.prompt_tokens == sum(rows)
    assert found.kv_cache_ratio == max(exposition.values(raw.decode(), "vllm:kv_cache_usage_perc"))
    assert found.start_time is None  # several API processes: none of them speaks for the server


def test_old_names_and_sglang_are_read_alike():
    old = reading(b"# TYPE vllm:gpu_cache_usage_perc gauge\nvllm:gpu_cache_usage_perc 0.5\n")
    assert (old.kind, old.kv_cache_ratio) == ("vllm", 0.5)
    sglang = reading(b"# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs 3\n")
    assert (sglang.kind, sglang.running) == ("sglang", 3)


def test_what_the_page_does_not_say_is_not_known():
    found = reading(b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n")
    known = {name for name, value in dataclasses.asdict(found).items() if value is not None}
    assert known == {"at", "kind", "pairs", "running"}
    assert reading(b"").kind == "unknown"


def test_a_page_that_says_zero_is_not_a_page_that_says_nothing():
    raw = b"# TYPE vllm:prompt_tokens_total counter\nvllm:prompt_tokens_total 0\n"
    assert (reading(raw).progress, reading(b"").progress) == (0, None)


@pytest.mark.parametrize("number", ["NaN", "+Inf", "-Inf"])
def test_a_value_that_is_no_number_is_not_known(number):
    raw = b"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc %b\n" % number.encode()
    assert reading(raw).kv_cache_ratio is None
    assert reading(b"process_start_time_seconds %b\n" % number.encode()).start_time is None
    assert reading(b"process_start_time_seconds soon\n").start_time is None


def test_a_histogram_without_its_last_bucket_is_not_known():
    head = b"# TYPE vllm:time_to_first_token_seconds histogram\n"
    bucket = b'vllm:time_to_first_token_seconds_bucket{le="%b"} 3\n'
    assert reading(head + bucket % b"0.1").ttft is None
    assert reading(head + bucket % b"soon" + bucket % b"+Inf").ttft == Histogram((math.inf,), (3.0,))


NAMES = st.sampled_from(
    [
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total",
        "vllm:iteration_tokens_total_count",
        "vllm:time_to_first_token_seconds_bucket",
        "process_start_time_seconds",
    ]
)
LABELS = st.dictionaries(
    st.sampled_from(["le", "engine", "model_name", "server", "x"]),
    st.text(st.sampled_from('ab"\\{}, =\n0.1+Inf'), max_size=6),
    max_size=3,
)
VALUES = st.floats().map(repr) | st.sampled_from(["1", "+Inf", "NaN", "1_0", "0x1p3", "", "x"])


def line(name: str, labels: dict[str, str], number: str) -> str:
    escaped = {k: v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for k, v in labels.items()}
    pairs = ",".join(f'{k}="{v}"' for k, v in escaped.items())
    return f"{name}{{{pairs}}} {number}" if pairs else f"{name} {number}"


@given(st.lists(st.builds(line, NAMES, LABELS, VALUES) | st.text(max_size=20), max_size=12))
def test_no_page_breaks_the_reading_or_the_json(lines):
    types = "# TYPE vllm:time_to_first_token_seconds histogram\n"
    found = reading((types + "\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
    scalars = {k: v for k, v in dataclasses.asdict(found).items() if k not in ("ttft", "tpot")}
    json.dumps(scalars, allow_nan=False)
    if found.ttft is not None:
        assert found.ttft.bounds[-1] == math.inf
        assert all(map(math.isfinite, found.ttft.counts))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1))
def test_a_model_name_is_read_as_the_engine_meant_it_whatever_it_holds(name):
    """Escaped once on the engine's page and once on ours: else the join by model_name fails."""
    pairs = label_pairs(engine="0", model_name=name)
    assert reading(
        f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{{pairs}}} 1\n".encode()
    ).pairs == (("0", name),)

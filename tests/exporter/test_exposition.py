"""The byte path against the reference parser: merging bytes equals parsing, relabelling and merging."""

import math
import re
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from support.exposition import Series, families, series
from vllm_vitals.exporter.pages.families import merge
from vllm_vitals.exporter.pages.relabel import Relabeler
from vllm_vitals.vocabulary.ours import HTTP_HANDLERS, HTTP_STATUSES, OURS, RENAMES

PAGES = ("metrics", "metrics-idle", "metrics-preemption", "metrics-dp2-api2")


def merged(*pages: bytes, raw_names: bool = False) -> str:
    relabelled = [Relabeler(f"s{i}", raw_names=raw_names).relabel(page) for i, page in enumerate(pages)]
    return merge(relabelled)[0].decode()


def equal(left: Series, right: Series) -> bool:
    return left.keys() == right.keys() and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in ((left[key], right[key]) for key in left)
    )


def expected(*pages: bytes) -> Series:
    """Parse and merge, the slow way."""
    result: Series = {}
    for i, page in enumerate(pages):
        for (name, labels), value in series(page.decode()).items():
            if name.startswith(("python_", "process_")):
                continue
            result[name, tuple(sorted((*labels, ("server", f"s{i}"))))] = value
    return result


def without_zeros(found: Series, wanted: Series) -> Series:
    """Leave out the children of http_requests_total that we add."""
    return {k: v for k, v in found.items() if k in wanted or k[0] != "http_requests_total" or v != 0}


@pytest.mark.parametrize("name", PAGES)
def test_every_sample_of_a_real_page_is_found_again_with_the_server(captured, name):
    page = captured(name)
    wanted = expected(page)
    assert len(wanted) > 300
    assert equal(without_zeros(series(merged(page)), wanted), wanted)


def test_a_real_page_takes_the_fast_path_only(captured, monkeypatch):
    for name in PAGES:
        relabeler = Relabeler("s0")
        monkeypatch.setattr(relabeler, "_line_by_line", lambda *_: pytest.fail("took the slow path"))
        assert relabeler.relabel(captured(name)).samples > 300


def test_help_and_type_come_once_per_family_and_samples_stay_together(captured):
    text = merged(*[captured(name) for name in PAGES])
    types = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    helps = re.findall(r"^# HELP (\S+)", text, re.MULTILINE)
    assert len(types) == len(set(types)) == len(helps) == len(set(helps))
    named = [re.split(r"[{ ]", line, maxsplit=1)[0] for line in text.splitlines() if not line.startswith("#")]
    runs = [name for i, name in enumerate(named) if i == 0 or named[i - 1] != name]
    plain = [name for name in runs if not name.endswith(("_bucket", "_count", "_sum"))]
    assert len(plain) == len(set(plain)), "a family is torn apart"


def test_several_servers_merge_to_the_union(captured):
    pages = [captured(name) for name in PAGES]
    wanted = expected(*pages)
    assert equal(without_zeros(series(merged(*pages)), wanted), wanted)


def test_created_is_kept_and_the_process_of_the_engine_is_dropped(captured):
    names = families(merged(captured("metrics"))).keys()
    assert "vllm:prompt_tokens_created" in names
    assert not [name for name in names if name.startswith(("python_", "process_"))]


def test_page_of_an_idle_engine_has_every_outcome_of_every_handler_at_zero(captured):
    found = series(merged(captured("metrics-idle")))
    for handler, method in HTTP_HANDLERS:
        for status in HTTP_STATUSES:
            labels = {"server": "s0", "handler": handler, "method": method, "status": status}
            assert found["http_requests_total", tuple(sorted(labels.items()))] == 0
    assert len([name for name, _ in found if name == "http_requests_total"]) == len(HTTP_HANDLERS) * len(HTTP_STATUSES)


def test_a_real_child_takes_the_place_of_its_zero(captured):
    found = series(merged(captured("metrics")))
    rows = {
        (labels["handler"], labels["status"]): value
        for (name, pairs), value in found.items()
        if name == "http_requests_total"
        for labels in [dict(pairs)]
    }
    assert rows["/v1/chat/completions", "4xx"] == 2
    assert rows["/v1/chat/completions", "5xx"] == 0
    assert rows["/v1/completions", "2xx"] == 4


OLD_PAGE = b"""# HELP vllm:gpu_cache_usage_perc GPU KV-cache usage.
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{model_name="m"} 0.5
# HELP vllm:time_per_output_token_seconds Histogram.
# TYPE vllm:time_per_output_token_seconds histogram
vllm:time_per_output_token_seconds_sum{model_name="m"} 1.5
vllm:time_per_output_token_seconds_bucket{le="0.01",model_name="m"} 2.0
vllm:time_per_output_token_seconds_bucket{le="+Inf",model_name="m"} 3.0
vllm:time_per_output_token_seconds_count{model_name="m"} 3.0
# HELP vllm:gpu_prefix_cache_hits_total Hits.
# TYPE vllm:gpu_prefix_cache_hits_total counter
vllm:gpu_prefix_cache_hits_total{model_name="m"} 7.0
"""
NEW_TWIN = b"""# HELP vllm:kv_cache_usage_perc KV-cache usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model_name="m"} 0.5
"""


def test_old_names_become_todays_names_in_header_and_samples():
    text = merged(OLD_PAGE)
    found = {name for name, _ in series(text)}
    assert {
        "vllm:kv_cache_usage_perc",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:prefix_cache_hits_total",
    } <= found
    assert "# TYPE vllm:inter_token_latency_seconds histogram" in text
    assert not re.search(r"gpu_cache_usage|time_per_output_token|gpu_prefix", text)


@pytest.mark.parametrize("page", [OLD_PAGE + NEW_TWIN, NEW_TWIN + OLD_PAGE])
def test_where_a_page_has_both_names_the_old_one_is_dropped(page):
    text = merged(page)
    assert text.count("vllm:kv_cache_usage_perc{") == 1
    assert "gpu_cache_usage_perc" not in text


def test_raw_names_keeps_the_originals_beside_todays():
    found = {name for name, _ in series(merged(OLD_PAGE, raw_names=True))}
    assert {"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"} <= found
    both = {name for name, _ in series(merged(NEW_TWIN + OLD_PAGE, raw_names=True))}
    assert {"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"} <= both


def test_renames_lead_to_names_of_todays_page(captured):
    todays = set(re.findall(r"^# TYPE (\S+)", captured("metrics").decode(), re.MULTILINE))
    assert set(RENAMES.values()) <= todays
    assert not set(RENAMES) & todays


def test_two_servers_with_different_types_keep_the_first_and_say_so():
    one = Relabeler("a").relabel(b"# TYPE x gauge\nx 1\n")
    other = Relabeler("b").relabel(b"# TYPE x counter\nx 2\n")
    text, conflicts = merge([one, other])
    assert text == b'# TYPE x gauge\nx{server="a"} 1\nx{server="b"} 2\n'
    assert conflicts == [0, 1]


@pytest.mark.parametrize(
    ("page", "found", "dropped"),
    [
        (b'x{a="1"} 1\n', 'x{server="s0",a="1"} 1\n', 0),  # no TYPE at all
        (b"# TYPE x gauge\nx 1\n", '# TYPE x gauge\nx{server="s0"} 1\n', 0),
        (b"# TYPE x gauge\nx{} 1\n", '# TYPE x gauge\nx{server="s0"} 1\n', 0),
        (b'# TYPE x gauge\nx { a = "1" , } 1 \n', '# TYPE x gauge\nx{server="s0",a="1"} 1\n', 0),
        (b'# TYPE x gauge\nx{a="1"} 1 1700000000000\n', '# TYPE x gauge\nx{server="s0",a="1"} 1 1700000000000\n', 0),
        (b'# TYPE x gauge\nx{a="{b=\\"c\\"} 2"} 1\n', '# TYPE x gauge\nx{server="s0",a="{b=\\"c\\"} 2"} 1\n', 0),
        (b'# TYPE x gauge\nx{a="\\\\"} 1\n', '# TYPE x gauge\nx{server="s0",a="\\\\"} 1\n', 0),
        (b'# TYPE x gauge\nx{a="1"} 1\nx{a="2', '# TYPE x gauge\nx{server="s0",a="1"} 1\n', 1),  # torn
        (b"# TYPE x gauge\nx 1", "# TYPE x gauge\n", 1),  # 1 may have been 10
        (b"# TYPE x gauge\nx 1\nx{ 2\nx{} y\nx 1_0\n", '# TYPE x gauge\nx{server="s0"} 1\n', 3),
        (b"# TYPE x gauge\nx 1e999\n", "# TYPE x gauge\n", 1),  # overflows in Go, which ends the whole page
        (b'# TYPE x gauge\nx{a="1",a="2"} 1\n', "# TYPE x gauge\n", 1),
        (b'# TYPE x gauge\nx{a="\xff"} 1\nx{a="\xc3\xa9"} 2\n', '# TYPE x gauge\nx{server="s0",a="é"} 2\n', 1),
        (b"# TYPE x gauge\nx 1\x00\nx 2\n", '# TYPE x gauge\nx{server="s0"} 2\n', 1),
        (b'{"x",a="1"} 1\n', "", 1),  # quoted names are not text 0.0.4
        (b'# TYPE x gauge\nx{server="mine"} 1\n', '# TYPE x gauge\nx{server="s0",exported_server="mine"} 1\n', 0),
        (b"# TYPE x gauge\nx 1\nx 2\n", '# TYPE x gauge\nx{server="s0"} 1\n', 0),  # one series, one value
        (b"# TYPE x gauge\nx 1\n# TYPE x gauge\nx 2\n", '# TYPE x gauge\nx{server="s0"} 1\n', 0),
        (b"# TYPE x counter\nx 1\ny 2\n", '# TYPE x counter\nx{server="s0"} 1\ny{server="s0"} 2\n', 0),
        (b"# TYPE x wrong\nx 1\n", '# TYPE x untyped\nx{server="s0"} 1\n', 0),
        (b"# just a comment\n#another\n\n# TYPE x gauge\n# inside\nx 1\n", '# TYPE x gauge\nx{server="s0"} 1\n', 0),
        (b"# HELP x says \\n so\n# TYPE x gauge\nx 1\n", '# HELP x says \\n so\n# TYPE x gauge\nx{server="s0"} 1\n', 0),
        (b"# TYPE x gauge\r\nx 1\r\n", '# TYPE x gauge\nx{server="s0"} 1\n', 0),
        (b"# TYPE x gauge\nx -Inf\nx NaN\n", '# TYPE x gauge\nx{server="s0"} -Inf\n', 0),
        (b"# TYPE process_x gauge\nprocess_x 1\nok 1\n", 'ok{server="s0"} 1\n', 0),
        (b"# TYPE process_x gauge\nprocess_x 1\nok oh\n", "", 1),
        (b"# TYPE two words here\nok 1\n", 'ok{server="s0"} 1\n', 0),
        (b"", "", 0),
        (b"\n", "", 0),
    ],
)  # fmt: skip
def test_line_forms(page, found, dropped):
    result = Relabeler("s0").relabel(page)
    text = merge([result])[0].decode()
    assert (text, result.dropped_lines) == (found, dropped)
    assert result.samples == sum(1 for line in text.splitlines() if not line.startswith("#"))


def test_families_of_ours_have_one_owner():
    name = next(name for name in OURS if name.startswith("nvidia_gpu_"))
    assert merged(f"# TYPE {name} gauge\n{name} 1\n".encode()) == ""


def moved(page: bytes, by: int) -> bytes:
    """Return the page as it may look at the next scrape: other values, same series."""
    return re.sub(rb"(?m)^([^#\n][^\n]* )\S+$", lambda m: m[1] + repr(by * len(m[1]) / 4).encode(), page)


@pytest.mark.parametrize("name", PAGES)
def test_the_next_page_is_filled_into_the_skeleton_of_the_first(captured, monkeypatch, name):
    relabeler = Relabeler("s0")
    relabeler.relabel(captured(name))
    later = moved(captured(name), 3)
    fresh = Relabeler("s0").relabel(later)
    monkeypatch.setattr(relabeler, "_take_apart", lambda _: pytest.fail("took the page apart again"))
    assert relabeler.relabel(later) == fresh


@pytest.mark.parametrize(
    "change",
    [
        lambda page: page.replace(b'finished_reason="error"', b'finished_reason="fault"'),
        lambda page: page + b"# TYPE fresh gauge\nfresh 1\n",
        lambda page: page.replace(b"# HELP vllm:kv_cache_usage_perc KV", b"# HELP vllm:kv_cache_usage_perc Kv"),
        lambda page: page[:-1],
        lambda page: page[: len(page) // 2],
        lambda page: page.replace(b" 0.0\n", b" zero\n", 1),
        lambda page: page.replace(b" 0.0\n", b" 1e999\n", 1),
        lambda page: page.replace(b" 0.0\n", b" 0.0 17\n", 1),
        lambda page: page.replace(b"\n", b"\n\n", 1),
        lambda page: b"",
    ],
)
def test_a_page_with_another_skeleton_is_taken_apart_again(captured, change):
    page = captured("metrics")
    relabeler = Relabeler("s0")
    relabeler.relabel(page)
    assert relabeler.relabel(change(page)) == Relabeler("s0").relabel(change(page))
    assert relabeler.relabel(page) == Relabeler("s0").relabel(page)


# --- Properties -------------------------------------------------------------------------------------------------------
names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,12}", fullmatch=True).filter(
    lambda name: not name.startswith(("python_", "process_")) and name not in RENAMES and name not in OURS
)
label_names = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: name not in {"le", "quantile"}
)
label_values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
numbers = st.floats(width=64).filter(lambda x: x == 0 or math.isinf(x) or math.isnan(x) or 1e-90 < abs(x) < 1e90)
kinds = st.sampled_from(["counter", "gauge", "histogram", "summary", "untyped"])


@st.composite
def pages(draw):
    """A page as prometheus_client itself writes it."""
    registry = CollectorRegistry(auto_describe=False)
    found = []
    for name in draw(
        st.lists(names, max_size=6, unique_by=lambda n: re.sub("_(total|created|sum|count|bucket)+$", "", n))
    ):
        kind = draw(kinds)
        metric = Metric(name, draw(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=15)), kind)
        keys = draw(st.lists(label_names, max_size=3, unique=True))
        rows = draw(st.lists(st.tuples(*[label_values for _ in keys]), max_size=4, unique=True))
        for row in rows:
            labels = dict(zip(keys, row, strict=True))
            if kind == "histogram":
                metric.add_sample(f"{metric.name}_bucket", {**labels, "le": "+Inf"}, draw(numbers))
            suffixes = {"histogram": ["_count", "_sum"], "summary": ["_count", "_sum"], "counter": ["_total"]}
            for suffix in suffixes.get(kind, [""]):
                metric.add_sample(metric.name + suffix, labels, draw(numbers))
        found.append(metric)

    class Collector:
        def collect(self):
            return found

    registry.register(Collector())
    return generate_latest(registry)


@settings(max_examples=200, deadline=None)
@given(st.lists(pages(), min_size=1, max_size=4))
def test_merging_bytes_equals_parsing_and_merging(many):
    try:
        wanted = expected(*many)
    except AssertionError:
        return  # the generated names collide, so the page itself repeats a series
    assert equal(without_zeros(series(merged(*many)), wanted), wanted)
    for page in many:
        relabeler = Relabeler("s0")
        relabeler.relabel(page)
        assert relabeler.relabel(moved(page, 5)) == Relabeler("s0").relabel(moved(page, 5))


lines = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"# TYPE a gauge", b"# TYPE a histogram", b"# HELP a text", b"# TYPE b counter", b"# EOF", b'a{x="1"} 1',
            b'a{x="1', b"a 1", b"b 2 3", b'a_bucket{le="1"} 2', b"a_sum 1", b'server{server="s"} 1', b"#",
            b'a{x="\\"} 1', b'a{x="}"} 1', b'a{x="{"} 1', b"a 1 # {} 2", b"\xff\xfe", b"a\t1", b'a{x="1"}1',
            b"a 0x1p-2", b"a nan", b"a +inf", b'a{x="1",y="2"} 1', b'a{y="2",x="1"} 1',
        ]
    ),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@example(b'# TYPE a \x01\na_bucket{A=""}0\n# TYPE a histogram\na_bucket{A=""}0')
@given(st.lists(lines, max_size=12).map(b"\n".join))
@example(b'# TYPE a gauge\na{x="1\na{y="2"} 1\n')
def test_whatever_comes_the_result_is_a_page_and_lines_are_counted(page):
    relabeler = Relabeler("s0")
    result = relabeler.relabel(page + b"\n")
    text = merge([result])[0].decode()
    found = series(text)  # parses, and no series twice
    assert len(found) == result.samples
    assert all(dict(labels)["server"] == "s0" for _, labels in found)
    assert relabeler.relabel(page + b"\n") == result, "the second time differs"
    again = Relabeler("s0").relabel(page[: len(page) // 2])
    series(merge([again])[0].decode())


def test_prometheus_itself_accepts_what_remains_of_broken_pages(captured):
    """promtool's parser is Prometheus' own; its style complaints about vLLM's names do not count."""
    broken = [captured("metrics")[:n] for n in range(1000, 52000, 7919)]
    broken += [captured("metrics").replace(b'le="', b'le="\xff', 3), captured("metrics").replace(b"} ", b"} x", 5)]
    text = merged(*broken)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text.encode(), capture_output=True)
    assert b"error while linting" not in checked.stderr, checked.stderr[-500:]
    refused = subprocess.run(["promtool", "check", "metrics"], input=text.encode() + b'x{a="1\n', capture_output=True)
    assert b"error while linting" in refused.stderr, "the check above cannot fail"

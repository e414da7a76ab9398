"""/metrics/requests of the exporter: the plugins' pages of all engines as one."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from support import faulty_server as faulty
from support.exposition import labels_of, series, value, values
from support.faulty_server import METRICS_TYPE, FaultyServer, Peer
from support.finished_requests import request, sequence
from support.waiting import wait_for
from vllm_vitals.exporter.pages.request_pages import merged, relabelled
from vllm_vitals.settings.tracing import GoodputSettings
from vllm_vitals.tracing.metrics.openmetrics import render
from vllm_vitals.tracing.metrics.request_metrics import RequestMetricsSink

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
ASKS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
VLLMS = b"# HELP vllm:x Running.\n# TYPE vllm:x gauge\nvllm:x 1.0\n"


def plugin_page(*, openmetrics: bool, requests: int = 1) -> bytes:
    sink = RequestMetricsSink(["tiny"], GoodputSettings())
    for n in range(requests):
        sink.take(request(sequence(), sampled=True, trace_id=n + 1))
    return render(sink.values(), openmetrics=openmetrics)


def text_of(*pages: bytes, openmetrics: bool = True) -> str:
    taken = [relabelled(page, f"s{n}", openmetrics=openmetrics) for n, page in enumerate(pages)]
    assert [(page.dropped_lines, page.duplicates) for page in taken] == [(0, 0)] * len(pages)
    return merged(taken, openmetrics=openmetrics)[0].decode()


def samples_of(text: str) -> set:
    return {
        (sample.name, frozenset(sample.labels.items()), sample.value, str(sample.exemplar))
        for family in openmetrics_families(text)
        for sample in family.samples
    }


def test_each_sample_gets_the_servers_name_and_its_exemplar_stays_as_it_was():
    page = plugin_page(openmetrics=True)
    before, after = samples_of(page.decode()), samples_of(text_of(page))
    assert after == {(name, labels | {("server", "s0")}, *rest) for name, labels, *rest in before}
    assert any("trace_id" in exemplar for *_, exemplar in after)
    assert not any("server" in exemplar for *_, exemplar in after)


def test_of_two_engines_each_family_has_one_header_and_the_page_one_end():
    text = text_of(plugin_page(openmetrics=True), plugin_page(openmetrics=True, requests=3))
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) > 10
    assert text.count("# EOF") == 1
    assert text.endswith("\n# EOF\n")
    assert {dict(labels)["server"] for _, labels, *_ in samples_of(text)} == {"s0", "s1"}


def test_in_text_0_0_4_counters_keep_their_name_and_there_is_no_end():
    text = text_of(plugin_page(openmetrics=False), openmetrics=False)
    assert value(text, "vllm_vitals_requests_total", server="s0", outcome="ok", model_name="tiny") == 1
    assert "# EOF" not in text


G = b"# TYPE vllm_vitals_g gauge\n"
C = b"# TYPE vllm_vitals_c counter\n"
H = b"# TYPE vllm_vitals_h histogram\n"


@pytest.mark.parametrize(
    ("page", "found", "dropped", "duplicates"),
    [
        (G + b"vllm_vitals_g 1\n", b'vllm_vitals_g{server="s"} 1\n', 0, 0),
        (G + b"vllm_vitals_g{} 1\n", b'vllm_vitals_g{server="s"} 1\n', 0, 0),
        (G + b'vllm_vitals_g{a="}{\\"\\\\"} 1\n', b'vllm_vitals_g{server="s",a="}{\\"\\\\"} 1\n', 0, 0),
        (G + b'vllm_vitals_g{server="x"} 1\n', b'vllm_vitals_g{server="s",exported_server="x"} 1\n', 0, 0),
        (C + b'vllm_vitals_c_total 1 # {a="b"} 1\n', b'vllm_vitals_c_total{server="s"} 1 # {a="b"} 1\n', 0, 0),
        (
            H + b'vllm_vitals_h_bucket{le="1.0"} 1 # {trace_id="a"} 0.5 17.25\n',
            b'vllm_vitals_h_bucket{server="s",le="1.0"} 1 # {trace_id="a"} 0.5 17.25\n',
            0,
            0,
        ),
        (H + b'vllm_vitals_h_sum 1 # {a="b"} 1\n', b"", 1, 0),  # no place for an exemplar
        (G + b'vllm_vitals_g 1 # {a="b"} 1\n', b"", 1, 0),
        (C + b'vllm_vitals_c_total 1 # {a="' + b"b" * 128 + b'"} 1\n', b"", 1, 0),  # longer than allowed
        (C + b"vllm_vitals_c 1\n", b"", 1, 0),  # a counter's sample is named _total
        (G + b"vllm_vitals_g 1\nvllm_vitals_g 2\n", b'vllm_vitals_g{server="s"} 1\n', 0, 1),
        (G + b'vllm_vitals_g{a="1",a="2"} 1\n', b"", 1, 0),
        (G + b"vllm_vitals_g 1e999\n", b"", 1, 0),
        (G + b"vllm_vitals_g one\n", b"", 1, 0),
        (G + b'vllm_vitals_g{a="\xff"} 1\n', b"", 1, 0),
        (G + b"vllm_vitals_g 1\x00\n", b"", 1, 0),
        (G + b"vllm_vitals_g 1\nvllm_vitals_g{a=", b'vllm_vitals_g{server="s"} 1\n', 1, 0),  # torn
        (G + b"vllm_vitals_other 1\n", b"", 1, 0),
        (G + b"vllm_vitals_g 1\n" + G + b"vllm_vitals_g 2\n", b'vllm_vitals_g{server="s"} 1\n', 2, 0),
        (b"# TYPE foreign gauge\nforeign 1\n", b"", 2, 0),
        (b"# TYPE vllm_vitals_s summary\nvllm_vitals_s 1\n", b"", 2, 0),
        (G + b"vllm_vitals_g 1\n# EOF\n", b'vllm_vitals_g{server="s"} 1\n', 0, 0),
        (b"", b"", 0, 0),
    ],
)
def test_line_forms(page, found, dropped, duplicates):
    taken = relabelled(page, "s", openmetrics=True)
    lines = b"".join(family.lines for family in taken.families.values())
    assert (lines, taken.dropped_lines, taken.duplicates) == (found, dropped, duplicates)


def test_an_exemplar_has_no_place_in_text_0_0_4():
    taken = relabelled(C.replace(b"_c ", b"_c_total ") + b'vllm_vitals_c_total 1 # {a="b"} 1\n', "s", openmetrics=False)
    assert (taken.families, taken.dropped_lines) == ({}, 1)


def test_a_family_that_two_engines_state_differently_has_the_type_of_the_first():
    pages = [
        relabelled(page, "s", openmetrics=True)
        for page in (G + b"vllm_vitals_g 1\n", H.replace(b"_h", b"_g") + b"vllm_vitals_g_sum 1\n")
    ]
    text, conflicts = merged(pages, openmetrics=True)
    assert text == G + b'vllm_vitals_g{server="s"} 1\n# EOF\n'
    assert conflicts == [0, 1]


lines = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [
            b"# TYPE vllm_vitals_a gauge", b"# TYPE vllm_vitals_a histogram", b"# HELP vllm_vitals_a text", b"# EOF",
            b"# TYPE vllm_vitals_b counter", b"# UNIT vllm_vitals_a seconds", b"vllm_vitals_a 1", b"# EOF ",
            b'vllm_vitals_a{x="1"} 1', b'vllm_vitals_a{x="1', b'vllm_vitals_b_total{x="}"} 2 # {t="1"} 1 1',
            b'vllm_vitals_a_bucket{le="1.0"} 2', b'vllm_vitals_a_bucket{le="+Inf"} 2', b'vllm_vitals_a{x="\\"} 1',
        ]
    ),
)  # fmt: skip


@given(st.lists(lines, max_size=12).map(b"\n".join))
def test_whatever_comes_what_leaves_is_lines_of_the_server_and_headers_once(page):
    taken = relabelled(page + b"\n", "s", openmetrics=False)
    text = merged([taken], openmetrics=False)[0].decode()
    found = [line for line in text.split("\n") if line and not line.startswith("#")]
    assert all('{server="s"' in line for line in found)
    series(text)  # parses, and no series twice


def answers(plain: bytes = VLLMS, *, openmetrics: bytes | None = None, text: bytes | None = None) -> faulty.Behaviour:
    """Behave as a vLLM with the plugin; without pages of its own as one without, which answers with all it has."""

    def answer(peer: Peer) -> bool:
        accepts = "openmetrics" in server_of[peer.path.split("/")[1]].requests[-1].headers.get("accept", "")
        body, kind = plain, METRICS_TYPE
        if peer.path.endswith("/metrics/requests") and text is not None:
            body, kind = (openmetrics, OPENMETRICS) if accepts else (text, METRICS_TYPE)
        return faulty.page(body, kind)(peer)

    return answer


server_of: dict[str, FaultyServer] = {}


@pytest.fixture
def engines():
    pages = {"openmetrics": plugin_page(openmetrics=True), "text": plugin_page(openmetrics=False)}
    with FaultyServer(a=answers(**pages), b=answers(**pages), without=answers()) as server:
        server_of.update(dict.fromkeys(("a", "b", "without"), server))
        yield server


@pytest.fixture
def run(run_exporter, engines):
    def start(*names: str):
        exporter = run_exporter(*(part for name in names for part in ("--engine", f"{name}={engines.url}/{name}")))
        exporter.ready(f"{exporter.url}/readyz")
        return exporter

    return start


def test_the_client_decides_the_format_and_the_engines_are_asked_for_it(run, engines):
    exporter = run("a", "b")
    taken = exporter.get("/metrics/requests", ASKS)
    assert taken.headers["content-type"] == OPENMETRICS
    assert {dict(labels)["server"] for _, labels, *_ in samples_of(taken.text)} == {"a", "b"}
    assert any("trace_id" in exemplar for *_, exemplar in samples_of(taken.text))
    plain = exporter.get("/metrics/requests")
    assert plain.headers["content-type"] == METRICS_TYPE
    assert value(plain.text, "vllm_vitals_request_e2e_seconds_count", server="b", model_name="tiny") == 1
    assert "# EOF" not in plain.text
    packed = exporter.get("/metrics/requests", {**ASKS, "Accept-Encoding": "gzip"})
    assert gzip.decompress(packed.body) == taken.body


def test_an_engine_without_the_plugin_is_absent_and_left_alone_for_a_while(run, engines):
    engines.behaviours["gone"] = faulty.in_turn(faulty.page(VLLMS))
    exporter = run("a", "without")
    for _ in range(3):
        found = exporter.get("/metrics/requests")
        assert {row["server"] for row in labels_of(found.text, "vllm_vitals_requests_total")} == {"a"}
    assert len([r for r in engines.seen("without") if r.path == "/without/metrics/requests"]) == 1
    assert not values(exporter.page(), "vllm_vitals_server_request_page_failures_total")


def test_an_engine_that_knows_no_such_path_is_absent_too(run, engines):
    def answer(peer: Peer) -> bool:
        return (faulty.status(404) if peer.path.endswith("/requests") else faulty.page(VLLMS))(peer)

    engines.behaviours["without"] = answer
    exporter = run("a", "without")
    for _ in range(2):
        assert "without" not in exporter.get("/metrics/requests").text
    assert len([r for r in engines.seen("without") if r.path.endswith("/requests")]) == 1
    assert not values(exporter.page(), "vllm_vitals_server_request_page_failures_total")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faulty.hang, "timeout"),
        (faulty.status(500), "http_status"),
        (faulty.status(401), "unauthorized"),
        (faulty.reset, "closed"),
        (faulty.endless(b"x" * 65536, 600), "too_large"),
    ],
)
def test_a_sick_page_is_counted_and_the_others_stay(run, engines, fault, reason):
    def answer(peer: Peer) -> bool:
        return (fault if peer.path.endswith("/requests") else faulty.page(VLLMS))(peer)

    engines.behaviours["without"] = answer
    exporter = run("a", "without")
    found = exporter.get("/metrics/requests", {"X-Prometheus-Scrape-Timeout-Seconds": "2"})
    assert found.status == 200
    assert {row["server"] for row in labels_of(found.text, "vllm_vitals_requests_total")} == {"a"}
    text = exporter.page()
    assert value(text, "vllm_vitals_server_request_page_failures_total", server="without", reason=reason) == 1
    assert value(text, "vllm_vitals_server_up", server="without") == 1


def test_lines_that_do_not_parse_are_counted_with_the_servers(run, engines):
    spoilt = plugin_page(openmetrics=True).replace(b"# EOF\n", b"spoilt line\n# EOF\n")
    engines.behaviours["a"] = answers(openmetrics=spoilt, text=spoilt)
    exporter = run("a")
    samples_of(exporter.get("/metrics/requests", ASKS).text)
    assert value(exporter.page(), "vllm_vitals_server_dropped_lines_total", server="a") == 1


def test_without_any_plugin_the_page_is_empty_and_valid(run):
    exporter = run("without")
    assert exporter.get("/metrics/requests", ASKS).text == "# EOF\n"
    assert exporter.get("/metrics/requests").text == ""


def test_an_engine_that_went_away_leaves_the_page_of_the_others(run, engines, run_exporter):
    with FaultyServer(metrics=faulty.page(VLLMS)) as dying:
        exporter = run_exporter("--engine", f"a={engines.url}/a", "--engine", f"dying={dying.url}")
    found = wait_for(lambda: exporter.get("/metrics/requests"), "the page")
    assert {row["server"] for row in labels_of(found.text, "vllm_vitals_requests_total")} == {"a"}


def test_the_vitals_come_without_their_history_for_those_who_ask_often(run):
    exporter = run("a")
    whole, short = exporter.get("/api/vitals").json, exporter.get("/api/vitals?history=off").json
    assert "history" in whole["engines"][0]
    assert [row.keys() - {"history"} for row in whole["engines"]] == [row.keys() for row in short["engines"]]

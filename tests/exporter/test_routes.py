import gzip
import json
import re

import pytest
from support.exposition import value
from support.faulty_server import FaultyServer, page
from support.http import get
from support.waiting import wait_for
from vllm_vitals.exporter.routes import _accepts_gzip, scrape_timeout

PAGE = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1.0\n"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 5.0),
        ("10", 9.5),
        ("2.5", 2.0),
        ("1", 0.5),
        ("0.6", 0.3),  # half of what is too short for the margin
        ("1000000", 60.0),
        ("0", 5.0),
        ("-1", 5.0),
        ("nan", 5.0),
        ("inf", 5.0),
        ("soon", 5.0),
        ("", 5.0),
    ],
)
def test_engines_have_the_scrapers_patience_less_our_margin(header, seconds):
    headers = {} if header is None else {"x-prometheus-scrape-timeout-seconds": header}
    assert scrape_timeout(headers, 5.0) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("identity", False),
        ("xgzip", False),
    ],
)
def test_who_takes_gzip(accept, expected):
    assert _accepts_gzip(accept) is expected


@pytest.fixture(scope="module")
def exporter(tmp_path_factory):
    from support.programs import Exporter

    with FaultyServer(a=page(PAGE), b=page(PAGE)) as server:
        named = ("--engine", f"a={server.url}/a", "--engine", f"b={server.url}/b")
        log = tmp_path_factory.mktemp("routes") / "log"
        started = Exporter("--gpus", "off", "--host", "off", *named, log=log)
        started.ready(f"{started.url}/readyz")
        yield started
        started.stop()


def test_the_page_is_gzipped_for_those_who_take_it(exporter):
    plain, packed = exporter.get(), exporter.get(headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "accept-encoding"
    assert len(packed.body) < len(plain.body) / 2
    assert value(gzip.decompress(packed.body).decode(), "vllm_vitals_server_up", server="a") == 1


def test_the_page_is_text_0_0_4_also_for_those_who_ask_for_openmetrics(exporter):
    answer = exporter.get(headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_every_route_answers_and_an_unknown_one_names_them(exporter):
    for path, kind in (
        ("/", "text/html"),
        ("/vitals.css", "text/css"),
        ("/vitals.js", "text/javascript"),
        ("/favicon.svg", "image/svg+xml"),
        ("/metrics", "text/plain"),
        ("/healthz", "text/plain"),
        ("/readyz", "text/plain"),
        ("/health/gpu", "application/json"),
        ("/health/engine", "application/json"),
        ("/api/vitals", "application/json"),
    ):
        answer = exporter.get(path)
        assert (answer.status, answer.headers["content-type"].split(";")[0]) == (200, kind)
    missing = exporter.get("/metric")
    assert missing.status == 404
    assert "/metrics" in missing.text
    assert exporter.get("/../etc/passwd").status == 404


def test_other_methods_than_get_and_head_are_refused(exporter):
    answer = get(f"{exporter.url}/metrics", data=b"x")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_the_live_page_may_load_nothing_from_elsewhere(exporter):
    answer = exporter.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/", "/vitals.css", "/vitals.js"):
        assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", exporter.get(path).text)


def test_an_engine_can_be_asked_for_by_name(exporter):
    both = exporter.get("/health/engine").json
    assert (both["status"], [row["server"] for row in both["engines"]]) == ("ok", ["a", "b"])
    one = exporter.get("/health/engine?server=b").json
    assert [row["server"] for row in one["engines"]] == ["b"]
    assert exporter.get("/health/engine?server=c").status == 503


def test_gpus_that_are_off_are_no_fault_but_one_that_is_asked_for_is(exporter):
    off = exporter.get("/health/gpu")
    assert (off.status, off.json) == (200, {"status": "ok", "reason": "off", "gpus": []})
    asked = exporter.get("/health/gpu?gpu=0")
    assert (asked.status, asked.json["status"]) == (503, "critical")


def test_the_vitals_are_strict_json_and_not_cached(exporter):
    answer = exporter.get("/api/vitals")
    assert answer.headers["cache-control"] == "no-store"
    found = json.loads(answer.text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert [engine["server"] for engine in found["engines"]] == ["a", "b"]


def test_scrapes_are_counted(exporter):
    before = value(exporter.page(), "vllm_vitals_scrapes_total")
    assert value(exporter.page(), "vllm_vitals_scrapes_total") == before + 1


def test_without_an_engine_the_exporter_is_ready_and_says_so(run_exporter):
    exporter = run_exporter()
    wait_for(lambda: exporter.get("/readyz").status == 200, "the first look")
    answer = exporter.get("/health/engine")
    assert (answer.status, answer.json["reason"]) == (503, "no engine is known")
    assert exporter.get().status == 200


def test_ready_means_that_every_engine_was_looked_at(run_exporter):
    import threading

    from support import faulty_server as faulty

    gate = threading.Event()
    with FaultyServer(x=faulty.after(gate, page(PAGE))) as server:
        exporter = run_exporter("--engine", f"{server.url}/x")
        assert exporter.get("/readyz").status == 503
        assert exporter.get("/healthz").status == 200
        gate.set()
        wait_for(lambda: exporter.get("/readyz").status == 200, "the first look")

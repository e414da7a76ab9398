"""Sick engines before the real exporter program: each fault becomes a metric, and the rest of the page stays."""

import base64
import gzip
import json
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from support import faulty_server as faulty
from support.certificates import Authority
from support.exposition import labels_of, series, value, values
from support.faulty_server import FaultyServer, page
from support.http import Answer, free_port
from support.programs import Exporter
from support.waiting import wait_for

DATA = Path(__file__).parents[1] / "data"
SMALL = b"""\
# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 1.0
"""
DEADLINE = "X-Prometheus-Scrape-Timeout-Seconds"
LIMIT_MIB = 8
LINE = b'x{label="%b"} 1\n' % (b"y" * 100)


def captured(name: str) -> bytes:
    return (DATA / f"vllm-0.32.0-{name}.prom").read_bytes()


def with_server(text: str, server: str):
    """Return the samples of an engine's page as they must stand on ours."""
    return {
        (name, tuple(sorted((*labels, ("server", server))))): number
        for (name, labels), number in series(text).items()
        if not name.startswith(("python_", "process_"))
    }


def of_server(text: str, server: str):
    """Return the samples on our page that came from this server."""
    return {
        key: number
        for key, number in series(text).items()
        if ("server", server) in key[1] and not key[0].startswith("vllm_vitals_")
    }


def peak_mib(exporter: Exporter) -> float:
    status = Path(f"/proc/{exporter.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


# --- every kind of failure at once, beside one healthy engine ---------------------------------------------------------

CUT = SMALL[: SMALL.index(b"1.0")]
FAILURES: dict[str, tuple[str, faulty.Behaviour | None]] = {
    "refused": ("refused", None),
    "nowhere.invalid": ("dns", None),
    "hanging": ("timeout", faulty.hang),
    "dripping": ("timeout", faulty.drip(captured("metrics"), 0.05)),
    "redirecting": ("redirect", faulty.status(302, "location: http://127.0.0.1/metrics")),
    "failing": ("http_status", faulty.status(500)),
    "unauthorized": ("unauthorized", faulty.status(401, "www-authenticate: Bearer")),
    "closing": ("closed", faulty.raw(b"")),
    "resetting": ("closed", faulty.reset),
    "garbled": ("protocol", faulty.raw(b"\0\1\2\3\r\n\r\n")),
    "short": ("truncated", faulty.raw(faulty.head(200, "content-type: text/plain", "content-length: 999") + SMALL)),
    "cut": (
        "truncated",
        faulty.raw(faulty.head(200, "content-type: text/plain", "transfer-encoding: chunked") + b"ff\r\n" + CUT),
    ),
    "bomb": ("too_large", page(gzip.compress(b"\n" * 100_000_000), headers=("content-encoding: gzip",))),
    "huge": ("too_large", faulty.endless(LINE * 10_000, 100)),
    "stated": ("too_large", page(b"x" * 100_000_000)),
    "compressed": ("encoding", page(SMALL, headers=("content-encoding: br",))),
    "html": ("not_metrics", page(b"<html>not this</html>\n", "text/html; charset=utf-8")),
    "plain-html": ("not_metrics", page(b"<html>\n<body>not this\n</body>\n", "text/plain")),
    "openmetrics": ("not_metrics", page(SMALL + b"# EOF\n", "application/openmetrics-text; version=1.0.0")),
}


class Scraped(NamedTuple):
    answer: Answer
    seconds: float
    exporter: Exporter

    @property
    def text(self) -> str:
        return self.answer.text


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator:
    """Start exporters that live as long as this module's tests."""
    started: list[Exporter] = []

    def start(*arguments: object, config: str = "", env=None) -> Exporter:
        folder = tmp_path_factory.mktemp("exporter")
        (folder / "vitals.yaml").write_text(config)
        exporter = Exporter("--gpus", "off", "--host", "off", *arguments, log=folder / "log", env=env)
        started.append(exporter)
        exporter.ready(f"{exporter.url}/healthz")
        return exporter

    yield start
    for exporter in started:
        exporter.stop()


@pytest.fixture(scope="module", autouse=True)
def stalling(start) -> Iterator[tuple[FaultyServer, Exporter]]:
    """An engine with a running request and no progress, started first because a stall takes its ten seconds."""
    with FaultyServer(x=page(SMALL + counters(5))) as server:
        exporter = start(
            "--engine", f"{server.url}/x", "--sample-interval", "1s", config="health: {engine_stall: 10s}\n"
        )
        wait_for(lambda: exporter.get("/health/engine").status == 200, "the first look")
        yield server, exporter


@pytest.fixture(scope="module")
def sick(start) -> Iterator[Scraped]:
    behaviours = {name: behaviour for name, (_, behaviour) in FAILURES.items() if behaviour is not None}
    with FaultyServer(healthy=page(captured("metrics")), **behaviours) as server:
        engines = [f"{name}={server.url}/{name}" for name in ("healthy", *behaviours)]
        engines += [f"refused=http://127.0.0.1:{free_port()}", "nowhere.invalid=http://nowhere.invalid"]
        named = [part for engine in engines for part in ("--engine", engine)]
        bounds = f"max_page_bytes: {LIMIT_MIB << 20}\nscrape_timeout: 1s\n"
        exporter = start(*named, "--sample-interval", "60s", config=bounds)
        wait_for(lambda: exporter.get("/readyz").status == 200, "the first look")
        began = time.monotonic()
        answer = exporter.get(headers={DEADLINE: "4"})
        yield Scraped(answer, time.monotonic() - began, exporter)


def test_with_sick_engines_the_answer_is_200_within_the_scrapers_deadline(sick):
    assert sick.answer.status == 200
    assert sick.answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert sick.seconds < 4


@pytest.mark.parametrize(("server", "reason"), [(name, reason) for name, (reason, _) in FAILURES.items()])
def test_a_sick_engine_is_down_with_its_reason(sick, server, reason):
    assert labels_of(sick.text, "vllm_vitals_server_up").count({"server": server, "reason": reason}) == 1
    assert value(sick.text, "vllm_vitals_server_up", server=server) == 0
    assert not of_server(sick.text, server)
    for family in ("page_bytes", "page_samples", "stalled"):  # not known, so absent
        assert not values(sick.text, f"vllm_vitals_server_{family}", server=server)


def test_beside_sick_engines_a_healthy_one_is_whole(sick):
    expected = with_server(captured("metrics").decode(), "healthy")
    found = of_server(sick.text, "healthy")
    assert {key: found.get(key) for key in expected} == expected
    assert value(sick.text, "vllm_vitals_server_up", server="healthy", reason="") == 1
    assert value(sick.text, "vllm_vitals_server_page_samples", server="healthy") == len(found)


def test_beside_sick_engines_our_own_series_stay(sick):
    for family in ("build_info", "process_resident_memory_bytes", "scrapes_total", "host_up"):
        assert values(sick.text, f"vllm_vitals_{family}")


def test_huge_pages_and_bombs_do_not_grow_the_exporter(sick):
    # three of them at once, each bounded; two copies of one while it is put together
    assert peak_mib(sick.exporter) < 45 + 4 * LIMIT_MIB


def test_a_sick_engine_is_logged_once_and_not_at_each_scrape(sick):
    sick.exporter.get(headers={DEADLINE: "1"})
    sick.exporter.get(headers={DEADLINE: "1"})
    assert sick.exporter.output.count("server redirecting: redirect") == 1
    assert "Traceback" not in sick.exporter.output


# --- odd pages, taken with what Prometheus would refuse left out ------------------------------------------------------

OLD_0_8_5 = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 2.0
# HELP vllm:gpu_cache_usage_perc GPU KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
# HELP vllm:gpu_prefix_cache_queries_total Queries.
# TYPE vllm:gpu_prefix_cache_queries_total counter
vllm:gpu_prefix_cache_queries_total{model_name="m"} 7.0
# HELP vllm:time_per_output_token_seconds Histogram of time per output token in seconds.
# TYPE vllm:time_per_output_token_seconds histogram
vllm:time_per_output_token_seconds_bucket{le="0.01",model_name="m"} 1.0
vllm:time_per_output_token_seconds_bucket{le="+Inf",model_name="m"} 3.0
vllm:time_per_output_token_seconds_count{model_name="m"} 3.0
vllm:time_per_output_token_seconds_sum{model_name="m"} 0.5
"""
BOTH_0_10 = b"""\
# HELP vllm:gpu_cache_usage_perc Old.
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.25
# HELP vllm:kv_cache_usage_perc New.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
"""
SGLANG = b"""\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m"} 3.0
# HELP sglang:token_usage The token usage.
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="m"} 0.5
# HELP sglang:gen_throughput The generation throughput.
# TYPE sglang:gen_throughput gauge
sglang:gen_throughput{model_name="m"} 99.0
"""
LABELS = rb"""# TYPE odd gauge
odd{a="back\\slash",b="quo\"te",c="new\nline"} 1
odd{a="{brace}",b="com,ma",c="eq=ual \" } 9"} 2
odd{server="theirs"} 3
odd{ a = "spaced" , } 4 1700000000000
odd 5
"""
DUPLICATES = b"""\
# HELP dup_total First.
# TYPE dup_total counter
dup_total{a="1"} 1
dup_total{a="1"} 2
# HELP dup_total Second.
# TYPE dup_total gauge
dup_total{a="1"} 3
dup_total{a="2"} 4
"""
BAD_LINES = b"""\
# TYPE bad gauge
bad{a="fine"} 1
bad{a="\xff\xfe"} 2
bad{a="no end} 3
bad{a="1",a="2"} 4
bad{a="nothing"}
bad{a="word"} word
bad{a="fine, too"} 8
bad{a="torn"} 9"""
ODD = {
    "old": OLD_0_8_5,
    "both": BOTH_0_10,
    "sglang": SGLANG,
    "labels": LABELS,
    "duplicates": DUPLICATES,
    "bad-lines": BAD_LINES,
    "exporter": b'# TYPE vllm_vitals_server_up gauge\nvllm_vitals_server_up{server="x"} 1\n# TYPE ok gauge\nok 1\n',
    "empty": b"",
    "idle": captured("metrics-idle"),
    "dp": captured("metrics-dp2-api2"),
    "preempting": captured("metrics-preemption"),
}


@pytest.fixture(scope="module")
def odd_engines() -> Iterator[FaultyServer]:
    with FaultyServer(**{name: page(body) for name, body in ODD.items()}) as server:
        yield server


@pytest.fixture(scope="module")
def odd(start, odd_engines) -> str:
    named = [part for name in ODD for part in ("--engine", f"{name}={odd_engines.url}/{name}")]
    exporter = start(*named, "--sample-interval", "60s")
    return exporter.page()


@pytest.mark.parametrize("server", ODD)
def test_an_odd_page_is_up(odd, server):
    assert value(odd, "vllm_vitals_server_up", server=server, reason="") == 1


@pytest.mark.parametrize("server", ["idle", "dp", "preempting"])
def test_every_sample_of_a_real_page_is_found_again(odd, server):
    expected = with_server(ODD[server].decode(), server)
    found = of_server(odd, server)
    assert {key: found.get(key) for key in expected} == expected
    added = found.keys() - expected.keys()
    assert {name for name, _ in added} <= {"http_requests_total"}
    assert all(found[key] == 0 for key in added)
    assert value(odd, "vllm_vitals_server_dropped_lines_total", server=server) == 0


def test_each_family_of_several_servers_is_stated_once(odd):
    for kind in ("HELP", "TYPE"):
        stated = re.findall(rf"(?m)^# {kind} (\S+)", odd)
        assert len(stated) == len(set(stated))


def test_samples_stand_together_under_their_type(odd):
    family, kind = "", ""
    closed = set()
    for line in odd.splitlines():
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family not in closed
            closed.add(family)
        elif not line.startswith("#") and kind not in ("histogram", "summary") and family in line:
            assert line.startswith((f"{family}{{", f"{family} "))


def test_names_of_vllm_0_8_5_become_todays(odd):
    assert values(odd, "vllm:kv_cache_usage_perc", server="old") == [0.25]
    assert values(odd, "vllm:prefix_cache_queries_total", server="old") == [7]
    assert values(odd, "vllm:inter_token_latency_seconds_bucket", server="old", le="+Inf") == [3]
    assert values(odd, "vllm:inter_token_latency_seconds_sum", server="old") == [0.5]
    assert "gpu_cache_usage_perc" not in odd
    assert "time_per_output_token_seconds_bucket{" not in odd.replace("request_time_per_output_token", "")


def test_a_page_with_old_and_new_names_keeps_one(odd):
    assert values(odd, "vllm:kv_cache_usage_perc", server="both") == [0.25]


def test_sglang_speaks_vllms_names_where_they_mean_the_same(odd):
    assert values(odd, "vllm:num_requests_running", server="sglang") == [3]
    assert values(odd, "vllm:kv_cache_usage_perc", server="sglang") == [0.5]
    assert values(odd, "sglang:gen_throughput", server="sglang") == [99]


def test_raw_names_keeps_the_engines_own_names_beside_todays(start, odd_engines):
    named = [part for name in ("old", "both", "sglang") for part in ("--engine", f"{name}={odd_engines.url}/{name}")]
    text = start(*named, "--raw-names").page()
    for server, old, new in (
        ("old", "vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
        ("both", "vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
        ("sglang", "sglang:num_running_reqs", "vllm:num_requests_running"),
        ("old", "vllm:time_per_output_token_seconds_sum", "vllm:inter_token_latency_seconds_sum"),
    ):
        assert len(values(text, old, server=server)) == 1, old
        assert values(text, old, server=server) == values(text, new, server=server)


def test_label_values_come_through_as_they_are(odd):
    assert values(odd, "odd", a="back\\slash", b='quo"te', c="new\nline", server="labels") == [1]
    assert values(odd, "odd", a="{brace}", b="com,ma", c='eq=ual " } 9', server="labels") == [2]
    assert values(odd, "odd", a="spaced", server="labels") == [4]
    assert {"server": "labels"} in labels_of(odd, "odd")


def test_a_server_label_of_the_engines_own_is_kept_as_prometheus_would(odd):
    assert values(odd, "odd", server="labels", exported_server="theirs") == [3]


def test_duplicate_families_and_series_are_left_out_and_counted(odd):
    assert values(odd, "dup_total", server="duplicates", a="1") == [1]
    assert values(odd, "dup_total", server="duplicates", a="2") == [4]
    assert value(odd, "vllm_vitals_server_duplicate_series_total", server="duplicates") > 0
    assert value(odd, "vllm_vitals_server_type_conflicts_total", server="duplicates") > 0


def test_lines_that_prometheus_would_refuse_are_left_out_and_counted(odd):
    assert {labels["a"] for labels in labels_of(odd, "bad")} == {"fine", "fine, too"}
    assert value(odd, "vllm_vitals_server_dropped_lines_total", server="bad-lines") >= 6


def test_another_exporters_series_of_our_names_do_not_mix_with_ours(odd):
    assert value(odd, "vllm_vitals_server_up", server="exporter") == 1
    assert values(odd, "ok", server="exporter") == [1]


def test_an_idle_engine_has_its_failure_counters_at_zero(odd):
    for handler in ("/v1/chat/completions", "/v1/completions"):
        for status in ("2xx", "4xx", "5xx"):
            assert values(odd, "http_requests_total", server="idle", handler=handler, method="POST", status=status) == [
                0
            ]


def test_a_real_failure_counter_takes_the_place_of_its_zero(start):
    real = b'http_requests_total{handler="/v1/completions",method="POST",status="5xx"} %d.0\n'
    head = captured("metrics-idle") + b"# HELP http_requests_total Requests.\n# TYPE http_requests_total counter\n"
    labels = {"handler": "/v1/completions", "method": "POST", "status": "5xx"}
    with FaultyServer(x=page(captured("metrics-idle"))) as server:
        exporter = start("--engine", f"{server.url}/x", "--sample-interval", "60s")
        assert values(exporter.page(), "http_requests_total", **labels) == [0]
        server.behaviours["x"] = page(head.replace(b"\n# HELP http_requests_total ", b"\n# HELP unused ") + real % 3)
        text = exporter.page()  # series() refuses duplicates
        assert values(text, "http_requests_total", **labels) == [3]
        assert values(text, "http_requests_total", **{**labels, "status": "4xx"}) == [0]


# --- what happens in time ---------------------------------------------------------------------------------------------


def counters(tokens: float, started: float | None = None) -> bytes:
    start_time = f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {started}\n" if started else ""
    return f"{start_time}# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total {tokens}\n".encode()


def test_an_engine_that_restarts_in_mid_scrape_is_back_at_the_next(start):
    def dies(peer: faulty.Peer) -> bool:
        peer.send(faulty.head(200, "content-type: text/plain", "content-length: 999") + counters(100)[:20])
        peer.reset()
        return False

    with FaultyServer(x=page(counters(100))) as server:
        exporter = start("--engine", f"{server.url}/x", "--sample-interval", "500ms")

        def restarts() -> float:
            return value(exporter.page(), "vllm_vitals_server_restarts_total")

        def seen() -> None:
            before = len(server.seen("x"))
            wait_for(lambda: len(server.seen("x")) > before + 2, "two looks at the engine")

        wait_for(lambda: exporter.get("/readyz").status == 200, "the first look")
        seen()
        server.behaviours["x"] = dies
        wait_for(lambda: values(exporter.page(), "vllm_vitals_server_up", reason="truncated") == [0], "its death")
        server.behaviours["x"] = page(counters(3))
        wait_for(lambda: values(exporter.page(), "vllm:generation_tokens_total") == [3], "its return")
        wait_for(lambda: restarts() == 1, "the restart by a counter that fell")
        server.behaviours["x"] = page(counters(4, started=1000.0))
        seen()
        assert restarts() == 1
        server.behaviours["x"] = page(counters(4, started=2000.0))
        wait_for(lambda: restarts() == 2, "the restart by another start time")
        seen()
        assert restarts() == 2


def test_kept_connections_that_the_engine_closed_are_no_error(start):
    with FaultyServer(x=page(SMALL)) as server:
        exporter = start("--engine", f"{server.url}/x", "--sample-interval", "60s")
        wait_for(lambda: exporter.get("/readyz").status == 200, "the first look")
        for _ in range(3):
            assert value(exporter.page(), "vllm_vitals_server_up", reason="") == 1
            server.drop()
        pages = server.seen("x")
        assert len({request.connection for request in pages}) >= 3


def test_the_scrapers_patience_counts_and_else_the_setting(start):
    gate = threading.Event()
    with FaultyServer(x=faulty.after(gate, page(SMALL))) as server:
        exporter = start("--engine", f"{server.url}/x", "--sample-interval", "60s", "--scrape-timeout", "300ms")
        assert value(exporter.page(), "vllm_vitals_server_up", reason="timeout") == 0
        with ThreadPoolExecutor(1) as pool:
            before = len(server.requests)
            patient = pool.submit(exporter.get, headers={DEADLINE: "20"})
            wait_for(lambda: len(server.requests) > before, "the patient scrape")
            # an impatient one in between gives up alone
            assert value(exporter.page(), "vllm_vitals_server_up", reason="timeout") == 0
            gate.set()
            assert value(patient.result(30).text, "vllm_vitals_server_up", reason="") == 1


def test_scrapers_at_once_get_whole_pages(start):
    body = captured("metrics")
    expected = with_server(body.decode(), "x")
    with FaultyServer(x=page(body)) as server:
        exporter = start("--engine", f"x={server.url}/x", "--sample-interval", "60s")
        wait_for(lambda: exporter.get("/readyz").status == 200, "the first look")
        with ThreadPoolExecutor(8) as pool:
            accept = [{}, {"Accept-Encoding": "gzip"}] * 4
            answers = list(pool.map(lambda headers: exporter.get(headers=headers), accept))
    for answer in answers:
        plain = gzip.decompress(answer.body) if answer.headers.get("content-encoding") == "gzip" else answer.body
        found = of_server(plain.decode(), "x")
        assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_mid_scrape_lets_the_scrape_finish(start, number):
    gate = threading.Event()
    gate.set()
    with FaultyServer(x=faulty.after(gate, page(captured("metrics")))) as server:
        exporter = start("--engine", f"x={server.url}/x", "--sample-interval", "60s")
        wait_for(lambda: exporter.get("/readyz").status == 200, "the first look")
        gate.clear()
        with ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", exporter.port)):  # one stays idle
            before = len(server.seen("x"))
            scrape = pool.submit(exporter.get, headers={DEADLINE: "9"})
            wait_for(lambda: len(server.seen("x")) > before, "the scrape")
            exporter.process.send_signal(number)
            wait_for(lambda: "stopping" in exporter.output, "the signal")
            wait_for(lambda: not connects(exporter.port), "no new connections")
            assert exporter.process.poll() is None
            gate.set()
            answer = scrape.result(20)
        assert answer.status == 200
        assert of_server(answer.text, "x").items() >= with_server(captured("metrics").decode(), "x").items()
        assert exporter.process.wait(10) == 0
        assert "Traceback" not in exporter.output


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_signal_while_an_engine_hangs_ends_the_exporter(start):
    with FaultyServer(x=faulty.hang) as server:
        exporter = start("--engine", f"x={server.url}/x")
        wait_for(lambda: server.requests, "the first look")
        assert exporter.interrupt(signal.SIGTERM, seconds=10) == 0


# --- credentials and TLS ----------------------------------------------------------------------------------------------


def test_credentials_are_sent_and_appear_nowhere(start, tmp_path):
    token, password, variable = "token-hunter1", "password-hunter2", "variable-hunter3"
    (tmp_path / "token").write_text(f"{token}\n")
    (tmp_path / "password").write_text(f"{password}\n")
    with FaultyServer(byfile=page(SMALL), byenv=page(SMALL), basic=page(SMALL), refusing=faulty.status(401)) as server:
        exporter = start(
            env={"PATH": "/usr/bin:/bin", "ENGINE_TOKEN": variable},
            config=f"""\
log_level: debug
sample_interval: 60s
engines:
  - {{name: byfile, url: "{server.url}/byfile", bearer_token_file: {tmp_path}/token}}
  - {{name: byenv, url: "{server.url}/byenv", bearer_token_env: ENGINE_TOKEN}}
  - {{name: basic, url: "{server.url}/basic", basic_auth: {{username: me, password_file: {tmp_path}/password}}}}
  - {{name: refusing, url: "{server.url}/refusing", bearer_token_file: {tmp_path}/token}}
  - {{name: broken, url: "{server.url}/byfile", bearer_token_file: {tmp_path}/broken}}
""",
        )
        (tmp_path / "broken").write_text("two hunter4\nlines hunter4\n")
        text = exporter.page()
        pair = base64.b64encode(f"me:{password}".encode()).decode()
        for name, sent in (("byfile", f"Bearer {token}"), ("byenv", f"Bearer {variable}"), ("basic", f"Basic {pair}")):
            assert {request.headers["authorization"] for request in server.seen(name)} == {sent}
            assert value(text, "vllm_vitals_server_up", server=name) == 1
        assert value(text, "vllm_vitals_server_up", server="refusing", reason="unauthorized") == 0
        assert value(text, "vllm_vitals_server_up", server="broken", reason="credentials") == 0

        (tmp_path / "token").write_text("rotated-hunter5")
        exporter.page()
        assert server.seen("byfile")[-1].headers["authorization"] == "Bearer rotated-hunter5"
        (tmp_path / "token").unlink()
        wait_for(lambda: values(exporter.page(), "vllm_vitals_server_up", server="byfile", reason="credentials"), "it")

        shown = [exporter.get(path).text for path in ("/metrics", "/api/vitals", "/health/engine", "/", "/nowhere")]
        shown += [exporter.output, Path(f"/proc/{exporter.process.pid}/cmdline").read_text()]
        for secret in ("hunter", pair):
            assert not any(secret in one for one in shown)


def test_tls_of_the_engines(start, tmp_path):
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs", "other")
    pair = ours.issue("engine", "engine.internal")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)
    cases = {
        "own-ca": (f"ca_file: {ours.ca}, server_name: engine.internal", ""),
        "wrong-ca": (f"ca_file: {theirs.ca}, server_name: engine.internal", "tls"),
        "system-ca": ("server_name: engine.internal", "tls"),
        "wrong-name": (f"ca_file: {ours.ca}", "tls"),
        "unchecked": ("insecure_skip_verify: true", ""),
    }
    with FaultyServer(tls=context, x=page(SMALL)) as server:
        engines = "".join(f"  - {{name: {n}, url: '{server.url}/x', tls: {{{t}}}}}\n" for n, (t, _) in cases.items())
        text = start(config=f"engines:\n{engines}").page()
    for name, (_, reason) in cases.items():
        assert value(text, "vllm_vitals_server_up", server=name, reason=reason) == (0 if reason else 1)


def test_an_unusable_ca_ends_the_start_with_code_2(run_exporter, tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    config = tmp_path / "vitals.yaml"
    config.write_text(f"engines:\n  - {{url: 'https://127.0.0.1:1', tls: {{ca_file: {tmp_path}/ca.pem}}}}\n")
    exporter = run_exporter("--config", config, wait=False)
    assert exporter.process.wait(20) == 2
    assert f"{tmp_path}/ca.pem" in exporter.output
    assert "Traceback" not in exporter.output


# --- the other routes before sick engines -----------------------------------------------------------------------------


def test_an_engine_that_is_dead_behind_its_page_is_seen(start):
    page_or_503 = {"dead": page(SMALL), "alive": page(SMALL)}

    def by_path(peer: faulty.Peer) -> bool:
        return (faulty.status(200) if "/alive/" in peer.path else faulty.status(503))(peer)

    with FaultyServer(**page_or_503) as server:
        server.health = by_path
        named = [part for name in page_or_503 for part in ("--engine", f"{name}={server.url}/{name}")]
        exporter = start(*named, "--engine", f"down=http://127.0.0.1:{free_port()}", "--sample-interval", "500ms")
        wait_for(lambda: exporter.get("/readyz").status == 200, "the first look")
        answer = exporter.get("/health/engine")
        assert answer.status == 503
        verdicts = {row["server"]: row for row in answer.json["engines"]}
        assert verdicts["alive"]["status"] == "ok"
        assert "its own /health says that the engine is dead" in verdicts["dead"]["reasons"][0]
        assert verdicts["down"]["reasons"] == ["down (refused): nobody listens at its address"]
        assert exporter.get("/health/engine?server=alive").status == 200
        assert exporter.get("/health/engine?server=dead").status == 503
        assert exporter.get("/health/engine?server=nobody").json["reason"] == "no such server"
        text = exporter.page()
        assert value(text, "vllm_vitals_server_healthy", server="alive") == 1
        assert value(text, "vllm_vitals_server_healthy", server="dead") == 0
        assert not values(text, "vllm_vitals_server_healthy", server="down")


def test_an_engine_without_progress_is_seen(stalling):
    server, exporter = stalling
    wait_for(lambda: exporter.get("/health/engine").status == 503, "the stall", seconds=30, pause=0.5)
    assert "no progress for" in exporter.get("/health/engine").json["engines"][0]["reasons"][0]
    assert value(exporter.page(), "vllm_vitals_server_stalled") == 1
    server.behaviours["x"] = page(SMALL + counters(6))
    wait_for(lambda: exporter.get("/health/engine").status == 200, "its recovery")
    assert value(exporter.page(), "vllm_vitals_server_stalled") == 0


def test_numbers_that_are_none_do_not_break_the_live_page(start):
    body = b"""\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running NaN
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc +Inf
# TYPE process_start_time_seconds gauge
process_start_time_seconds soon
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{le="x"} 1
"""
    with FaultyServer(x=page(body)) as server:
        exporter = start("--engine", f"{server.url}/x", "--sample-interval", "500ms")
        wait_for(lambda: exporter.get("/readyz").status == 200, "the first look")
        answer = exporter.get("/api/vitals")
        assert answer.status == 200
        (engine,) = json.loads(answer.text)["engines"]
        assert engine["up"]
        assert engine["running"] is None
        assert not values(exporter.page(), "vllm_vitals_part_failures_total")


def test_without_a_gpu_library_the_verdict_says_so(run_exporter, tmp_path):
    (tmp_path / "libnvidia-ml.so.1").touch()  # in front of the machine's own, if it has one
    exporter = run_exporter(gpus="on", env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(tmp_path)})
    answer = wait_for(
        lambda: (a := exporter.get("/health/gpu")).json["reason"] not in ("", "starting") and a, "the verdict"
    )
    assert (answer.status, answer.json["status"], answer.json["reason"]) == (503, "critical", "no_library")
    assert value(exporter.page(), "vllm_vitals_nvml_up", reason="no_library") == 0

"""What `rules build` and `rules check` ask a running Prometheus: a real one, over the demo behind a real exporter."""

import contextlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import bcrypt
import pytest
from support.http import free_port
from support.programs import Exporter
from support.prometheus_server import PrometheusServer
from support.waiting import wait_for
from vllm_vitals.alerts.live import bucket_notes

SLA = """\
services:
  - name: chat
    selector: {selector}
    via: {via}
    custom_buckets: {custom_buckets}
    objectives:
      ttft: {ttft}
gpus:
  selector: {gpus}
"""
DEFAULTS = {
    "selector": "{job: vllm-vitals}",
    "via": "exporter",
    "custom_buckets": "off",
    "ttft": "99% under 500ms",
    "gpus": "{job: vllm-vitals}",
}


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory) -> Iterator[PrometheusServer]:
    """Prometheus scrapes the exporter as `vllm-vitals` and one engine itself as `direct`."""
    folder = tmp_path_factory.mktemp("live")
    demo = Exporter("--speed", 10, "--base-port", 0, "--host", "off", log=folder / "demo.log", command="demo")
    try:
        demo.ready(f"{demo.url}/healthz", seconds=60)
        engine = re.search(r"engine +http://(\S+)/metrics", demo.output)[1]
        server = PrometheusServer(
            Path("/usr/bin"), folder, {"vllm-vitals": [demo.url.removeprefix("http://")], "direct": [engine]}
        )
        try:
            server.wait_until_ready()
            moved = "sum by (job) (increase(vllm:time_to_first_token_seconds_count[1m])) > 50"
            wait_for(lambda: len(server.query(moved)) == 2, "requests", seconds=60)
            yield server
        finally:
            server.stop()
    finally:
        demo.stop()


@pytest.fixture
def rules(command, tmp_path):
    """Run `rules PART sla.yaml --prometheus URL`; returns (exit code, stderr)."""

    def run(url: str, *more: object, part: str = "check", **changes: str) -> tuple[int, str]:
        (tmp_path / "sla.yaml").write_text(SLA.format(**DEFAULTS | changes))
        code, _, said = command("rules", part, "sla.yaml", "--prometheus", url, *more)
        return code, said

    return run


@pytest.mark.parametrize("part", ["build", "check"])
def test_selectors_that_match_pass(rules, prometheus, part):
    assert rules(prometheus.url, part=part) == (0, "")


@pytest.mark.parametrize("part", ["build", "check"])
def test_a_selector_that_matches_nothing_is_refused_with_file_line_key_and_what_is_there(rules, prometheus, part):
    code, said = rules(prometheus.url, part=part, selector="{job: nobody}")
    assert code == 2
    assert said == (
        f"vllm-vitals: sla.yaml:3: services[0].selector: expected labels of series on {prometheus.url}, found none for "
        'vllm_vitals_server_up{job="nobody"}; vllm_vitals_server_up is there with {job="vllm-vitals"}\n'
    )


def test_nothing_is_written_for_a_selector_that_matches_nothing(rules, prometheus, tmp_path):
    assert rules(prometheus.url, part="build", selector="{job: nobody}")[0] == 2
    assert not (tmp_path / "rules").exists()


def test_a_model_that_is_not_served_is_refused_with_those_that_are(rules, prometheus):
    code, said = rules(prometheus.url, selector="{model_name: llama}")
    assert code == 2
    assert "sla.yaml:3: services[0].selector: " in said
    assert 'found none for vllm:num_requests_running{model_name="llama"}' in said
    assert 'is there with {model_name="Qwen/Qwen3-8B"}; {model_name="meta-llama/Llama-3.1-70B-Instruct"}' in said


def test_a_regular_expression_matches_as_in_prometheus_from_begin_to_end(rules, prometheus):
    assert rules(prometheus.url, selector='{model_name: "~.*[Ll]lama.*"}') == (0, "")
    assert rules(prometheus.url, selector='{model_name: "~[Ll]lama"}')[0] == 2


def test_the_selector_of_gpus_is_asked_for_too(rules, prometheus):
    code, said = rules(prometheus.url, gpus="{job: gpus}")
    assert code == 2
    assert "sla.yaml:9: gpus.selector: " in said
    assert 'found none for vllm_vitals_nvml_up{job="gpus"}; vllm_vitals_nvml_up is there with' in said


def test_engines_that_are_scraped_themselves_are_looked_for_under_up(rules, prometheus):
    assert rules(prometheus.url, selector="{job: direct}", via="engine") == (0, "")
    code, said = rules(prometheus.url, selector="{job: vllm}", via="engine")
    assert code == 2
    assert 'found none for up{job="vllm"}; up is there with {job="direct"}; {job="vllm-vitals"}' in said


def test_a_prometheus_without_any_of_our_series_is_told(rules, prometheus, tmp_path):
    empty = PrometheusServer(Path("/usr/bin"), tmp_path / "empty", {})
    try:
        empty.wait_until_ready()
        code, said = rules(empty.url)
    finally:
        empty.stop()
    assert code == 2
    assert "there is no vllm_vitals_server_up at all" in said


def test_the_error_of_a_promise_between_two_buckets_is_measured(rules, prometheus):
    code, said = rules(prometheus.url, ttft="99% under 300ms")
    assert code == 0
    (note,) = [line for line in said.splitlines() if "of the last 7d" in line]
    pattern = (
        r"note: chat: ttft 99% under 300ms: of the last 7d between (\S+)% and (\S+)% were later than 300ms; "
        r"read as (\S+)%, and 1% may be"
    )
    least, most, read = (float(part) / 100 for part in re.fullmatch(pattern, note).groups())
    assert 0 <= least < most < 1
    assert read == pytest.approx(0.8 * most + 0.2 * least, abs=2e-4), "a fifth of the way from 250 to 500 ms"

    def late(bound: str) -> float:
        counted = 'sum(increase(vllm:time_to_first_token_seconds_{}{{job="vllm-vitals"{}}}[7d]))'
        good, total = (
            float(prometheus.query(counted.format(*part))[0]["value"][1])
            for part in (("bucket", f',le="{bound}"'), ("count", ""))
        )
        return 1 - good / total

    assert (late("0.5"), late("0.25")) == pytest.approx((least, most), abs=0.03), "the demo goes on meanwhile"


def test_no_share_is_below_zero_where_increase_sees_more_in_a_bucket_than_in_all(sla_of):
    """Extrapolated: a young engine's bucket may be born a scrape after its count."""

    class Young:
        def instant(self, query: str) -> list[SimpleNamespace]:
            return [SimpleNamespace(value=100.1 if "_bucket" in query else 100.0)]

    (note,) = bucket_notes(sla_of("ttft: 99% under 300ms"), Young())
    assert "between 0% and 0% were later" in note


@pytest.mark.parametrize(
    "changes",
    [
        {"ttft": "99% under 500ms"},
        {"ttft": "99% under 300ms", "custom_buckets": "on"},
    ],
)
def test_a_promise_on_a_bound_needs_no_measurement(rules, prometheus, changes):
    code, said = rules(prometheus.url, **changes)
    assert (code, "of the last 7d" in said) == (0, False)


# What is no Prometheus, or lets nobody in.


@pytest.mark.parametrize("part", ["build", "check"])
def test_an_address_where_nobody_listens_is_told(rules, part):
    url = f"http://127.0.0.1:{free_port()}"
    code, said = rules(url, part=part)
    assert code == 2
    assert said.startswith(f"vllm-vitals: --prometheus: expected a Prometheus at {url}, found none: ")
    assert "refused" in said


@pytest.mark.parametrize("url", ["prometheus:9090", "ftp://127.0.0.1", "http://", "9090"])
def test_what_is_no_url_is_told(rules, url):
    code, said = rules(url)
    assert code == 2
    assert said == f"vllm-vitals: --prometheus: expected a URL such as http://127.0.0.1:9090, found {url!r}\n"


class Reply(NamedTuple):
    status: int
    body: bytes


@contextlib.contextmanager
def answering(reply: Callable[[str | None], Reply]) -> Iterator[str]:
    """Serve one answer to everything, by the Authorization header that came; yields the URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, body = reply(self.headers["authorization"])
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(5)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Grafana</html>",
        b"",
        b"[]",
        b'{"status": "success"}',
        b'{"status": "success", "data": {"resultType": "vector"}}',
        b'{"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}}]}}',
        b'{"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "many"]}]}}',
    ],
)
def test_a_server_that_is_no_prometheus_is_told(rules, body):
    with answering(lambda _: Reply(200, body)) as url:
        assert rules(url) == (2, f"vllm-vitals: --prometheus: {url} does not answer as Prometheus does\n")


def test_a_wrong_path_is_told_with_its_status(rules):
    with answering(lambda _: Reply(404, b"404 page not found")) as url:
        assert rules(url) == (2, f"vllm-vitals: --prometheus: {url} answers 404 Not Found\n")


def test_a_query_that_is_refused_is_told_with_the_reason(rules):
    body = b'{"status": "error", "errorType": "execution", "error": "query processing would load too many samples"}'
    with answering(lambda _: Reply(422, body)) as url:
        code, said = rules(url)
    assert code == 2
    assert said == (f"vllm-vitals: --prometheus: {url} refuses a query: query processing would load too many samples\n")


def test_a_real_prometheus_with_a_password_is_told_as_401(rules, tmp_path):
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    (tmp_path / "web.yml").write_text(f"basic_auth_users:\n  ops: {hashed}\n")
    options = [f"--web.config.file={tmp_path / 'web.yml'}"]
    guarded = PrometheusServer(Path("/usr/bin"), tmp_path / "guarded", {}, options=options)
    try:
        guarded.ready(f"{guarded.url}/-/ready", seconds=60, status=401)
        code, said = rules(guarded.url)
    finally:
        guarded.stop()
    assert (code, said) == (2, f"vllm-vitals: --prometheus: {guarded.url} answers 401 Unauthorized\n")


def test_a_token_from_a_file_is_sent_and_shown_nowhere(rules, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    seen = []

    def reply(authorization: str | None) -> Reply:
        seen.append(authorization)
        return Reply(403, b"")

    with answering(reply) as url:
        code, said = rules(url, "--token-file", tmp_path / "token")
    assert seen == ["Bearer s3cret"]
    assert (code, "s3cret" in said) == (2, False)


def test_a_token_file_that_is_not_there_is_told(rules, prometheus):
    code, said = rules(prometheus.url, "--token-file", "nowhere")
    assert code == 2
    assert said == "vllm-vitals: --token-file: expected a readable file, found nowhere: No such file or directory\n"

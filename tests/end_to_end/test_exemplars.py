"""Real Prometheus, 2.42 and 3.x, scrapes request metrics through us and from the plugin itself, and keeps exemplars."""

import http.server
import threading
import time
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from support.finished_requests import request, sequence
from support.http import free_port, get
from support.waiting import wait_for
from vllm_vitals.settings.tracing import GoodputSettings
from vllm_vitals.tracing.counters import Counters
from vllm_vitals.tracing.metrics.request_metrics import RequestMetricsSink
from vllm_vitals.tracing.metrics.self_metrics import SelfMetrics
from vllm_vitals.tracing.metrics.share import MetricsPage

CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - {{job_name: vitals, metrics_path: /metrics/requests, static_configs: [{{targets: ["{exporter}"]}}]}}
  - {{job_name: plugin, metrics_path: /metrics/requests, static_configs: [{{targets: ["{plugin}"]}}]}}
  - {{job_name: itself, static_configs: [{{targets: ["{own}"]}}]}}
"""
BAD_SAMPLES = (
    "prometheus_target_scrapes_sample_duplicate_timestamp_total",
    "prometheus_target_scrapes_exemplar_out_of_order_total",
    "prometheus_tsdb_exemplar_out_of_order_exemplars_total",
)


@pytest.fixture
def plugin(captured, tmp_path, monkeypatch):
    """The plugin's page behind real HTTP, beside a captured page of vLLM's; with several API servers' own counts."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics = RequestMetricsSink(["tiny"], GoodputSettings())
    page = MetricsPage(metrics.values, SelfMetrics(Counters(), {"mode": "own"}), lambda: {"cuda_oom": 1})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            kind, body = "text/plain; version=0.0.4", captured("metrics")
            if self.path == "/metrics/requests":
                kind, body = page.page(self.headers.get("Accept", ""))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(address=f"127.0.0.1:{server.server_port}", take=metrics.take)
        server.shutdown()


@pytest.fixture
def prometheus(plugin, run_exporter, run_program, prometheus_binaries, tmp_path):
    exporter = run_exporter("--engine", f"llama=http://{plugin.address}")
    exporter.ready(f"{exporter.url}/readyz")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "prometheus.yml").write_text(
        CONFIG.format(exporter=exporter.url[7:], plugin=plugin.address, own=url[7:])
    )
    program = run_program(
        prometheus_binaries / "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    )
    program.ready(f"{url}/-/ready")

    def ask(path: str, expression: str, more: str = "") -> list[dict]:
        answer = get(f"{url}/api/v1/{path}?query={quote(expression)}{more}").json
        assert answer["status"] == "success", answer
        return answer["data"]["result"] if path == "query" else answer["data"]

    return ask


def test_exemplars_of_kept_traces_are_in_prometheus_and_no_scrape_had_a_bad_sample(plugin, prometheus):
    def take(trace_id: int, *, sampled: bool) -> None:
        now = time.time()
        done = sequence(at=now - 1.05)
        plugin.take(request(done, started=now - 1.05, ended=now, trace_id=trace_id, sampled=sampled))

    def seen(job: str, family: str = "vllm_vitals_request_e2e_seconds_bucket") -> set[str]:
        around = f"&start={time.time() - 600}&end={time.time() + 60}"
        found = prometheus("query_exemplars", f'{family}{{job="{job}"}}', around)
        return {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}

    def count(job: str) -> str:
        (row,) = prometheus("query", f'vllm_vitals_request_e2e_seconds_count{{job="{job}"}}')
        return row["value"][1]

    take(0xA1, sampled=True)
    for job in ("vitals", "plugin"):
        wait_for(lambda job=job: seen(job) == {f"{0xA1:032x}"}, f"the first exemplar by {job}")
        assert seen(job, "vllm_vitals_request_queue_seconds_bucket") == {f"{0xA1:032x}"}
    take(0xB2, sampled=False)
    take(0xC3, sampled=True)
    for job in ("vitals", "plugin"):
        wait_for(lambda job=job: count(job) == "3", f"three requests by {job}")
        wait_for(lambda job=job: seen(job) == {f"{0xA1:032x}", f"{0xC3:032x}"}, f"both exemplars by {job}")
    for counter in BAD_SAMPLES:
        rows = prometheus("query", f'{counter}{{job="itself"}}')
        assert {row["value"][1] for row in rows} <= {"0"}, counter
    assert {row["value"][1] for row in prometheus("query", "min_over_time(up[1m])")} == {"1"}
    names = {row["metric"]["server"] for row in prometheus("query", 'vllm_vitals_requests_total{job="vitals"}')}
    assert names == {"llama"}
    (row,) = prometheus("query", 'vllm_vitals_tracing_spans_total{job="vitals",result="emitted"}')
    assert row["metric"]["server"] == "llama"


def test_goodput_of_a_model_is_a_ratio_of_two_counters(plugin, prometheus):
    """The first good and the first slow request count, since their series were there before with 0."""
    wait_for(lambda: prometheus("query", 'vllm_vitals_requests_good_total{job="vitals"}'), "the zeros")
    for queue in (0.01, 0.01, 0.01, 3.0):
        plugin.take(request(sequence(queue=queue, decode=0.2)))
    good = 'sum(increase(vllm_vitals_requests_good_total{job="vitals"}[1m]))'
    slow = 'sum(increase(vllm_vitals_requests_slow_total{job="vitals"}[1m]))'

    def ratio() -> list[float]:
        return [float(row["value"][1]) for row in prometheus("query", f"{good} / ({good} + {slow})")]

    wait_for(lambda: ratio() == [pytest.approx(0.75)], "the ratio")

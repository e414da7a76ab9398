"""Several API server processes behind one port: whoever is asked answers for all of them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from support.exposition import value, values
from support.finished_requests import request, sequence
from support.waiting import wait_for
from vllm_vitals.settings.tracing import GoodputSettings
from vllm_vitals.tracing.counters import SPANS_EMITTED, Counters
from vllm_vitals.tracing.metrics.request_metrics import RequestMetricsSink
from vllm_vitals.tracing.metrics.self_metrics import SelfMetrics
from vllm_vitals.tracing.metrics.share import MetricsPage

INFO = {"mode": "own", "export": "thread", "version": "1", "vllm_version": "0.32.0"}
TEXT = "text/plain"

# An API server: each line it is told is a number of requests to count, `?` asks for the page.
PROCESS = """
import sys
sys.path.insert(0, {tests!r})
from support.finished_requests import request, sequence
from test_metrics_share import page_of_a_process

page, metrics, counters = page_of_a_process()
for line in sys.stdin:
    if line.strip() == "?":
        text = page.page("text/plain")[1]
        print(len(text), flush=True)
        print(text.decode(), end="", flush=True)
    elif line.strip() == "idle":
        page.idle()
        print("done", flush=True)
    else:
        for _ in range(int(line)):
            metrics.take(request(sequence()))
            counters.add("spans_emitted")
        print("done", flush=True)
"""


def page_of_a_process():
    counters = Counters()
    metrics = RequestMetricsSink(["tiny"], GoodputSettings())
    page = MetricsPage(metrics.values, SelfMetrics(counters, INFO), lambda: {"cuda_oom": 1})
    return page, metrics, counters


class ApiServer:
    """A process with the plugin's page."""

    def __init__(self, folder: Path):
        here = Path(__file__).parent
        env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(here)}
        code = PROCESS.format(tests=str(here.parent))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", code], env=env, text=True, **pipes)

    def tell(self, line: object) -> str:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def page(self) -> str:
        return self.process.stdout.read(int(self.tell("?")))

    def served(self) -> float:
        return value(self.page(), "vllm_vitals_requests_total", model_name="tiny", outcome="ok")

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def servers(tmp_path):
    started = [ApiServer(tmp_path) for _ in range(2)]
    yield started
    for server in started:
        server.stop()


def test_whoever_is_asked_no_counter_falls_from_one_scrape_to_the_next(servers):
    seen = []
    for turn in range(12):
        servers[turn % 2].tell(turn)  # nobody calls idle: only answers are shared
        seen.append(servers[turn % 2].served())
    assert seen == sorted(seen)
    assert seen[-1] == sum(range(12))


def test_what_another_process_counted_comes_with_its_next_idle_moment(servers):
    one, other = servers
    other.tell(5)
    assert one.served() == 0
    other.tell("idle")
    assert one.served() == 5


def test_histograms_and_the_plugins_own_counts_add_up_and_what_the_server_knows_does_not(servers):
    one, other = servers
    other.tell(3)
    other.page()
    one.tell(2)
    text = one.page()
    assert value(text, "vllm_vitals_request_e2e_seconds_count", model_name="tiny") == 5
    assert value(text, "vllm_vitals_tracing_spans_total", result="emitted") == 5
    assert value(text, "vllm_vitals_engine_fatal_errors_total", kind="cuda_oom") == 1
    assert value(text, "vllm_vitals_tracing_info") == 1


def test_the_counts_of_a_process_that_was_killed_stay(servers):
    one, other = servers
    other.tell(4)
    assert other.served() == 4
    other.process.send_signal(signal.SIGKILL)
    other.process.wait()
    assert one.served() == 4


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def test_the_file_is_for_nobody_else_and_prometheus_client_does_not_read_it(shared):
    page, *_ = page_of_a_process()
    page.close()
    (file,) = shared.iterdir()
    assert file.name == f"vllm_vitals_requests_{os.getpid()}.json"
    assert file.stat().st_mode & 0o777 == 0o600
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    assert generate_latest(registry) == b""


def test_rubbish_and_another_servers_file_are_passed_by(shared):
    page, metrics, _ = page_of_a_process()
    metrics.take(request(sequence()))
    page.close()
    (file,) = shared.iterdir()
    document = json.loads(file.read_bytes())
    (shared / "vllm_vitals_requests_1.json").write_text(json.dumps({**document, "server": "1 1"}))
    (shared / "vllm_vitals_requests_2.json").write_bytes(b"\xff{")
    (shared / "vllm_vitals_requests_3.json").mkdir()
    (shared / "vllm_vitals_requests_4.json").symlink_to("/nowhere")
    (shared / "vllm_vitals_requests_5.tmp").write_bytes(file.read_bytes())
    text = page.page(TEXT)[1].decode()
    assert value(text, "vllm_vitals_requests_total", model_name="tiny", outcome="ok") == 1


def test_a_folder_that_is_gone_leaves_this_processs_own_counts_and_is_logged_once(shared, monkeypatch, caplog):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(shared / "gone"))
    page, metrics, _ = page_of_a_process()
    for _ in range(3):
        metrics.take(request(sequence()))
        text = page.page(TEXT)[1].decode()
    assert value(text, "vllm_vitals_requests_total", model_name="tiny", outcome="ok") == 3
    assert len(caplog.records) == 1


def test_a_symbolic_link_in_the_temporary_files_place_is_not_followed(shared):
    victim = shared / "victim"
    victim.write_text("precious")
    (shared / f"vllm_vitals_requests_{os.getpid()}.tmp").symlink_to(victim)
    page, *_ = page_of_a_process()
    page.close()
    assert victim.read_text() == "precious"


def test_a_single_process_writes_nothing_and_its_own_work_stands_on_vllms_page(monkeypatch, tmp_path):
    vllms = CollectorRegistry()
    monkeypatch.setattr("prometheus_client.REGISTRY", vllms)
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    page, metrics, counters = page_of_a_process()
    counters.add(SPANS_EMITTED)
    metrics.take(request(sequence()))
    page.idle()
    page.close()
    text = page.page(TEXT)[1].decode()
    assert value(text, "vllm_vitals_requests_total", model_name="tiny", outcome="ok") == 1
    assert not values(text, "vllm_vitals_tracing_spans_total")
    assert value(generate_latest(vllms).decode(), "vllm_vitals_tracing_spans_total", result="emitted") == 1
    assert not list(tmp_path.iterdir())


def test_idle_writes_once_a_second_and_only_what_changed(shared):
    page, metrics, _ = page_of_a_process()
    page.idle()
    (file,) = shared.iterdir()
    first = file.stat().st_ino
    metrics.take(request(sequence()))
    page.idle()
    assert file.stat().st_ino == first, "less than a second later"

    def written():
        page.idle()
        return file.stat().st_ino != first

    wait_for(written, "the next write", seconds=10)


@pytest.mark.parametrize(
    ("accept", "kind", "end"),
    [
        (
            "application/openmetrics-text;version=1.0.0",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            True,
        ),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", False),
    ],
)
def test_the_client_decides_the_format(shared, accept, kind, end):
    page, *_ = page_of_a_process()
    found, body = page.page(accept)
    assert (found, body.endswith(b"# EOF\n")) == (kind, end)


def test_the_minutes_line_is_empty_when_nothing_happened(shared):
    page, _, counters = page_of_a_process()
    first = page.minute_line()
    assert page.minute_line() == ""
    counters.add(SPANS_EMITTED, 7)
    assert "7 spans emitted" in page.minute_line() != first

"""`bundle smoke` against servers of ours that answer as the real ones do."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture
def answers():
    """What each path answers (by what the path contains); the trace id of the request replaces TRACE."""
    return {
        "/v1/models": {"data": [{"id": "tiny"}]},
        "/v1/completions": {"usage": {"completion_tokens": 8}},
        "query_exemplars": {
            "data": [
                {
                    "seriesLabels": {"__name__": "vllm_vitals_request_queue_seconds_bucket"},
                    "exemplars": [{"labels": {"trace_id": "TRACE"}}],
                }
            ]
        },
        "/jaeger/api/traces/": {
            "data": [{"spans": [{"operationName": name} for name in ("vllm.queue", "vllm.prefill", "vllm.decode")]}]
        },
        "/elasticsearch/logs-vllm": {
            "hits": {"hits": [{"_index": "logs-vllm-default", "_source": {"message": "done"}}]}
        },
    }


@pytest.fixture
def server(answers):
    seen: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if "traceparent" in self.headers:
                seen["trace"] = self.headers["traceparent"].split("-")[1]
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = next((value for part, value in answers.items() if part in self.path), None)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).replace("TRACE", seen.get("trace", "")).encode())

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def smoke(command, server, fresh_bundle, tmp_path):
    folder = shutil.copytree(fresh_bundle, tmp_path / "bundle")
    env = folder / ".env"
    env.write_text(env.read_text().replace("GRAFANA_PORT=3000", f"GRAFANA_PORT={server}"))
    arguments = ("bundle", "smoke", "--dir", folder, "--engine", f"http://127.0.0.1:{server}", "--timeout", "300ms")
    return lambda: command(*arguments)


def test_a_request_is_found_everywhere(smoke):
    code, output, _ = smoke()
    assert code == 0, output
    assert [line.split()[1] for line in output.splitlines()] == ["request", "exemplar", "trace", "log"]


@pytest.mark.parametrize(
    ("part", "step", "advice"),
    [
        ("query_exemplars", "exemplar", "vllm-vitals-requests"),
        ("/jaeger/api/traces/", "trace", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ("/elasticsearch/logs-vllm", "log line", "logs filebeat"),
    ],
)
def test_a_lost_signal_fails_its_own_step_and_says_where_to_look(smoke, answers, part, step, advice):
    del answers[part]
    code, output, _ = smoke()
    assert code == 1
    failed = [line for line in output.splitlines() if line.startswith("[!!]")]
    assert len(failed) == 1
    assert step in failed[0]
    assert advice in output


def test_without_an_engine_nothing_else_is_asked(smoke, answers):
    del answers["/v1/models"]
    code, output, _ = smoke()
    assert code == 1
    assert "request" in output
    assert "exemplar" not in output


def test_a_trace_without_its_phases_is_not_taken_for_a_whole_one(smoke, answers):
    answers["/jaeger/api/traces/"] = {"data": [{"spans": [{"operationName": "vllm.queue"}]}]}
    code, output, _ = smoke()
    assert code == 1
    assert "not yet vllm.decode, vllm.prefill" in output

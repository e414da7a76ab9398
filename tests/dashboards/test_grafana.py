"""Pushing to a Grafana: a small server speaks the two endpoints that are used, as Grafana 10 to 13 document them."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.http import free_port

TOKEN = "glsa_secret"


class _Grafana(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        self.folders: dict[str, str] = {}
        self.dashboards: dict[str, dict] = {}
        self.answers: dict[str, tuple[int, dict]] = {}  # path -> what to answer instead
        self.paths: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/grafana"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        path = self.path.removeprefix("/grafana")
        if path in self.server.answers:
            return self._answer(*self.server.answers[path])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"message": "Invalid API key"})
        if path == "/api/folders":
            if body["uid"] in self.server.folders:
                return self._answer(409, {"message": "a folder with the same uid already exists"})
            self.server.folders[body["uid"]] = body["title"]
            return self._answer(200, {"uid": body["uid"]})
        if path == "/api/dashboards/db":
            dashboard, uid = body["dashboard"], body["dashboard"]["uid"]
            if body["folderUid"] not in self.server.folders:
                return self._answer(400, {"message": "folder not found"})
            if uid in self.server.dashboards and not body["overwrite"]:
                return self._answer(412, {"message": "The dashboard has been changed by someone else"})
            assert dashboard["id"] is None
            self.server.dashboards[uid] = dashboard
            return self._answer(200, {"uid": uid, "url": f"/grafana/d/{uid}/slug", "status": "success"})
        return self._answer(404, {"message": "Not found"})

    def _answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/login")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def grafana():
    server = _Grafana()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "grafana.token"
    path.write_text(f"{TOKEN}\n")
    return path


def test_all_dashboards_lie_in_a_folder_of_their_own_and_again_without_harm(grafana, token, command, made):
    for _ in range(2):
        code, out, err = command("dashboards", "push", "--grafana", grafana.url, "--token-file", token)
        assert (code, err) == (0, "")
        assert f"http://127.0.0.1:{grafana.server_address[1]}/grafana/d/vitals-slo/slug" in out.split()
    assert grafana.folders == {"vllm-vitals": "vLLM vitals"}
    wanted = {data["uid"]: {**data, "id": None} for data in made.values()}
    assert grafana.dashboards == wanted


def test_the_token_may_come_from_the_environment(grafana, command, monkeypatch):
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    code, _, _ = command("dashboards", "push", "--grafana", f"{grafana.url}/", "--folder", "team-a")
    assert (code, grafana.folders) == (0, {"team-a": "team-a"})


def test_an_sla_of_one_s_own_is_pushed(grafana, token, command, sla_file):
    code, _, _ = command(
        "dashboards", "push", "--grafana", grafana.url, "--token-file", token, "--sla", sla_file("99% under 3s")
    )
    assert code == 0
    steps = next(
        panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        for panel in grafana.dashboards["vitals-overview"]["panels"]
        if panel["title"] == "Time to first token"
    )
    assert steps[1]["value"] == 3.0


@pytest.mark.parametrize(
    ("path", "answer", "text"),
    [
        ("/api/folders", (403, {"message": "denied"}), "HTTP 403: denied: the token may not do this"),
        ("/api/folders", (302, {}), "HTTP 302"),
        ("/api/dashboards/db", (400, {"message": "Cannot save provisioned dashboard"}),
         "the dashboard vitals-engine was not saved: HTTP 400: Cannot save provisioned dashboard"),
        ("/api/dashboards/db", (404, {}), "HTTP 404: nothing is there"),
    ],
)  # fmt: skip
def test_what_grafana_refuses_is_said_in_its_words_with_advice(grafana, token, command, path, answer, text):
    grafana.answers[path] = answer
    code, out, _ = command("dashboards", "push", "--grafana", grafana.url, "--token-file", token)
    assert code == 1
    assert text in out
    assert TOKEN not in out
    assert grafana.paths[-1].endswith(path)  # nothing more was tried


def test_a_token_that_is_not_accepted_says_what_to_make(grafana, command, monkeypatch):
    monkeypatch.delenv("GRAFANA_TOKEN", raising=False)
    code, out, _ = command("dashboards", "push", "--grafana", grafana.url)
    assert code == 1
    assert "HTTP 401: Invalid API key: the token is not accepted; make one for a service account" in out


def test_a_grafana_that_is_not_there_or_hangs_ends_in_time(token, command):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port, words in ((free_port(), "refused"), (silent.getsockname()[1], "timed out")):
            url = f"http://127.0.0.1:{port}"
            code, out, _ = command("dashboards", "push", "--grafana", url, "--token-file", token, "--timeout", "200ms")
            assert code == 1
            assert words in out


def test_a_wrong_address_or_token_file_is_wrong_input(command, tmp_path):
    code, _, err = command("dashboards", "push", "--grafana", "grafana.example.org")
    assert code == 2
    assert "expected an address such as http://127.0.0.1:3000, found 'grafana.example.org'" in err
    code, _, err = command("dashboards", "push", "--grafana", "http://x", "--token-file", tmp_path / "none")
    assert code == 2
    assert "--token-file: expected a readable file" in err

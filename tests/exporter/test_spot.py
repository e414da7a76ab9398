"""The clouds' interruption notices, from real HTTP servers that speak each metadata protocol."""

import http.server
import json
import threading
import time

import pytest
from vllm_vitals.exporter.machine.spot import SpotWatcher
from vllm_vitals.runtime.exchange import exchange


class Cloud:
    """A metadata service on a local port; `answers` is path -> (status, headers, body), changed by the tests."""

    def __init__(self):
        self.answers = {}
        self.requests = []
        self.token = None  # AWS: the only token that is taken; None asks for none
        self.needs = None  # header (name, value) without which the answer is 403
        self.hang = threading.Event()
        self.released = threading.Event()
        cloud = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                cloud.requests.append((self.command, self.path, dict(self.headers)))
                if cloud.hang.is_set():
                    cloud.released.wait(20)
                    return
                status, headers, body = cloud.reply(self.command, self.path, self.headers)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.answer()

            def do_PUT(self):
                self.answer()

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def reply(self, command, path, headers):
        if self.needs and headers.get(self.needs[0]) != self.needs[1]:
            return 403, {}, b"no header"
        if command == "PUT":
            if path != "/latest/api/token" or self.token is None:
                return 404, {}, b""
            if not headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
                return 400, {}, b""
            return 200, {}, self.token.encode()
        if self.token is not None and headers.get("X-aws-ec2-metadata-token") != self.token:
            return 401, {}, b""
        return self.answers.get(path, (404, {}, b"<html>not found</html>"))


@pytest.fixture
def cloud():
    service = Cloud()
    yield service
    service.released.set()
    service.server.shutdown()
    service.server.server_close()


def aws(cloud, body=None, status=200):
    cloud.token = "AQAEA-token=="
    if body is not None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        cloud.answers["/latest/meta-data/spot/instance-action"] = (status, {}, raw)
    return cloud


def gcp(cloud, value=b"FALSE", flavour="Google"):
    cloud.needs = ("Metadata-Flavor", "Google")
    cloud.answers["/computeMetadata/v1/instance/preempted"] = (200, {"Metadata-Flavor": flavour}, value)
    return cloud


def azure(cloud, *events, name=b"vm-1"):
    cloud.needs = ("Metadata", "true")
    document = json.dumps({"DocumentIncarnation": 1, "Events": events}).encode()
    cloud.answers["/metadata/scheduledevents?api-version=2020-07-01"] = (200, {}, document)
    cloud.answers["/metadata/versions"] = (200, {}, b'{"apiVersions": ["2021-02-01"]}')
    cloud.answers["/metadata/instance/compute/name?api-version=2021-02-01&format=text"] = (200, {}, name)
    return cloud


def told(watcher):
    return {
        f"{family.removeprefix('vllm_vitals_spot_')}{{{labels}}}": value for family, labels, value in watcher.samples()
    }


def polled(watcher):
    watcher.poll()
    return told(watcher)


# --- AWS --------------------------------------------------------------------------------------------------------------
def test_aws_without_notice_is_up_and_has_no_timestamp(cloud):
    assert polled(SpotWatcher("aws", aws(cloud).endpoint)) == {'up{cloud="aws"}': 1}


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_aws_notice_has_action_and_time(cloud, action):
    watcher = SpotWatcher("aws", aws(cloud, {"action": action, "time": "2017-09-18T08:22:00Z"}).endpoint)
    assert polled(watcher) == {
        'up{cloud="aws"}': 1,
        f'interruption_timestamp_seconds{{cloud="aws",action="{action}"}}': 1505722920,
    }


def test_aws_action_of_the_future_does_not_become_a_label(cloud):
    watcher = SpotWatcher("aws", aws(cloud, {"action": "x" * 99, "time": "2017-09-18T08:22:00Z"}).endpoint)
    assert 'interruption_timestamp_seconds{cloud="aws",action="other"}' in polled(watcher)


def test_aws_token_is_asked_once_and_renewed_when_it_is_refused(cloud):
    watcher = SpotWatcher("aws", aws(cloud).endpoint)
    for _ in range(3):
        watcher.poll()
    assert [command for command, _, _ in cloud.requests].count("PUT") == 1
    cloud.token = "another"
    assert polled(watcher) == {'up{cloud="aws"}': 1}
    assert [command for command, _, _ in cloud.requests].count("PUT") == 2


def test_aws_notice_that_is_taken_back_disappears(cloud):
    watcher = SpotWatcher("aws", aws(cloud, {"action": "stop", "time": "2017-09-18T08:22:00Z"}).endpoint)
    assert len(polled(watcher)) == 2
    cloud.answers.clear()
    assert polled(watcher) == {'up{cloud="aws"}': 1}


@pytest.mark.parametrize("body", [b"", b"garbage", b"[]", b"{}", b'{"action": "stop", "time": "soon"}', b"\xff\xfe"])
def test_aws_answer_that_is_garbage_is_down_and_does_not_raise(cloud, body):
    assert polled(SpotWatcher("aws", aws(cloud, body).endpoint)) == {'up{cloud="aws"}': 0}


def test_notice_outlives_a_service_that_goes_away(cloud):
    watcher = SpotWatcher("aws", aws(cloud, {"action": "stop", "time": "2017-09-18T08:22:00Z"}).endpoint)
    watcher.poll()
    aws(cloud, b"", status=500)
    found = polled(watcher)
    assert found['up{cloud="aws"}'] == 0
    assert len(found) == 2


def test_service_that_hangs_is_down_within_the_deadline(cloud):
    aws(cloud).hang.set()
    began = time.monotonic()
    assert polled(SpotWatcher("aws", cloud.endpoint)) == {'up{cloud="aws"}': 0}
    assert time.monotonic() - began < 2


# --- GCP --------------------------------------------------------------------------------------------------------------
def test_gcp_preemption_is_thirty_seconds_after_it_was_first_seen(cloud):
    watcher = SpotWatcher("gcp", gcp(cloud).endpoint)
    assert polled(watcher) == {'up{cloud="gcp"}': 1}
    gcp(cloud, b"TRUE\n")
    first = polled(watcher)['interruption_timestamp_seconds{cloud="gcp",action="preempt"}']
    assert first == pytest.approx(time.time() + 30, abs=5)
    assert polled(watcher)['interruption_timestamp_seconds{cloud="gcp",action="preempt"}'] == first


def test_gcp_answer_without_its_flavour_is_not_believed(cloud):
    assert polled(SpotWatcher("gcp", gcp(cloud, b"TRUE", flavour="Captive Portal").endpoint)) == {'up{cloud="gcp"}': 0}


# --- Azure ------------------------------------------------------------------------------------------------------------
def event(kind="Preempt", not_before="Mon, 19 Sep 2016 18:29:47 GMT", resources=("vm-1",), event_id="a"):
    return {"EventId": event_id, "EventType": kind, "NotBefore": not_before, "Resources": list(resources)}


def test_azure_preemption_has_its_time(cloud):
    assert polled(SpotWatcher("azure", azure(cloud, event()).endpoint)) == {
        'up{cloud="azure"}': 1,
        'interruption_timestamp_seconds{cloud="azure",action="preempt"}': 1474309787,
    }


def test_azure_event_that_has_begun_keeps_the_time_at_which_it_was_seen(cloud):
    watcher = SpotWatcher("azure", azure(cloud, event(not_before="")).endpoint)
    first = polled(watcher)['interruption_timestamp_seconds{cloud="azure",action="preempt"}']
    assert first == pytest.approx(time.time(), abs=5)
    assert polled(watcher)['interruption_timestamp_seconds{cloud="azure",action="preempt"}'] == first


@pytest.mark.parametrize("other", [event("Reboot"), event("Freeze"), event(resources=("vm-2",)), "nonsense", None])
def test_azure_event_that_does_not_take_this_machine_is_no_notice(cloud, other):
    assert polled(SpotWatcher("azure", azure(cloud, other).endpoint)) == {'up{cloud="azure"}': 1}


def test_azure_without_events_is_up_and_has_no_timestamp(cloud):
    assert polled(SpotWatcher("azure", azure(cloud).endpoint)) == {'up{cloud="azure"}': 1}


# --- auto -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "speak"), [("aws", aws), ("gcp", gcp), ("azure", azure)])
def test_auto_finds_the_cloud_that_it_is_in(cloud, name, speak):
    assert polled(SpotWatcher("auto", speak(cloud).endpoint)) == {f'up{{cloud="{name}"}}': 1}


def test_auto_outside_a_cloud_rests_after_three_rounds():
    watcher = SpotWatcher("auto", "http://127.0.0.1:1", interval=5)
    assert [watcher.poll() for _ in range(4)] == [5, 5, 600, 600]
    assert told(watcher) == {'up{cloud="auto"}': 0}


def test_auto_does_not_take_any_web_server_for_a_cloud(cloud):
    for path in ("/computeMetadata/v1/instance/preempted", "/metadata/versions"):
        cloud.answers[path] = (200, {}, b"<html>Welcome</html>")
    assert polled(SpotWatcher("auto", cloud.endpoint)) == {'up{cloud="auto"}': 0}


# --- the thread and the exchange --------------------------------------------------------------------------------------
def test_thread_polls_and_stops(cloud):
    watcher = SpotWatcher("aws", aws(cloud).endpoint, interval=0.02)
    watcher.start()
    deadline = time.monotonic() + 10
    while len(cloud.requests) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    watcher.stop()
    assert "spot" not in {thread.name for thread in threading.enumerate()}


def test_off_asks_nobody_and_has_no_series(cloud):
    watcher = SpotWatcher("off", cloud.endpoint)
    watcher.start()
    watcher.stop()
    assert watcher.samples() == []
    assert cloud.requests == []


def test_proxy_of_the_environment_is_never_asked(cloud, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert polled(SpotWatcher("aws", aws(cloud).endpoint)) == {'up{cloud="aws"}': 1}


def test_body_beyond_the_limit_is_left(cloud):
    cloud.answers["/big"] = (200, {}, b"x" * 500_000)
    assert len(exchange(f"{cloud.endpoint}/big", limit=1000).body) == 1000


def test_redirect_is_an_answer_and_is_not_followed(cloud):
    cloud.answers["/"] = (302, {"Location": "http://127.0.0.1:1/"}, b"")
    assert exchange(cloud.endpoint).status == 302

"""The one small HTTP client: a deadline for the whole exchange, for every caller; proxies where they are asked for."""

import socket
import threading
import time

import pytest
from support import faulty_server as faulty
from support.faulty_server import FaultyServer, page
from vllm_vitals.cli import companion_process
from vllm_vitals.compose import smoke, traffic
from vllm_vitals.dashboards.grafana import Grafana, GrafanaError, make_folder
from vllm_vitals.exporter.engines import local_servers
from vllm_vitals.promql.api import Prometheus
from vllm_vitals.runtime.exchange import exchange
from vllm_vitals.settings.scalars import ConfigError

DEADLINE = 0.3
LATEST = 5.0  # a drip of 10 000 bytes lasts 500 s; a busy machine may be late by seconds


def drip_headers(peer):
    """Send an endless header, byte by byte: each of them comes in time."""
    peer.send(b"HTTP/1.1 200 OK\r\nx: ")
    for _ in range(10_000):
        peer.send(b"x")
        peer.pause(0.05)
    return False


def ask_exchange(url, _):
    with pytest.raises(TimeoutError):
        exchange(url, deadline=DEADLINE)


def ask_a_local_port(url, monkeypatch):
    monkeypatch.setattr(local_servers, "_DEADLINE", DEADLINE)
    assert not local_servers.is_inference_server(url.removeprefix("http://"))


def ask_prometheus(url, _):
    with pytest.raises(ConfigError, match=r"no whole answer within 0.3 s"):
        Prometheus(url, deadline=DEADLINE).instant("up")


def ask_grafana(url, _):
    with pytest.raises(GrafanaError, match=r"no whole answer within 0.3 s"):
        make_folder(Grafana(url, "", DEADLINE))


def ask_a_companion(url, monkeypatch):
    monkeypatch.setattr(companion_process, "_ANSWER_SECONDS", DEADLINE)
    with pytest.raises(OSError, match=r"no whole answer within 0.3 s"):
        companion_process.fetch(f"{url}/-/ready")


def ask_a_store(url, tmp_path):
    with pytest.raises(smoke.UnreachedError, match=r"no whole answer within 0.3 s"):
        smoke._call(smoke.Places(url, url, url, tmp_path), url, {}, None, DEADLINE)


def send_traffic(url, monkeypatch):
    monkeypatch.setattr(traffic, "_DEADLINE", DEADLINE)
    traffic.send(url)


@pytest.mark.parametrize("behaviour", [faulty.drip(b"x" * 10_000), drip_headers, faulty.hang], ids=lambda b: b.__name__)
@pytest.mark.parametrize(
    "ask",
    [ask_exchange, ask_a_local_port, ask_prometheus, ask_grafana, ask_a_companion, ask_a_store, send_traffic],
)
def test_whoever_drips_is_given_up_within_the_deadline(ask, behaviour, monkeypatch):
    with FaultyServer(**{"*": behaviour}) as server:
        began = time.monotonic()
        ask(server.url, monkeypatch)
        assert time.monotonic() - began < LATEST
        assert server.requests


def test_ports_that_drip_do_not_keep_a_server_from_being_found(monkeypatch, tmp_path):
    monkeypatch.setattr(local_servers, "_DEADLINE", DEADLINE)
    good = page(b"# TYPE sglang:num_running_reqs gauge\n")
    with FaultyServer(**{"*": faulty.drip(b"data: x\n" * 2000)}) as sick, FaultyServer(**{"*": good}) as sound:
        monkeypatch.setattr(local_servers, "COMMON_PORTS", (sick.port, sound.port))
        began = time.monotonic()
        found = local_servers.find_local_servers(tmp_path, frozenset())
        assert [engine.url for engine in found] == [f"http://127.0.0.1:{sound.port}"]
        assert time.monotonic() - began < LATEST


def test_resolver_that_hangs_ends_at_the_deadline_and_collects_no_threads(monkeypatch):
    asleep, asked = threading.Event(), []
    real = socket.getaddrinfo

    def resolver(host, *arguments, **options):
        if host == "sleepy.example" and not options.get("flags"):
            asked.append(host)
            asleep.wait(60)
            return real("127.0.0.1", 80)
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    try:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                exchange("http://sleepy.example/", deadline=0.05)
        assert asked == ["sleepy.example"]
    finally:
        asleep.set()


def test_body_is_sent_and_a_redirect_is_an_answer():
    with FaultyServer(**{"*": faulty.status(302, "location: http://127.0.0.1:1/")}) as server:
        answer = exchange(f"{server.url}/a?b=c", method="POST", body=b"question", deadline=LATEST)
        assert (answer.status, answer.reason, answer.body) == (302, "Scripted", b"no\n")
        assert server.requests[0].headers["content-length"] == "8"
        assert server.requests[0].path == "/a?b=c"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "127.0.0.1:80", "http://h:port/", "http:///x", "http://["])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match=r"."):
        exchange(url)


def test_proxy_of_the_environment_is_asked_where_the_caller_wants_it_but_not_for_loopback(monkeypatch):
    with FaultyServer(**{"*": page(b"proxy")}) as proxy, FaultyServer(**{"*": page(b"direct")}) as server:
        monkeypatch.setenv("http_proxy", proxy.url.replace("http://", "http://user:p%40ss@"))
        monkeypatch.setenv("no_proxy", "")
        far = exchange("http://prometheus.example/-/ready", deadline=LATEST, use_proxy=True)
        assert (far.body, proxy.requests[0].path) == (b"proxy", "http://prometheus.example/-/ready")
        assert proxy.requests[0].headers["host"] == "prometheus.example"
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"
        assert exchange(server.url, deadline=LATEST, use_proxy=True).body == b"direct"
        monkeypatch.setenv("no_proxy", "prometheus.example")
        with pytest.raises(OSError, match=r"."):
            exchange("http://prometheus.example/-/ready", deadline=DEADLINE, use_proxy=True)


def test_https_goes_through_a_tunnel_that_the_proxy_opens(monkeypatch, tmp_path):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse():
            channel, _ = listener.accept()
            with channel:
                asked.append(channel.recv(65536).split(b"\r\n")[0])
                channel.sendall(b"HTTP/1.1 403 Not allowed\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(OSError, match=r"CONNECT grafana.example:443 answers 403 Not allowed"):
            exchange("https://grafana.example/", deadline=LATEST, use_proxy=True)
        thread.join(5)
    assert asked == [b"CONNECT grafana.example:443 HTTP/1.1"]

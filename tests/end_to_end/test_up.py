"""`vllm-vitals up` with real Prometheus and Alertmanager."""

import os
import re
import signal
import socket

import psutil
from support.http import get
from support.programs import VITALS
from support.up import url_of
from support.waiting import wait_for


def test_up_demo_ends_in_a_prometheus_that_holds_our_series_and_knows_its_alertmanager(run_up, tmp_path):
    up = run_up("--demo", "--scene", "burst")
    wait_for(lambda: "Ctrl-C" in up.output, "the end of the start", seconds=60)
    prometheus, alertmanager = url_of(up, "prometheus"), url_of(up, "alertmanager")
    found = get(f"{prometheus}/api/v1/query?query=count(nvidia_gpu_up==1)").json["data"]["result"]
    assert found[0]["value"][1] == "8", "the first scrape landed before the URLs were printed"
    assert get(f"{alertmanager}/-/ready").status == 200
    linked = wait_for(
        lambda: get(f"{prometheus}/api/v1/alertmanagers").json["data"]["activeAlertmanagers"],
        "the link to Alertmanager",
    )
    assert linked[0]["url"].startswith(alertmanager)
    groups = get(f"{prometheus}/api/v1/rules").json["data"]["groups"]
    assert {"vllm-ttft-alerts", "gpus-limits"} <= {group["name"] for group in groups}
    assert "VLLM" in get(f"{alertmanager}/api/v2/status").json["config"]["original"]
    assert "scene burst" in up.output

    children = psutil.Process(up.process.pid).children(recursive=True)
    assert {"prometheus", "prometheus-alertmanager"} == {child.name()[:23] for child in children}
    for child in children:
        assert {
            connection.laddr.ip for connection in child.net_connections("tcp") if connection.status == "LISTEN"
        } == {"127.0.0.1"}, "loopback only"
    assert up.interrupt() == 0, up.output
    assert not psutil.wait_procs(children, timeout=10)[1], "a child stayed behind"
    assert not list((tmp_path / "state").rglob("scrape-token")), "the token lives as long as the process"


def test_what_a_killed_up_left_behind_is_ended_and_its_data_used_again(run_up):
    first = run_up("--demo")
    wait_for(lambda: "Ctrl-C" in first.output, "the first start", seconds=60)
    left = psutil.Process(first.process.pid).children(recursive=True)
    first.interrupt(signal.SIGKILL)
    second = run_up("--demo")
    wait_for(lambda: "Ctrl-C" in second.output, "the second start", seconds=60)
    assert not psutil.wait_procs(left, timeout=10)[1]
    assert get(f"{url_of(second, 'prometheus')}/-/ready").status == 200
    assert second.interrupt() == 0


def test_without_prometheus_up_says_how_to_get_it_and_goes_on(run_up):
    up = run_up("--demo", env={**os.environ, "PATH": "/nowhere"})
    wait_for(lambda: "Ctrl-C" in up.output, "the start", seconds=60)
    assert "prometheus    not on PATH (Debian: apt install prometheus)" in up.output
    assert up.get("/healthz").status == 200
    assert up.interrupt(signal.SIGTERM) == 0


def test_a_taken_address_is_a_clear_error_with_exit_code_2(run_up, run_program):
    up = run_up("--demo", "--no-prometheus")
    wait_for(lambda: "Ctrl-C" in up.output, "the start", seconds=60)
    second = run_program(VITALS, "up", "--demo", "--listen", f"127.0.0.1:{up.port}")
    assert second.process.wait(30) == 2
    assert f"listen: expected a free address, found 127.0.0.1:{up.port}" in second.output
    assert "Name another one: --listen HOST:PORT" in second.output
    assert "--state" not in second.output, "one trouble at a time"
    assert "Traceback" not in second.output


def test_a_prometheus_that_cannot_start_is_said_with_its_last_words(run_up, tmp_path):
    data = tmp_path / "state/vllm-vitals-demo/prometheus"
    data.mkdir(parents=True)
    data.with_name("made-by-vllm-vitals").touch()
    (data / "queries.active").mkdir()  # Prometheus wants a file there
    up = run_up("--demo")
    wait_for(lambda: "Ctrl-C" in up.output, "the start", seconds=60)
    assert "prometheus    did not start: " in up.output
    assert re.search(r"did not start: .*(panic|Unable to create mmap-ed active query log)", up.output), up.output
    assert up.get("/metrics").status == 200


def test_a_taken_port_of_the_demo_is_a_clear_error_with_exit_code_2(run_program):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = run_program(VITALS, "demo", "--listen", "127.0.0.1:0", "--base-port", port)
        assert demo.process.wait(30) == 2
    assert f"--base-port: expected ports {port} to {port + 1} to be free, found" in demo.output
    assert "Traceback" not in demo.output

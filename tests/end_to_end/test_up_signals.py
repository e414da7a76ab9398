"""How `vllm-vitals up`, `demo` and `exporter` end: Ctrl-C, a closed terminal, a reader that went away."""

import contextlib
import os
import signal
import subprocess

import psutil
import pytest
from support.http import free_port, get
from support.programs import VITALS
from support.up import companions, started
from support.waiting import wait_for

FOREGROUND = ("--gpus", "off", "--host", "off")

pytestmark = pytest.mark.waits


def all_ended(processes) -> bool:
    return not psutil.wait_procs(list(processes), timeout=30)[1]


def test_ctrl_c_twice_ends_everything_in_order(terminal, tmp_path):
    up = terminal("up", "--demo", "--state", tmp_path / "state", "--host", "off")
    started(up)
    children = companions(up)
    assert len(children) == 2
    up.type(b"\x03")
    wait_for(lambda: "stopping ..." in up.output, "the first Ctrl-C")
    while up.process.poll() is None:
        up.type(b"\x03")
        with contextlib.suppress(subprocess.TimeoutExpired):
            up.process.wait(0.02)
    assert up.process.returncode == 0, up.output
    assert all_ended(children.values())
    assert "Traceback" not in up.output


def test_a_closed_terminal_ends_everything_in_order(terminal, tmp_path):
    up = terminal("up", "--demo", "--state", tmp_path / "state", "--host", "off")
    started(up)
    children = companions(up)
    up.close()
    assert up.process.wait(30) == 0
    assert all_ended(children.values())


@pytest.mark.parametrize("end", ["close", "ctrl-c"])
def test_an_end_while_it_starts_leaves_nothing_behind(terminal, tmp_path, end):
    up = terminal("up", "--demo", "--state", tmp_path / "state", "--host", "off")
    children = wait_for(lambda: psutil.Process(up.process.pid).children(), "the first child", seconds=60, pause=0.001)
    up.close() if end == "close" else up.type(b"\x03")
    assert up.process.wait(30) == 0, up.output
    assert all_ended(children)
    left = [
        each.info["cmdline"] for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(each.info["cmdline"])
    ]
    assert not [line for line in left if "prometheus" in line[0]]


@pytest.mark.parametrize(
    "command", [("exporter", *FOREGROUND), ("demo", "--base-port", "0"), ("up", "--no-prometheus", *FOREGROUND)]
)
def test_exporter_and_demo_end_with_their_terminal_too(terminal, command):
    program = terminal(*command)
    wait_for(lambda: get(f"http://127.0.0.1:{program.port}/healthz").status == 200, "the page", seconds=60)
    program.close()
    assert program.process.wait(30) == 0


def test_nohup_outlives_its_terminal(terminal, tmp_path):
    up = terminal(
        "up", "--demo", "--state", tmp_path / "state", "--host", "off",
        before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    started(up)
    children = companions(up)
    up.close()
    up.process.send_signal(signal.SIGHUP)
    children["alertmanager"].kill()  # makes it write to the terminal that is gone
    wait_for(lambda: len(companions(up)) == 2, "the new Alertmanager", seconds=60)
    assert get(f"http://127.0.0.1:{up.port}/healthz").status == 200
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(30) == 0
    assert all_ended(children.values())


def test_a_reader_that_goes_away_ends_nothing_and_the_end_is_in_order(tmp_path):
    port = free_port()
    command = [VITALS, "up", "--demo", "--host", "off", "--state", tmp_path / "state", "--listen", f"127.0.0.1:{port}"]
    up = subprocess.Popen([str(each) for each in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        up.stdout.readline()
        up.stdout.close()
        wait_for(lambda: len(psutil.Process(up.pid).children()) == 2, "both companions", seconds=60)
        children = psutil.Process(up.pid).children()
        assert get(f"http://127.0.0.1:{port}/healthz").status == 200
        up.send_signal(signal.SIGINT)
        assert up.wait(30) == 0
        assert all_ended(children)
    finally:
        up.kill()
        up.wait(10)


def test_who_is_told_to_stop_while_nothing_was_started_says_nothing_bad(terminal, tmp_path):
    up = terminal("up", "--demo", "--no-prometheus", "--state", tmp_path / "state", "--host", "off")
    wait_for(lambda: up.output, "its first words", seconds=60, pause=0.001)
    os.kill(up.process.pid, signal.SIGHUP)
    assert up.process.wait(30) == 0
    assert "Traceback" not in up.output

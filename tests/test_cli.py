import importlib.metadata
import os
import socket
import subprocess
import sys

import pytest
from support.faulty_server import FaultyServer, page, status
from support.http import free_port
from support.programs import VITALS
from vllm_vitals import __version__
from vllm_vitals.config import OPTIONS
from vllm_vitals.demo.scenes import SCENES

COMMANDS = ("up", "exporter", "doctor", "demo", "version")


def test_the_help_names_every_command(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"  {name} " in out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_an_example(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0
    assert f"\n  vllm-vitals {name}" in out


def test_up_tells_a_wrong_sla_before_anything_starts(command, tmp_path):
    (tmp_path / "sla.yaml").write_text("services: [{name: a, selector: {job: x}, objectives: {ttft: 99%}}]\n")
    code, out, err = command("up", "--demo", "--sla", "sla.yaml")
    assert (code, out) == (2, "")
    assert "sla.yaml:1: services[0].objectives.ttft: expected a promise" in err


@pytest.mark.parametrize("option", [("--scene", "xid"), ("--scene", "steady"), ("--times", "1"), ("--speed", "1")])
def test_up_plays_nothing_without_demo(command, option):
    code, out, err = command("up", *option)
    assert (code, out) == (2, "")
    assert (
        err
        == f"vllm-vitals: {option[0]}: expected --demo beside it, found {option[0]} {option[1]} without\n".replace(
            "--speed 1 ", "--speed 1.0 "
        )
    )


@pytest.mark.parametrize("name", ["exporter", "demo"])
def test_an_exporter_tells_a_wrong_sla_before_anything_starts(command, tmp_path, name):
    (tmp_path / "sla.yaml").write_text("services: [{name: a, selector: {job: x}, objectives: {ttft: 99%}}]\n")
    code, out, err = command(name, "--sla", "sla.yaml")
    assert (code, out) == (2, "")
    assert "sla.yaml:1: services[0].objectives.ttft: expected a promise" in err


@pytest.mark.parametrize("name", ["up", "exporter", "doctor", "demo"])
def test_the_help_names_every_option_with_its_variable(command, name):
    _, out, _ = command(name, "--help")
    words = " ".join(out.split())
    for option in OPTIONS:
        assert option.flag in words
        assert f"[{option.variable}]" in words
    assert "--config" in words


def test_the_help_names_every_scene(command):
    for name in ("up", "demo"):
        _, out, _ = command(name, "--help")
        for scene in SCENES:
            assert scene in out


def test_version(command):
    code, out, _ = command("version")
    nvml = importlib.metadata.version("nvidia-ml-py")
    assert (code, out) == (
        0,
        f"vllm-vitals {__version__}, Python {sys.version.split()[0]}, nvidia-ml-py {nvml}\n",
    )


def test_without_a_command_the_help_comes_with_code_2(command):
    code, out, err = command()
    assert code == 2
    assert "COMMAND" in out + err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exportr"], "invalid choice: 'exportr'"),
        (["exporter", "--engin", "x"], "--engin"),  # no abbreviations
        (["exporter", "--frobnicate"], "--frobnicate"),
        (["demo", "--scene", "boom"], "invalid choice: 'boom'"),
        (["up", "--scene", "boom"], "invalid choice: 'boom'"),
        (["demo", "--times", "0"], "expected a whole number from 1 on, found '0'"),
        (["demo", "--speed", "fast"], "expected a number above 0, at most 100, found 'fast'"),
        (["demo", "--base-port", "70000"], "expected a port, 0 to 65535, found '70000'"),
        (["demo", "--engines", "none"], "expected a whole number from 1 on, found 'none'"),
        (["demo", "--engines", "0"], "expected a whole number from 1 on, found '0'"),
        (["exporter", "--listen", "9836"], "--listen: expected HOST:PORT such as 127.0.0.1:9836, found '9836'"),
        (["exporter", "--engine", ""], "--engine: expected an address"),
        (["exporter", "--engine", "ftp://x"], "--engine: expected an address"),
        (["exporter", "--gpus", "perhaps"], "--gpus: expected on or off, found 'perhaps'"),
        (["exporter", "--host", "of"], "did you mean 'off'?"),
        (["exporter", "--config", "no.yaml"], "no.yaml: cannot be read: No such file or directory"),
        (["exporter", "--web.config.file", "no.yml"], "no.yml: cannot be read"),
        (["exporter", "--listen", "256.0.0.1:9836", "--gpus", "off"], "listen: expected a free address"),
        (["exporter", "--listen", "a..b:9836"], "--listen: expected HOST:PORT"),
    ],
)
def test_wrong_input_is_code_2_with_a_word_and_no_traceback(command, arguments, words):
    code, _, err = command(*arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_an_address_that_is_taken_is_code_2(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = command("exporter", "--listen", address, "--gpus", "off", "--host", "off")
    assert code == 2
    assert f"listen: expected a free address, found {address}: " in err


def test_the_file_in_the_folder_is_taken_and_its_error_names_the_line(command, tmp_path):
    (tmp_path / "vitals.yaml").write_text("listen: 127.0.0.1:9836\nlog_level: loud\n")
    code, _, err = command("exporter")
    assert code == 2
    assert err.startswith("vllm-vitals: vitals.yaml:2: log_level: expected debug or info or warning or error")


def test_a_variable_is_named_when_it_is_wrong(command, monkeypatch):
    monkeypatch.setenv("VLLM_VITALS_SCRAPE_TIMEOUT", "soon")
    code, _, err = command("exporter")
    assert (code, "VLLM_VITALS_SCRAPE_TIMEOUT: expected a duration" in err) == (2, True)


def test_a_misspelt_variable_is_said_in_the_log(run_program, tmp_path):
    from support.waiting import wait_for

    env = {"PATH": os.environ["PATH"], "VLLM_VITALS_LISTN": "x"}
    program = run_program(
        VITALS, "exporter", "--listen", f"127.0.0.1:{free_port()}", "--gpus", "off", "--host", "off", env=env
    )
    wait_for(lambda: "VLLM_VITALS_LISTN is not known, did you mean VLLM_VITALS_LISTEN?" in program.output, "it")
    assert program.interrupt() == 0


@pytest.mark.parametrize("start", [[VITALS], [sys.executable, "-m", "vllm_vitals"]])
def test_it_starts_as_a_command_and_as_a_module(start, tmp_path):
    done = subprocess.run([*start, "version"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, f"vllm-vitals {__version__}")


def test_output_into_a_closed_pipe_is_no_error(tmp_path):
    done = subprocess.run(
        f"'{VITALS}' doctor --gpus off | true", shell=True, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


# --- doctor -----------------------------------------------------------------------------------------------------------

PAGE = b"# HELP vllm:x X.\n# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1.0\n"


@pytest.fixture
def doctor(command):
    def doctor(*arguments: object) -> tuple[int, str]:
        code, out, err = command(
            "doctor", "--gpus", "off", "--host", "off", "--listen", f"127.0.0.1:{free_port()}", *arguments
        )
        assert "Traceback" not in err
        return code, out

    return doctor


def test_doctor_finds_nothing_wrong_with_a_healthy_engine(doctor):
    with FaultyServer(**{"": page(PAGE), "metrics": page(PAGE), "version": page(b'{"version": "0.32.0"}')}) as server:
        code, out = doctor("--engine", server.url)
    assert code == 0
    assert f"[ok]  Engine 127.0.0.1:{server.port}" in out
    assert "vLLM 0.32.0" in out
    assert "[!!]" not in out


def test_doctor_says_what_to_do_about_a_dead_engine(doctor):
    address = f"127.0.0.1:{free_port()}"
    code, out = doctor("--engine", f"http://{address}")
    assert code == 1
    assert f"[!!]  Engine {address}" in out
    assert "refused" in out
    assert "-> start the server, or correct the address" in out


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (status(401), "set bearer_token_file or basic_auth"),
        (status(500), "unless a proxy in front hides it"),
        (status(302, "location: /x"), "name the final address"),
        (page(b"<html>\n", "text/html"), "the address must be the server's own"),
        (page(b"# TYPE go_threads gauge\ngo_threads 7\n"), "without --disable-log-stats"),
    ],
)
def test_doctor_has_advice_for_every_failure(doctor, behaviour, words):
    with FaultyServer(x=behaviour) as server:
        code, out = doctor("--engine", f"{server.url}/x")
    assert code == 1
    assert words in out


def test_every_reason_has_advice():
    import typing

    from vllm_vitals.doctor import _FETCH_ADVICE
    from vllm_vitals.exporter.page_client import Reason

    assert set(typing.get_args(Reason)) - _FETCH_ADVICE.keys() == {"encoding", "internal", "removed"}


def test_doctor_names_an_address_that_is_taken(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, _ = command(
            "doctor", "--gpus", "off", "--host", "off", "--listen", f"127.0.0.1:{taken.getsockname()[1]}"
        )
    assert code == 1
    assert "[!!]  Listen address" in out
    assert "an exporter may run already" in out


def test_doctor_says_why_there_is_no_gpu(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").touch()  # in front of the machine's own, if it has one
    done = subprocess.run(
        [VITALS, "doctor", "--host", "off", "--listen", f"127.0.0.1:{free_port()}"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "[!!]  GPUs" in done.stdout
    assert "-> install the NVIDIA driver" in done.stdout


def test_doctor_looks_at_the_web_config_file(command, tmp_path):
    (tmp_path / "web.yml").write_text("nonsense: 1\n")
    code, out, _ = command("doctor", "--gpus", "off", "--host", "off", "--web.config.file", "web.yml")
    assert code == 1
    assert "[!!]  Web config file" in out
    assert "web.yml:1: nonsense: unknown key" in out

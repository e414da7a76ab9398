import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys

import pytest
from support.certificates import Authority
from support.faulty_server import FaultyServer, page, status
from support.http import free_port, get
from support.programs import VITALS, Exporter
from support.waiting import wait_for
from vllm_vitals import __version__
from vllm_vitals.demo.scenes import SCENES
from vllm_vitals.settings.config import OPTIONS

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
        (
            ["up", "--demo", "--engine", "http://a:1"],
            "--engine: expected none, found http://a:1: the demo watches simulated",
        ),
        (["demo", "--engine", "http://a:1"], "--engine: expected none, found http://a:1"),
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
    assert err.count("\n") == 1, "one line"


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
    env = {"PATH": os.environ["PATH"], "VLLM_VITALS_LISTN": "x"}
    program = run_program(
        VITALS, "exporter", "--listen", f"127.0.0.1:{free_port()}", "--gpus", "off", "--host", "off", env=env
    )
    wait_for(lambda: "VLLM_VITALS_LISTN is not known, did you mean VLLM_VITALS_LISTEN?" in program.output, "it")
    wait_for(lambda: "live page" in program.output, "the end of the start: from then on Ctrl-C ends it in order")
    assert program.interrupt() == 0


@pytest.mark.parametrize("start", [[VITALS], [sys.executable, "-m", "vllm_vitals"]])
def test_it_starts_as_a_command_and_as_a_module(start, tmp_path):
    done = subprocess.run([*start, "version"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, f"vllm-vitals {__version__}")


# --- where the words go -----------------------------------------------------------------------------------------------

# Every command that ends by itself, --help of a command and of a sub-command, and wrong input.
SHORT = (
    ["--help"], [], ["version"], ["up", "--help"], ["rules", "simulate", "--help"], ["logging-config"],
    ["doctor", "--gpus", "off"], ["rules", "explain"], ["rules", "build", "--print-default"], ["rules", "build"],
    ["audit", "verify", "--help"], ["dashboards", "check"], ["bundle", "init", "a"], ["bundle", "kubernetes", "k"],
)  # fmt: skip
LONG = (["demo", "--base-port", "0", "--gpus", "off"], ["exporter", "--gpus", "off", "--host", "off"],
        ["up", "--demo", "--host", "off", "--no-prometheus"])  # fmt: skip
WRONG = (["exportr"], ["exporter", "--listen", "x"], ["rules", "explain", "No"], ["bundle", "up", "--dir", "none"])


# Buffered is what users have; PYTHONUNBUFFERED fails at another moment, for all commands alike.
both_ways = pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [pytest.param(each, False, id=" ".join(each)) for each in SHORT]
    + [pytest.param(each, True, id=f"{' '.join(each)}, unbuffered") for each in SHORT[::5]],
)


def on(arguments, tmp_path, *, out, err=subprocess.PIPE, unbuffered=False):
    """Run the real command; a None is a pipe whose reader has gone."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if unbuffered:
        env["PYTHONUNBUFFERED"] = "1"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        streams = [writing if stream is None else stream for stream in (out, err)]
        return subprocess.run(
            [VITALS, *arguments],
            stdin=subprocess.DEVNULL, stdout=streams[0], stderr=streams[1], text=True, timeout=60, env=env, cwd=tmp_path
        )  # fmt: skip
    finally:
        os.close(writing)


@both_ways
def test_a_reader_that_has_gone_ends_it_quietly_with_141(arguments, unbuffered, tmp_path):
    done = on(arguments, tmp_path, out=None, unbuffered=unbuffered)
    words = [line for line in done.stderr.splitlines() if " INFO " not in line and " WARNING " not in line]
    assert (done.returncode, words) == (141, [])


@both_ways
def test_a_full_disk_is_one_line_and_exit_code_1(arguments, unbuffered, tmp_path):
    with open("/dev/full", "w") as full:
        done = on(arguments, tmp_path, out=full, unbuffered=unbuffered)
    said = "vllm-vitals: standard output: cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_input_is_code_2_though_nobody_reads_the_error(arguments, tmp_path):
    with open("/dev/full", "w") as full:
        for err in (None, full):
            done = on(arguments, tmp_path, out=subprocess.PIPE, err=err)
            assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("arguments", LONG, ids=" ".join)
def test_what_watches_goes_on_though_nobody_reads_what_it_says(arguments, tmp_path):
    port = free_port()
    reading, writing = os.pipe()
    os.close(reading)
    with (tmp_path / "errors").open("w") as errors:
        command = [VITALS, *arguments, "--listen", f"127.0.0.1:{port}"]
        process = subprocess.Popen(command, stdout=writing, stderr=errors, cwd=tmp_path)
    os.close(writing)
    try:
        wait_for(lambda: get(f"http://127.0.0.1:{port}/readyz").status == 200, "the page", seconds=60)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
    words = [line for line in (tmp_path / "errors").read_text().splitlines() if not re.search(" (INFO|WARNING) ", line)]
    assert words == []


def test_standard_output_that_was_closed_before_the_start_is_told(tmp_path):
    done = subprocess.run(
        f"'{VITALS}' logging-config >&-", shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert (done.returncode, done.stderr) == (
        1, "vllm-vitals: standard output: cannot be written: Bad file descriptor\n",
    )  # fmt: skip


def test_a_character_that_the_terminal_lacks_is_no_crash(tmp_path):
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [VITALS, "rules", "explain", "No\u00e9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, env=env)
    assert (done.returncode, "No\\xe9" in done.stderr) == (2, True)


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


def test_doctor_prints_json_for_scripts_and_bug_reports(doctor):
    """Nothing but one object on stdout: versions, and the same findings with the same exit code."""
    address = f"127.0.0.1:{free_port()}"
    told_code, told = doctor("--engine", f"http://{address}")
    code, out = doctor("--engine", f"http://{address}", "--json")
    report = json.loads(out)
    assert code == told_code == 1
    assert report["versions"] == {
        "vllm-vitals": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    assert all(list(row) == ["status", "what", "found", "advice"] for row in report["findings"])
    by_name = {row["what"]: row for row in report["findings"]}
    assert by_name[f"Engine {address}"]["status"] == "problem"
    assert by_name[f"Engine {address}"]["advice"] == "start the server, or correct the address"
    assert by_name["Python"]["advice"] == ""
    assert [row["what"] for row in report["findings"]] == re.findall(r"(?m)^\[..\]  (.+?)  ", told)


def test_doctor_as_json_has_exit_code_0_where_nothing_is_broken(doctor):
    with FaultyServer(**{"": page(PAGE), "metrics": page(PAGE), "version": page(b'{"version": "0.32.0"}')}) as server:
        code, out = doctor("--engine", server.url, "--json")
    assert (code, {row["status"] for row in json.loads(out)["findings"]} <= {"ok", "note"}) == (0, True)


def test_doctor_as_json_tells_wrong_settings_on_stderr_alone(command):
    code, out, err = command("doctor", "--json", "--engine", "ftp://127.0.0.1")
    assert (code, out) == (2, "")
    assert err.startswith("vllm-vitals: --engine")


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
        (status(500), "the server, or a proxy in front of it, fails: look at its log"),
        (status(404), "unless a proxy in front hides it"),
        (page(b'# HELP a A.\nvllm_vitals_build_info{version="0"} 1\n'), "name vLLM's own address instead"),
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


def test_an_https_address_of_a_server_without_tls_is_to_be_http(doctor):
    with FaultyServer(x=page(PAGE)) as server:
        address = server.url.removeprefix("http://")
        code, out = doctor("--engine", f"https://{address}")
    assert code == 1
    assert f"-> the server speaks no TLS there: write http://{address}\n" in out
    assert "ca_file" not in out


def test_a_certificate_is_told_apart_from_a_missing_one(doctor, tmp_path):
    certificate, key = Authority(tmp_path / "ca").issue("server", "127.0.0.1")
    (tmp_path / "web.yml").write_text(f"tls_server_config: {{cert_file: {certificate}, key_file: {key}}}\n")
    exporter = Exporter("--web.config.file", "web.yml", "--gpus", "off", "--host", "off", log=tmp_path / "exporter.log")
    try:
        wait_for(lambda: "live page" in exporter.output, "the exporter")
        _, out = doctor("--engine", exporter.url.replace("http://", "https://"))
        assert "-> set tls.ca_file for this engine in vitals.yaml" in out
        _, out = doctor("--engine", exporter.url)
        assert "a server that only speaks TLS" in out or "write https:// for a server that speaks TLS" in out
    finally:
        exporter.stop()


@pytest.mark.parametrize(
    ("reason", "detail", "settings", "words"),
    [
        ("tls", "[SSL: CERTIFICATE_VERIFY_FAILED] ...: Hostname mismatch, ...", {}, "tls.server_name"),
        ("tls", "[SSL: CERTIFICATE_VERIFY_FAILED] ...: certificate has expired", {}, "renew the server's certificate"),
        ("tls", "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] ...", {}, "tls.cert_file and tls.key_file"),
        ("tls", "[SSL: SOMETHING_NEW]", {}, "openssl s_client -connect a:1"),
        ("closed", "", {}, "a port that speaks no TLS"),
        ("protocol", "", {}, "correct the port"),
        ("unauthorized", "HTTP 401", {"bearer_token_env": "X"}, "refuses the credentials"),
        ("http_status", "HTTP 404", {"metrics_path": "/x"}, "metrics_path"),
    ],
)
def test_advice_fits_what_the_settings_say_already(reason, detail, settings, words):
    from vllm_vitals.cli.doctor import _fetch_advice
    from vllm_vitals.exporter.engines.page_client import FetchError
    from vllm_vitals.settings.config import EngineSettings

    assert words in _fetch_advice(FetchError(reason, detail), EngineSettings("https://a:1", **settings), "/metrics")


def test_an_address_of_another_machine_is_no_exporter_of_ours(command):
    _, out, _ = command("doctor", "--gpus", "off", "--host", "off", "--listen", "192.0.2.1:9836")
    assert "-> name an address of this machine with --listen" in out


def test_every_reason_has_advice():
    from vllm_vitals.vocabulary.reasons import DRIVER, FETCH

    assert {code for code, reason in FETCH.items() if not reason.advice} == {"removed", "pending"}
    assert {code for code, reason in DRIVER.items() if not reason.advice} == {"starting", "off"}


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

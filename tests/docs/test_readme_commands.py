"""README's blocks, run one by one as a reader would: in a fresh clone, and in an empty folder with the wheel."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from support.http import free_port, get
from support.plain_install import copy_of_the_tree
from support.programs import Program
from support.traced_vllm import MIDDLEWARE
from support.waiting import wait_for

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.waits


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path = ROOT / "README.md") -> list[Block]:
    found = re.findall(r"(?ms)^( *)```(\w*)\n(.*?)^ *```$", page.read_text())
    return [Block(language, re.sub(f"(?m)^{indent}", "", text)) for indent, language, text in found]


def block(beginning: str) -> str:
    """Return the text of the only block that has a line that begins so."""
    (found,) = [one.text for one in blocks() if re.search(f"(?m)^{re.escape(beginning)}", one.text)]
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What git would give to somebody who clones, and what is about to be added."""
    return copy_of_the_tree(tmp_path_factory.mktemp("clone") / "vllm-vitals")


@pytest.fixture(params=["in the clone", "in an empty folder"])
def place(request, tmp_path) -> Path:
    return request.getfixturevalue("clone") if request.param == "in the clone" else tmp_path


@pytest.fixture
def environment(plain_install, tmp_path) -> dict[str, str]:
    """A new user's: an own HOME, no variable of ours but a free port, the command on PATH."""
    home = tmp_path / "home"
    home.mkdir()
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "OTEL_", "XDG_", "COMPOSE_", "DOCKER_"))}
    path = f"{plain_install.parent}:{os.environ['PATH']}"
    return keep | {"HOME": str(home), "PATH": path, "VLLM_VITALS_LISTEN": f"127.0.0.1:{free_port()}"}


@pytest.fixture
def start(tmp_path):
    """Start a command line in a folder; it is interrupted in the end, and must then end well."""
    started: list[Program] = []

    def start(command: str, environment: dict[str, str], folder: Path) -> Program:
        program = Program(["sh", "-c", f"exec {command}"], tmp_path / f"log{len(started)}", environment, cwd=folder)
        started.append(program)
        return program

    yield start
    for program in started:
        program.stop()


def run(script: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def serves(program: Program, environment: dict[str, str]) -> str:
    """Return the URL of the live page once everything is up."""

    def is_up() -> bool:
        assert program.process.poll() is None, program.output
        return "Ctrl-C stops everything" in program.output

    wait_for(is_up, "the end of the start", seconds=300)
    url = f"http://{environment['VLLM_VITALS_LISTEN']}"
    assert get(f"{url}/").status == 200
    assert get(f"{url}/metrics").status == 200
    return url


def test_the_first_command_works_in_a_fresh_clone(clone, environment, start):
    first, second = block("./vitals up").splitlines()
    command = first.partition("#")[0]
    program = start(command, environment | {"PYTHON": sys.executable}, clone)
    serves(program, environment)
    assert program.interrupt() == 0, program.output
    assert "Traceback" not in program.output
    assert f"exec {second.partition('#')[0].strip()}" in (ROOT / ".ci/run").read_text(), "the second one runs this test"


def test_the_query_finds_joules_per_token_in_the_prometheus_that_up_starts(environment, start, tmp_path):
    program = start("vllm-vitals up --demo", environment, tmp_path)
    serves(program, environment)
    prometheus = re.search(r"(?m)^prometheus +(http://\S+)/$", program.output)[1]

    def value() -> float:
        found = get(f"{prometheus}/api/v1/query?query={quote(block('sum by (server) (group by'))}").json["data"][
            "result"
        ]
        return float(found[0]["value"][1])

    assert 0.01 < wait_for(value, "joules per token", seconds=60, pause=1.0) < 100
    assert program.interrupt() == 0, program.output


def test_prometheus_takes_the_scrape_configuration(tmp_path):
    (tmp_path / "prometheus.yml").write_text(block("scrape_configs:"))
    subprocess.run(["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, check=True)


def test_the_flag_and_the_variable_of_the_plugin_are_those_of_the_tests_with_a_real_vllm():
    text = block("vllm serve")
    assert f"--middleware {MIDDLEWARE}\n" in text
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in (ROOT / "tests/end_to_end/test_tracing.py").read_text()
    assert "export OTEL_EXPORTER_OTLP_ENDPOINT=http://" in text


def test_the_rules_are_built_and_tested(place, environment):
    done = run(block("vllm-vitals rules build --print-default"), environment, place)
    assert done.returncode == 0, done.stderr
    subprocess.run("promtool check rules rules/*.rules.yml", shell=True, cwd=place, check=True)


def test_the_bundle_is_written_and_without_docker_one_line_says_so(place, environment):
    text = block("vllm-vitals bundle init")
    folder = re.search(r"bundle init (\S+)", text)[1]
    done = run(text, environment | {"DOCKER_HOST": "unix:///nowhere/docker.sock"}, place)
    assert done.returncode != 0
    assert "Docker" in done.stderr + done.stdout
    assert (place / folder / "compose.yaml").is_file()
    assert run(f"vllm-vitals bundle check --dir {folder}", environment, place).returncode in {0, 1}


def test_a_wrong_setting_gives_the_line_that_readme_shows(place, environment, tmp_path):
    (tmp_path / "vitals.yaml").write_text("log_level: info\ngpus:\n  intervall: 1s\n")
    done = run("cd '" + str(tmp_path) + "' && vllm-vitals exporter", environment, place)
    assert (done.returncode, done.stderr) == (2, block("vllm-vitals: vitals.yaml:3"))


CHECKED: dict[str, Callable[..., None] | None] = {
    "./vitals up": test_the_first_command_works_in_a_fresh_clone,
    "sum by (server)": test_the_query_finds_joules_per_token_in_the_prometheus_that_up_starts,
    "scrape_configs:": test_prometheus_takes_the_scrape_configuration,
    "export OTEL_EXPORTER": test_the_flag_and_the_variable_of_the_plugin_are_those_of_the_tests_with_a_real_vllm,
    "POST /v1/chat/completions": None,  # a picture of spans
    "vllm-vitals rules build": test_the_rules_are_built_and_tested,
    "vllm-vitals bundle init": test_the_bundle_is_written_and_without_docker_one_line_says_so,
    "vllm-vitals: vitals.yaml": test_a_wrong_setting_gives_the_line_that_readme_shows,
}


def test_every_block_is_run():
    unknown = [one.text for one in blocks() if not one.text.startswith(tuple(CHECKED))]
    assert not unknown, "a test of its own, please"

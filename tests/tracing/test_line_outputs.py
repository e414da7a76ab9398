"""The lines of `export: process` come out as the parent would have written them, whoever does so."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_vitals.tracing.logs.line_outputs import outputs_of

NAME = "vllm_vitals.request"

# A parent that configures logging, reports a request by a child, and waits until the child confirmed it.
PROGRAM = """
import logging, logging.config, os, sys, time
from support.seen_requests import sampled
from vllm_vitals.tracing.counters import Counters
from vllm_vitals.tracing.audit.hashing import Hasher
from vllm_vitals.tracing.logs.line_outputs import outputs_of
from vllm_vitals.tracing.logs.logging_config import dict_config
from vllm_vitals.tracing.report.process_reporter import ProcessReporter
from vllm_vitals.tracing.report.reporter import Reporting
from vllm_vitals.tracing.request.sampling import Sampler
from vllm_vitals.settings.tracing import SamplingSettings, TracingSettings
{setup}
reporting = Reporting(TracingSettings(), Hasher(b"k" * 32), None, {{}}, ("tiny",), 0)
reporter = ProcessReporter(reporting, Counters(), Sampler(SamplingSettings(), {{}}))
def report(number):
    reporter.request(*sampled(number, user_agent="caf\\u00e9"))
    reporter.flush()
    while reporter.waiting or not reporter.child_pid:
        reporter.idle()
        time.sleep(0.01)
report(1)
{then}
reporter.close(time.monotonic() + 5)
print(os.getpid(), file=sys.stderr)
"""


def run(tmp_path, setup="", then=""):
    """Return what came on stdout and stderr, and the parent's process id."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(setup=setup, then=then))
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin", "OTEL_SERVICE_NAME": "shop"}
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, check=True, timeout=60, env=environment, cwd=tmp_path
    )
    *errors, pid = done.stderr.splitlines()
    return done.stdout.splitlines(), errors, int(pid)


def test_by_default_the_child_writes_them_to_stdout(tmp_path):
    lines, errors, pid = run(tmp_path, then=f"print(outputs_of({NAME!r}).direct is not None, file=sys.stderr)")
    (line,) = map(json.loads, lines)
    assert errors == ["True"], "else the parent writes them"
    assert (line["request_id"], line["process.pid"], line["process.name"]) == ("r1", pid, "MainProcess")
    assert (line["service.name"], line["log.logger"], line["log.level"]) == ("shop", NAME, "info")


def test_as_logging_config_says_names_and_redaction_included(tmp_path):
    setup = "logging.config.dictConfig(dict_config('flat', 'mine', redact_patterns={'id': 'r[0-9]'}))"
    lines, errors, _ = run(tmp_path, setup, "logging.getLogger('vllm_vitals.request').setLevel(logging.ERROR)")
    (line,) = map(json.loads, lines)
    assert not errors
    assert (line["service_name"], line["log_level"]) == ("mine", "info")


def test_a_level_keeps_them_back(tmp_path):
    setup = "logging.getLogger('vllm_vitals').setLevel(logging.WARNING)"
    assert run(tmp_path, setup)[:2] == ([], [])


@pytest.mark.parametrize(
    ("setup", "first"),
    [
        (
            "logging.basicConfig(stream=sys.stdout, format='mine %(message)s', level=20)",
            "mine POST /v1/completions 200",
        ),
        (
            "logging.basicConfig(filename='lines.txt', format='%(process)d %(message)s', level=20)",
            "{pid} POST /v1/comp",
        ),
    ],
)
def test_what_another_process_cannot_do_the_parent_does(tmp_path, setup, first):
    lines, errors, pid = run(tmp_path, setup)
    file = tmp_path / "lines.txt"
    (line,) = file.read_text().splitlines() if file.exists() else lines
    assert line.startswith(first.format(pid=pid))
    assert not errors


def test_what_is_changed_while_the_child_lives_counts_from_then_on(tmp_path):
    then = (
        "handler = logging.FileHandler('lines.txt')\n"
        "logging.getLogger('vllm_vitals').handlers[:] = [handler]\n"
        "reporter.idle()\n"
        "report(2)"
    )
    lines, _, _ = run(tmp_path, then=then)
    assert [json.loads(line)["request_id"] for line in lines] == ["r1"]
    assert (tmp_path / "lines.txt").read_text().startswith("POST /v1/completions 200")


def test_the_childs_own_warnings_come_out_there_too(tmp_path):
    setup = "os.environ['OTEL_EXPORTER_OTLP_ENDPOINT'] = 'http://127.0.0.1:9'"
    export = (
        "reporting = Reporting(TracingSettings(), Hasher(b'k' * 32), otlp_settings(os.environ), {}, ('tiny',), 0)\n"
        "reporter.close(time.monotonic() + 5)\n"
        "reporter = ProcessReporter(reporting, Counters(), Sampler(SamplingSettings(), {}))\n"
        "report(2)"
    )
    setup += "\nfrom vllm_vitals.tracing.spans.otlp_settings import otlp_settings"
    lines, errors, pid = run(tmp_path, setup, export)
    found = [json.loads(line) for line in lines]
    (warning,) = [line for line in found if line["log.level"] == "warning"]
    assert "does not take spans" in warning["message"]
    assert warning["process.pid"] == pid
    assert not errors


def test_a_disabled_logger_and_filters_are_the_parents_matter():
    logger = logging.getLogger(f"{NAME}.of_this_test")
    logger.addFilter(lambda record: True)
    assert outputs_of(logger.name).direct is None

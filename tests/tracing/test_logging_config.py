import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import vllm_vitals
from vllm_vitals.settings.scalars import ConfigError
from vllm_vitals.tracing.logs.logging_config import dict_config

LINES = """
import logging, sys
for name in ("vllm.engine", "uvicorn.error", "uvicorn.access", "vllm_vitals.request", "some.library"):
    logging.getLogger(name).info("info of %s", name)
    logging.getLogger(name).error("error of %s to bob@example.com", name)
logging.getLogger("uvicorn.access").info(
    '%s - "%s %s HTTP/%s" %d', "10.0.0.5:1", "GET", "/v1/models?key=hush", "1.1", 200
)
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("vllm.core").exception("broken")
"""
IN_OUR_ENVIRONMENT = """
import json, logging.config, os
logging.config.dictConfig(json.load(open(os.environ["VLLM_LOGGING_CONFIG_PATH"])))
"""
IN_VLLM = """
import argparse
from vllm.logger import configure_logging_from_args
configure_logging_from_args(argparse.Namespace())  # as `vllm serve` does with its parsed arguments
"""


def lines_of(python, setup, tmp_path, **options):
    """Return what a process with our configuration writes to stdout, each line parsed."""
    path = tmp_path / "logging.json"
    path.write_text(json.dumps(dict_config(**options)))
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "vllm_vitals").symlink_to(Path(next(iter(vllm_vitals.__path__))).resolve())
    env = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "OTEL_"))}
    env |= {"VLLM_LOGGING_CONFIG_PATH": str(path), "PYTHONPATH": str(packages), "VLLM_PLUGINS": ""}
    done = subprocess.run([python, "-c", setup + LINES], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("where", ["our environment", "vLLM's own set-up"])
def test_every_logger_writes_json_to_stdout(where, tmp_path, request):
    if where == "our environment":
        lines = lines_of(sys.executable, IN_OUR_ENVIRONMENT, tmp_path, service_name="chat")
    else:
        lines = lines_of(request.getfixturevalue("vllm_python"), IN_VLLM, tmp_path, service_name="chat")
    by_logger: dict[str, list[str]] = {}
    for line in lines:
        by_logger.setdefault(line["log.logger"], []).append(line["log.level"])
        assert line["service.name"] == "chat"
        assert line["@timestamp"].endswith("Z")
    assert by_logger["vllm.engine"] == ["info", "error"]
    assert by_logger["uvicorn.error"] == ["info", "error"]
    assert by_logger["uvicorn.access"] == ["info", "error", "info"]
    assert by_logger["vllm_vitals.request"] == ["info", "error"]
    assert by_logger["some.library"] == ["error"], "root logs from WARNING on"
    (broken,) = [line for line in lines if line["log.logger"] == "vllm.core"]
    assert broken["error.type"] == "ZeroDivisionError"
    assert "hush" not in json.dumps(lines)


def test_flat_names_and_redaction_reach_the_process_that_logs(tmp_path):
    options = {"names": "flat", "redact": ["email"], "redact_patterns": {"word": "error"}, "level": "warning"}
    lines = lines_of(sys.executable, IN_OUR_ENVIRONMENT, tmp_path, **options)
    assert {line["log_level"] for line in lines} == {"[word]"}
    assert lines[0]["message"] == "[word] of vllm.engine to [email]"


def test_it_holds_nothing_that_json_cannot():
    config = dict_config(names="flat", service_name="x", redact=("card", "email"), redact_patterns={"a": "b"})
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": "LOUD"}, "found 'LOUD'"),
        ({"redact": ["name"]}, "found 'name'"),
        ({"redact_patterns": {"x": "["}}, "x"),
    ],
)
def test_wrong_input_is_said_before_vllm_starts(options, words):
    with pytest.raises(ConfigError, match=words):
        dict_config(**options)

"""The doctor in a real vLLM's environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.http import free_port
from support.otlp_receiver import OtlpReceiver
from support.programs import VITALS
from support.traced_vllm import MIDDLEWARE

ROOT = Path(__file__).parents[2]


def doctor(python, **environment):
    """Return exit code and output of the doctor for a vLLM's environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "OTEL_"))}
    listen = f"127.0.0.1:{free_port()}"
    command = [VITALS, "doctor", "--gpus", "off", "--listen", listen, "--engine-env", python]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout


def test_the_plugins_environment_is_found_in_order_with_the_flags_to_add(plugin_python):
    with OtlpReceiver() as receiver:
        code, text = doctor(plugin_python, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc_url)
    assert code == 0, text
    assert re.search(r"\[ok\]  Plugin +vllm-vitals .*vLLM loads it by itself", text)
    assert re.search(r"\[ok\]  Hooks +all 6 fit this vLLM", text)
    assert re.search(r"\[ok\]  Spans +grpc to .*which listens", text)
    assert f"--middleware {MIDDLEWARE}" in text
    assert f"--otlp-traces-endpoint {receiver.grpc_url}" in text


def test_a_vllm_without_the_plugin_gets_the_command_that_installs_it(vllm_python):
    code, text = doctor(vllm_python)
    assert code == 1
    assert f"-> {vllm_python} -m pip install '{ROOT}[tracing]'" in text  # where our own .venv has it from


@pytest.mark.parametrize(
    ("python", "words"),
    [("/nowhere/python", "no such program"), (sys.executable, "vLLM +not installed")],
)
def test_an_environment_that_is_none_is_told(python, words):
    code, text = doctor(python)
    assert code == 1
    assert re.search(words, text)


def test_what_keeps_the_plugin_off_is_told(plugin_python):
    endpoint = f"http://127.0.0.1:{free_port()}"
    code, text = doctor(plugin_python, VLLM_PLUGINS="other", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert code == 1
    assert re.search(r"\[--\]  Tracing +off: VLLM_PLUGINS is 'other'", text)
    assert re.search(r"\[!!\]  Spans .*does not answer", text)


def test_wrong_settings_are_told_with_their_place(plugin_python, tmp_path):
    path = tmp_path / "vitals.yaml"
    path.write_text("tracing:\n  samplng: {}\n")
    code, text = doctor(plugin_python, VLLM_VITALS_CONFIG=str(path))
    assert code == 1
    assert f"{path}:2: tracing.samplng: unknown key, did you mean 'sampling'?" in text

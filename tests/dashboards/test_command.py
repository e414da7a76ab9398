"""`vllm-vitals dashboards build` and `check`."""

import json
import subprocess
import sys

import pytest
from support.http import free_port
from vllm_vitals.dashboards.queries import queries
from vllm_vitals.settings.installation import install_command


@pytest.mark.parametrize("name", ["build", "check", "push"])
def test_help_has_examples(command, name):
    code, out, _ = command("dashboards", name, "--help")
    assert code == 0
    assert f"\n  vllm-vitals dashboards {name}" in out


def test_without_a_command_the_usage_comes_with_code_2(command):
    code, _, err = command("dashboards")
    assert code == 2
    assert "the following arguments are required: COMMAND" in err


def test_build_writes_what_is_committed(command, made, tmp_path):
    code, out, _ = command("dashboards", "build", "--out", tmp_path / "made")
    assert (code, out) == (0, f"{tmp_path}/made: 7 dashboards\n")
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "made").glob("*.json")}
    assert found == made


def test_build_for_import_leaves_the_checkout_alone(command, tmp_path):
    code, out, _ = command("dashboards", "build", "--for-import", tmp_path / "import")
    assert (code, out) == (0, f"{tmp_path}/import: 7 dashboards\n")
    assert json.loads((tmp_path / "import" / "gpu.json").read_text())["__inputs"][0]["name"] == "DS_PROMETHEUS"


def test_check_is_content_with_what_is_committed(command):
    code, out, _ = command("dashboards", "check")
    assert code == 0
    assert out.startswith("sound: 7 dashboards, ")


def test_check_finds_files_that_differ(command, tmp_path, sla_file):
    folder = tmp_path / "json"
    assert command("dashboards", "build", "--out", folder)[0] == 0
    code, out, _ = command("dashboards", "check", "--sla", sla_file("99% under 3s"), "--out", folder)
    assert code == 1
    assert f"{folder}/overview.json: differs from what the code makes; dashboards build\n" in out


def test_an_sla_that_is_wrong_is_wrong_input(command, tmp_path):
    path = tmp_path / "sla.yaml"
    path.write_text("services: []\n")
    code, _, err = command("dashboards", "build", "--sla", path, "--out", tmp_path)
    assert code == 2
    assert "expected one service or more" in err


def test_without_grafanalib_the_message_says_what_to_install():
    script = (
        "import sys; sys.modules['grafanalib'] = None\n"
        "from vllm_vitals.cli.main import main\n"
        "sys.exit(main(['dashboards', 'check']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    advice = f"expected grafanalib, found none; {install_command('dashboards')}"
    assert done.stderr == f"vllm-vitals: dashboards: {advice}\n"


def test_the_command_line_does_not_load_grafanalib():
    script = "import sys, vllm_vitals.cli.main, vllm_vitals.dashboards.command; sys.exit('grafanalib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_check_against_no_prometheus_is_wrong_input(command):
    url = f"http://127.0.0.1:{free_port()}"
    code, _, err = command("dashboards", "check", "--prometheus", url)
    assert code == 2
    assert f"expected a Prometheus at {url}, found none" in err


@pytest.mark.parametrize("prometheus_binaries", ["2", "3"], indirect=True)
def test_a_real_prometheus_takes_every_query_and_check_lists_what_is_empty(
    command, run_program, prometheus_binaries, made, tmp_path
):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: itself, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    program = run_program(
        prometheus_binaries / "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    program.ready(f"{url}/-/ready")
    code, out, _ = command("dashboards", "check", "--prometheus", url)
    assert code == 0, out
    promql = [query for data in made.values() for query in queries(data) if query.source == "prometheus"]
    (counts,) = [line for line in out.splitlines() if line.startswith(f"{url}: ")]
    assert counts.startswith(f"{url}: of {len(promql)} queries ")
    assert " failed" not in counts
    assert "vitals-engine: Acceptance rate: A: nothing, needs --speculative-config: " in out


@pytest.mark.parametrize("text", ["soon", "0s", "-1"])
def test_a_timeout_that_is_none_is_wrong_input(command, text):
    code, _, err = command("dashboards", "check", "--timeout", text)
    assert code == 2
    assert "--timeout: " in err

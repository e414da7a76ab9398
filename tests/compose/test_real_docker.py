"""The shipped compose file on a real Docker Engine.

Real: Docker, Compose, Prometheus, Alertmanager, node_exporter (Debian's builds), the exporter's image as the shipped
Dockerfile makes it, the demo. A stand-in that only checks what it is given: Grafana. Not as shipped: images, networks.
"""

import json
import os
import signal

import pytest
from support.waiting import wait_for

pytestmark = pytest.mark.skipif(
    "VITALS_DOCKER" not in os.environ, reason="minutes with a Docker Engine of its own: VITALS_DOCKER=1 runs it"
)
KILLED = 128 + signal.SIGKILL  # what Docker does where SIGTERM was not heard
SERVICES = ["alertmanager", "demo", "exporter", "grafana", "node_exporter", "prometheus"]


@pytest.fixture
def bundle(running_bundle):
    assert running_bundle.started == 0, running_bundle.output
    return running_bundle


def query(bundle, expression: str) -> list[dict]:
    answer = json.loads(bundle.get(f"http://prometheus:9090/api/v1/query?query={expression}"))
    return answer["data"]["result"]


def states(bundle) -> dict[str, str]:
    lines = bundle.compose("ps", "--all", "--format", "json").splitlines()
    return {one["Service"]: one["Health"] or f"{one['State']} {one['ExitCode']}" for one in map(json.loads, lines)}


def test_up_waits_until_all_is_healthy_and_says_where_it_is(bundle):
    assert {name: states(bundle)[name] for name in SERVICES} == dict.fromkeys(SERVICES, "healthy")
    assert states(bundle)["secrets"] == "exited 0"
    assert "http://127.0.0.1:3000/" in bundle.output
    assert "secrets/grafana_admin_password" in bundle.output
    for service in SERVICES:
        assert f"{service:<20} healthy" in bundle.output


def test_no_output_of_compose_and_no_environment_holds_a_secret(bundle):
    secrets = [path.read_text() for path in (bundle.folder / "secrets").iterdir() if path.is_file()]
    shown = bundle.output + bundle.compose("config") + bundle.docker("inspect", *bundle.compose("ps", "-aq").split())
    assert [secret for secret in secrets if secret and secret in shown] == []


def test_prometheus_scrapes_the_exporter_and_everything_else(bundle):
    jobs = {"vllm-vitals", "vllm-vitals-requests", "node", "prometheus", "alertmanager"}
    wait_for(lambda: {one["metric"]["job"] for one in query(bundle, "up==1")} == jobs, f"targets {jobs}", 60, pause=1)
    assert query(bundle, "vllm_vitals_server_up")


def test_a_scene_of_the_demo_becomes_an_alert_at_the_webhook(bundle):
    def told() -> set[str]:
        lines = [
            line for line in bundle.compose("logs", "--no-log-prefix", "webhook").splitlines() if line.startswith("{")
        ]
        return {alert["labels"]["alertname"] for line in lines for alert in json.loads(line)["alerts"]}

    wait_for(lambda: told() & {"GPUXidFatal", "GPULost", "VLLMServerDown"}, "a page", 180, pause=2)


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_comes_back(bundle, service):
    container = bundle.compose("ps", "-q", service).strip()
    before = json.loads(bundle.docker("inspect", container))[0]
    bundle.docker("exec", container, "true", check=False)
    os.kill(before["State"]["Pid"], signal.SIGKILL)

    def back() -> bool:
        now = json.loads(bundle.docker("inspect", container))[0]
        return (
            now["RestartCount"] > before["RestartCount"] and now["State"].get("Health", {}).get("Status") == "healthy"
        )

    wait_for(back, f"{service} again", 60, pause=0.5)


def test_every_service_ends_by_itself_when_asked_to(bundle):
    bundle.compose("stop")
    lines = bundle.compose("ps", "--all", "--format", "json").splitlines()
    ends = {one["Service"]: one["ExitCode"] for one in map(json.loads, lines)}
    assert {name: code for name, code in ends.items() if code == KILLED} == {}
    code, output = bundle.command("up", "--timeout", "2m")
    assert code == 0, output


def test_down_and_up_keep_the_data(bundle):
    wait_for(lambda: query(bundle, "vllm_vitals_build_info"), "a sample", 60, pause=1)
    begin = float(query(bundle, "prometheus_tsdb_lowest_timestamp_seconds")[0]["value"][1])
    secret = (bundle.folder / "secrets/grafana_admin_password").read_text()
    assert bundle.command("down")[0] == 0
    code, output = bundle.command("up", "--timeout", "2m")
    assert code == 0, output
    wait_for(lambda: query(bundle, "prometheus_tsdb_lowest_timestamp_seconds"), "Prometheus", 60, pause=1)
    assert float(query(bundle, "prometheus_tsdb_lowest_timestamp_seconds")[0]["value"][1]) <= begin
    assert (bundle.folder / "secrets/grafana_admin_password").read_text() == secret


def test_status_and_logs_tell_of_the_running_bundle(bundle):
    code, output = bundle.command("status")
    assert code == 0, output
    assert "[ok]  prometheus           healthy" in output
    code, output = bundle.command("logs", "--tail", "5", "grafana")
    assert code == 0
    assert "stand-in for grafana" in output


def test_a_broken_configuration_ends_with_1_and_says_why(bundle):
    config = bundle.folder / "prometheus/prometheus.yml"
    good = config.read_text()
    config.write_text(good.replace("scrape_interval: 15s", "scrape_intervall: 15s"))
    try:
        bundle.compose("rm", "--stop", "--force", "prometheus")
        code, output = bundle.command("up", "--timeout", "90s")
        assert code == 1
        assert "scrape_intervall" in output
        assert "bundle logs --dir" in output
    finally:
        config.write_text(good)
        bundle.compose("rm", "--stop", "--force", "prometheus")
    code, output = bundle.command("up", "--timeout", "2m")
    assert code == 0, output

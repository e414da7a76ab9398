"""Alertmanager's generated configuration: taken by amtool, routed as the SLA says, secrets left in their files."""

import re
import subprocess

import pytest
import yaml
from vllm_vitals.alerts.alert_names import ALERTS
from vllm_vitals.alerts.alertmanager import alertmanager_yaml
from vllm_vitals.alerts.sla_file import load

RECEIVERS = """\
services:
  - {name: a, selector: {job: x}, by: [model_name, tenant], objectives: {availability: 99.9%}}
receivers:
  page: {type: pagerduty, key_file: /run/pagerduty}
  ticket: {type: slack, url_file: /run/slack, channel: "#vllm"}
  hook: {type: webhook, url: "http://127.0.0.1:9/hook"}
  secret: {type: webhook, url_file: /run/hook}
  mail: {type: email, to: a@b.org, sender: c@b.org, smarthost: "m:25", username: u, password_file: /run/mail}
"""


def config(sla):
    return yaml.safe_load(alertmanager_yaml(sla))


@pytest.fixture
def written(tmp_path):
    def written(sla):
        path = tmp_path / "alertmanager.yml"
        path.write_text(alertmanager_yaml(sla))
        return path

    return written


def amtool(*arguments) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["amtool", *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("which", ["default", "everything"])
def test_amtool_takes_it(which, everything, written):
    done = amtool("check-config", written(load() if which == "default" else everything))
    assert done.returncode == 0, done.stderr


def test_every_type_of_receiver_reads_its_secret_from_a_file(sla_of):
    found = {receiver["name"]: receiver for receiver in config(sla_of(RECEIVERS))["receivers"]}
    assert found["page"]["pagerduty_configs"] == [{"routing_key_file": "/run/pagerduty"}]
    assert found["ticket"]["slack_configs"][0]["api_url_file"] == "/run/slack"
    assert found["hook"]["webhook_configs"] == [{"send_resolved": True, "url": "http://127.0.0.1:9/hook"}]
    assert found["secret"]["webhook_configs"] == [{"send_resolved": True, "url_file": "/run/hook"}]
    assert found["mail"]["email_configs"][0]["auth_password_file"] == "/run/mail"


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["severity=page"], "page"),
        (["severity=ticket"], "ticket"),
        (["severity=ticket", "receiver=mail"], "mail"),
        (["severity=page", "receiver=mail"], "mail"),
        (["severity=page", "hours=business"], "page"),
        ([], "ticket"),
    ],
)
def test_alerts_go_where_the_sla_says(everything, written, labels, receiver):
    done = amtool("config", "routes", "test", f"--config.file={written(everything)}", *labels)
    assert done.stdout.strip() == receiver, done.stderr


def test_business_hours_mute_pages_of_every_receiver_outside_of_them(everything):
    route = config(everything)["route"]
    for child in route["routes"]:
        (muted,) = child["routes"]
        assert muted["matchers"] == ['severity="page"', 'hours="business"']
        assert muted["mute_time_intervals"] == ["outside-business-hours"]
    (interval,) = config(everything)["time_intervals"]
    nights, weekend = interval["time_intervals"]
    assert nights["times"] == [
        {"start_time": "00:00", "end_time": "09:00"},
        {"start_time": "17:30", "end_time": "24:00"},
    ]
    assert nights["location"] == weekend["location"] == "Europe/Berlin"
    assert weekend["weekdays"] == ["saturday", "sunday"]


def test_a_faster_tier_silences_slower_ones_of_whatever_has_a_budget_of_its_own(sla_of):
    rules = [rule for rule in config(sla_of(RECEIVERS))["inhibit_rules"] if "burn_tier" in rule["source_matchers"][0]]
    assert [rule["target_matchers"] for rule in rules] == [
        ['burn_tier=~"medium|slow|trickle"'],
        ['burn_tier=~"slow|trickle"'],
        ['burn_tier=~"trickle"'],
    ]
    assert {tuple(rule["equal"]) for rule in rules} == {("service", "slo", "model_name", "tenant")}


def test_a_server_that_is_down_does_not_hide_that_what_it_said_before_is_over():
    """Alertmanager sends no resolution of an inhibited alert: a stall that ends in a crash would stay an incident."""
    own = {"VLLMEngineStalled", "VLLMQueueLong", "VLLMKVCacheFull", "VLLMPreemptionsHigh", "VLLMMetricsDark"}
    for rule in config(load())["inhibit_rules"]:
        (source,) = re.findall(r'"(.*)"', rule["source_matchers"][0])
        target = re.findall(r'"(.*)"', rule["target_matchers"][0])[0]
        if re.fullmatch(source, "VLLMServerDown"):
            assert not {name for name in own if re.fullmatch(target, name)}


def test_inhibition_names_only_alerts_that_there_are():
    names = [alert.name for alert in ALERTS]
    patterns = [
        re.fullmatch(r'alertname!?=~?"(.*)"', matcher)
        for rule in config(load())["inhibit_rules"]
        for matcher in (*rule["source_matchers"], *rule["target_matchers"])
    ]
    found = [part for match in patterns if match for part in re.split(r"\|(?![^(]*\))", match[1])]
    assert len(found) > 20
    assert [part for part in found if not any(re.fullmatch(part, name) for name in names)] == []

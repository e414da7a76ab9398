"""The generated unit tests pass with real promtool, and fail where a rule is wrong."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from vllm_vitals.alerts.build import rule_groups
from vllm_vitals.alerts.promtool import run_tests
from vllm_vitals.alerts.rule_tests import test_files as files_of
from vllm_vitals.alerts.rules import Alert
from vllm_vitals.alerts.sla_file import load


def failures(outcomes) -> list[str]:
    return [f"{outcome.name}\n{outcome.failure}" for outcome in outcomes if outcome.failure]


def test_the_tests_of_the_default_pass(tmp_path):
    outcomes = [*run_tests(load(), tmp_path)]
    assert failures(outcomes) == []
    assert sum(outcome.tests for outcome in outcomes) > 70


@pytest.mark.parametrize("prometheus_binaries", ["3"], indirect=True)
def test_a_newer_prometheus_judges_alike(prometheus_binaries, sla_of, tmp_path):
    """One promise of each kind of count, and all limits: 3.x takes a sample less at the left edge of a window."""
    sla = sla_of("{ttft: 99% under 300ms, availability: 99.9%}")
    assert failures(run_tests(sla, tmp_path, str(prometheus_binaries / "promtool"))) == []


def test_so_do_those_of_what_the_default_does_not_use(everything, tmp_path):
    assert failures(run_tests(everything, tmp_path)) == []


@pytest.mark.parametrize("which", ["default", "everything"])
def test_each_alert_is_tested(which, everything):
    sla = load() if which == "default" else everything
    alerts = {
        rule.alert
        for groups in rule_groups(sla).values()
        for group in groups
        for rule in group.rules
        if isinstance(rule, Alert)
    }
    tests = "".join(text for name, text in files_of(sla).items() if name.endswith(".test.yml"))
    assert {name for name in alerts if f'alertname="{name}"' not in tests} == set()


def run(folder, files) -> str:
    """Return what promtool says of the tests, empty when all pass."""
    for name, text in files.items():
        (folder / name).write_text(text)
    tests = [name for name in files if name.endswith(".test.yml")]
    done = subprocess.run(
        ["promtool", "test", "rules", *tests],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"GOGC": "800", **os.environ},  # a third less to do
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


FAST = 'slo:sli_error:ratio1h{slo="availability",service="chat"} > 0.0144'
BURN, FEW, RESTART, IDLE = "an error ratio of", "4 bad among few", "a restart of", "no traffic"


@pytest.mark.parametrize(
    ("right", "wrong", "noticed_by"),
    [
        pytest.param(f"{FAST}\n          and", f"{FAST}\n          or", BURN, id="one window is enough"),
        pytest.param("> 0.0144", "> 0.00144", BURN, id="a threshold too low"),
        pytest.param("> 0.0144", "> 0.144", BURN, id="a threshold too high"),
        pytest.param("ratio5m{", "ratio1h{", BURN, id="no short window"),
        pytest.param(">= 5", ">= 0", FEW, id="no guard"),
        pytest.param(" > 0)", ")", IDLE, id="idle is NaN"),
        pytest.param('status="5xx"', 'status="500"', BURN, id="a status that never comes"),
        pytest.param("increase(http", "delta(http", RESTART, id="a restart counts as negative"),
        pytest.param("burn_tier: fast", "burn_tier: quick", BURN, id="another label"),
    ],
)
def test_a_wrong_rule_fails_the_test_that_is_meant_for_it(sla_of, tmp_path, right, wrong, noticed_by):
    has_to_fail(
        files_of(sla_of("availability: 99.9%")), "chat-availability.test.yml", right, wrong, noticed_by, tmp_path
    )


@pytest.mark.parametrize(
    ("right", "wrong", "noticed_by"),
    [
        pytest.param("ratio1d{", "ratio3d{", "a slow burn", id="another window"),
        pytest.param("> 0.003\n", "> 0.0003\n", "half of the budget", id="a threshold below what is promised"),
    ],
)
def test_a_wrong_rule_over_days_fails_the_test_that_is_meant_for_it(sla_of, tmp_path, right, wrong, noticed_by):
    files = files_of(sla_of("availability: 99.9%"))
    has_to_fail(files, "chat-availability-slow.test.yml", right, wrong, noticed_by, tmp_path)


def has_to_fail(files: dict[str, str], tests_file: str, right: str, wrong: str, noticed_by: str, folder: Path) -> None:
    """Judge wrong rules by the one test that is meant for them."""
    rules, tests = files["chat-availability.rules.yml"], yaml.safe_load(files[tests_file])
    tests["tests"] = [test for test in tests["tests"] if test["name"].startswith(noticed_by)]
    assert len(tests["tests"]) == 1
    assert right in rules
    wrong_rules = {"chat-availability.rules.yml": rules.replace(right, wrong)}
    said = run(folder, {**wrong_rules, "chat-availability.test.yml": yaml.safe_dump(tests, sort_keys=False)})
    assert "got: " in said, "rules that promtool takes, and other values"


@pytest.mark.parametrize("name", ["vllm-limits", "gpus-limits"])
def test_every_limit_and_event_has_to_fire_and_to_clear(tmp_path, name):
    """An alert that never fires, and one that never ends, both fail."""
    files = {file: text for file, text in files_of(load()).items() if file.startswith(name)}
    alerts = files[f"{name}.test.yml"].count("- name: ")
    never = files[f"{name}.rules.yml"].replace("        labels:\n", "        for: 30d\n        labels:\n")
    said = run(tmp_path, {**files, f"{name}.rules.yml": _last_for(never)})
    assert said.count("exp: {} 1E+00") == alerts
    forever = _kept_firing(files[f"{name}.rules.yml"])
    said = run(tmp_path, {**files, f"{name}.rules.yml": forever})
    assert said.count("exp: {} 0E+00") == alerts


def _last_for(rules: str) -> str:
    """Return rules whose alerts wait for 30 days."""
    lines = [line for line in rules.splitlines() if not line.startswith("        for: ") or line.endswith("30d")]
    return "\n".join(lines) + "\n"


def _kept_firing(rules: str) -> str:
    """Return rules whose alerts stay for 30 days."""
    lines = [line for line in rules.splitlines() if not line.startswith("        keep_firing_for: ")]
    return "\n".join(lines).replace("        labels:\n", "        keep_firing_for: 30d\n        labels:\n") + "\n"


def test_the_first_failures_of_a_server_are_counted_although_their_series_is_born_with_them(sla_of, tmp_path):
    text = """\
services:
  - name: chat
    selector: {job: vllm}
    via: engine
    by: []
    objectives: {availability: 99.9%}
"""
    files = files_of(sla_of(text))
    born = """\
rule_files: [chat-availability.rules.yml]
evaluation_interval: 1m
tests:
  - name: 30 failures come with the child that counts them
    interval: 1m
    input_series:
      - {series: 'up{job="vllm",instance="a:1"}', values: 1x40}
      - {series: 'http_requests_total{job="vllm",instance="a:1",method="POST",status="2xx"}', values: 0+60x40}
      - {series: 'http_requests_total{job="vllm",instance="a:1",method="POST",status="5xx"}', values: _x20 30x20}
    promql_expr_test:
      - {expr: sum(round(slo:sli_bad:increase5m)), eval_time: 22m, exp_samples: [{labels: '{}', value: 30}]}
      - {expr: sum(round(slo:sli_bad:increase5m)), eval_time: 30m, exp_samples: [{labels: '{}', value: 0}]}
  - name: the past of a server that Prometheus just found is not a failure now
    interval: 1m
    input_series:
      - {series: 'up{job="vllm",instance="a:1"}', values: _x20 1x20}
      - {series: 'http_requests_total{job="vllm",instance="a:1",method="POST",status="2xx"}', values: _x20 9000+60x20}
      - {series: 'http_requests_total{job="vllm",instance="a:1",method="POST",status="5xx"}', values: _x20 500x20}
    promql_expr_test:
      - {expr: sum(round(slo:sli_bad:increase5m)), eval_time: 23m, exp_samples: [{labels: '{}', value: 0}]}
"""
    assert (
        run(tmp_path, {"chat-availability.rules.yml": files["chat-availability.rules.yml"], "x.test.yml": born}) == ""
    )

"""Generated rules are sound: to our own check, to promtool of both versions, and as committed."""

import subprocess
from pathlib import Path

import pytest
import yaml
from vllm_vitals.alerts.alert_names import ALERTS
from vllm_vitals.alerts.build import GENERATED, drift, generate, rule_groups, write
from vllm_vitals.alerts.check import problems_of, rule_schema
from vllm_vitals.alerts.rules import Alert
from vllm_vitals.alerts.runbooks import runbooks
from vllm_vitals.alerts.sla_file import load
from vllm_vitals.promql.check import problems

RUNBOOKS = Path(__file__).parents[2] / "docs/runbooks"


def rules_of(sla):
    return [rule for groups in rule_groups(sla).values() for group in groups for rule in group.rules]


def alerts_of(sla):
    return [rule for rule in rules_of(sla) if isinstance(rule, Alert)]


@pytest.mark.parametrize(
    ("files", "folder"), [(generate, GENERATED), (runbooks, RUNBOOKS)], ids=["alerts/rules", "docs/runbooks"]
)
def test_the_committed_files_are_what_the_default_sla_makes(files, folder):
    assert drift(files(load()), folder) == [], "vllm-vitals rules build --out alerts/rules --runbooks docs/runbooks"


def test_drift_names_files_that_are_missing_changed_or_too_many(tmp_path):
    files = generate(load())
    write(files, tmp_path)
    assert drift(files, tmp_path) == []
    (tmp_path / "gpus.rules.yml").unlink()
    (tmp_path / "alertmanager.yml").write_text("route: {}\n")
    (tmp_path / "old.rules.yml").write_text("groups: []\n")
    assert drift(files, tmp_path) == ["alertmanager.yml", "gpus.rules.yml", "old.rules.yml"]


def test_every_expression_reads_what_is_there(everything):
    for sla in (load(), everything):
        assert [*problems_of(sla)] == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('slo:sli_error:ratio9m{slo="ttft"} > 1', "slo:sli_error:ratio9m: unknown metric"),
        ('slo:sli_error:ratio1h{slos="ttft"} > 1', "has no label 'slos'"),
        ("rate(vllm:num_preemptions_total[30s]) > 1", "expected 4 scrape intervals"),
    ],
)
def test_the_check_knows_what_rules_record(wrong, said):
    assert said in problems(wrong, rule_schema(load()))[0]


@pytest.mark.parametrize(
    "name", ["slo:sli_total:increase9d", "slo:sli_error:ratio9d", "slo:error_budget_remaining:ratio"]
)
def test_the_check_knows_labels_through_every_recording_that_reads_a_recording(sla_of, name):
    """Nine days are read from three, those from eighteen hours, those from six."""
    text = (
        "window: 90d\nretention: 120d\nservices: [{name: a, selector: {job: x}, objectives: {availability: 99.9%}}]\n"
    )
    assert rule_schema(sla_of(text)).recorded[name] == {"model_name", "slo", "service"}


def test_prometheus_of_both_versions_takes_the_rules(prometheus_binaries, everything, tmp_path):
    for number, sla in enumerate((load(), everything)):
        folder = tmp_path / str(number)
        files = generate(sla)
        write(files, folder)
        names = [name for name in files if name.endswith(".rules.yml")]
        done = subprocess.run(
            [prometheus_binaries / "promtool", "check", "rules", *names], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # promtool warns of rules that are there twice and still ends well
        assert "duplicate" not in (done.stdout + done.stderr).lower()


def test_the_prometheusrule_holds_the_same_groups_under_unique_names():
    files = generate(load())
    manifest = yaml.safe_load(files["prometheusrule.yaml"])
    groups = [
        group for name, text in files.items() if name.endswith(".rules.yml") for group in yaml.safe_load(text)["groups"]
    ]
    assert (manifest["apiVersion"], manifest["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert manifest["spec"]["groups"] == groups
    assert len({group["name"] for group in groups}) == len(groups)


def test_building_twice_gives_the_same_bytes():
    assert generate(load()) == generate(load())


def test_every_alert_that_can_be_made_is_made_and_named(everything):
    made = {alert.alert for sla in (load(), everything) for alert in alerts_of(sla)}
    assert made == {alert.name for alert in ALERTS}


def test_each_alert_says_whom_it_calls_what_is_wrong_and_where_to_read_on(everything):
    for sla in (load(), everything):
        for alert in alerts_of(sla):
            assert alert.labels["severity"] in {"page", "ticket"}
            assert alert.labels["service"]
            assert alert.annotations["summary"]
            assert alert.annotations["description"]
            page = alert.annotations["runbook_url"].removeprefix(sla.runbooks + "/").split("#")[0]
            assert (RUNBOOKS / page).is_file()


def test_four_tiers_of_each_objective_and_only_the_two_fast_ones_page(sla_of):
    alerts = [alert for alert in alerts_of(sla_of("ttft: 99% under 500ms")) if "burn_tier" in alert.labels]
    assert [(alert.labels["burn_tier"], alert.labels["severity"]) for alert in alerts] == [
        ("fast", "page"), ("medium", "page"), ("slow", "ticket"), ("trickle", "ticket"),
    ]  # fmt: skip
    assert [alert.labels["long_window"] for alert in alerts] == ["1h", "6h", "1d", "3d"]


def test_a_ticket_never_pages_and_off_is_recorded_only(sla_of):
    ticket = sla_of("ttft: {promise: 99% under 500ms, severity: ticket}")
    assert {alert.labels["severity"] for alert in alerts_of(ticket) if "burn_tier" in alert.labels} == {"ticket"}
    off = rules_of(sla_of('ttft: {promise: 99% under 500ms, severity: "off"}'))
    assert not [rule for rule in off if isinstance(rule, Alert) and "burn_tier" in rule.labels]
    assert [rule for rule in off if not isinstance(rule, Alert) and rule.record == "slo:error_budget_remaining:ratio"]


def test_goodput_without_the_plugin_says_in_its_name_that_it_is_a_bound():
    names = {rule.labels["slo"] for rule in rules_of(load()) if "slo" in rule.labels}
    assert {"goodput-at-best", "goodput-at-worst"} <= names
    assert "goodput" not in names


def test_goodput_with_the_plugin_is_counted_by_it(everything):
    expressions = [rule.expr for rule in rules_of(everything) if rule.labels.get("slo") == "goodput"]
    assert any("vllm_vitals_requests_good_total" in expression for expression in expressions)
    assert not any("time_to_first_token" in expression for expression in expressions)


def test_availability_counts_5xx_only_and_refused_admissions_once():
    bad = [rule.expr for rule in rules_of(load()) if getattr(rule, "record", "") == "slo:sli_bad:increase5m"]
    (availability,) = [text for text in bad if "http_requests_total" in text]
    assert 'status="5xx"' in availability
    assert "4xx" not in availability
    assert not any("admission_rejections" in text for text in bad)
    (errors,) = [text for text in bad if "request_success_total" in text]
    assert 'finished_reason="error"' in errors


def test_rules_are_evaluated_as_often_as_their_windows_move():
    groups = {group.name: group.interval for some in rule_groups(load()).values() for group in some}
    assert (groups["vllm-ttft-fast"], groups["vllm-ttft-slow"]) == (30, 120)
    # counts over disjoint five minutes; what is left of the budget more often, or it would be gone between two
    assert (groups["vllm-ttft-counts"], groups["vllm-ttft-budget"]) == (300, 120)

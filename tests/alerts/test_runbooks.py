"""Explanations and runbooks: the numbers of the SLA, queries that can be pasted, a page for every alert."""

import re

import pytest
from vllm_vitals.alerts.alert_names import ALERTS
from vllm_vitals.alerts.causes import CAUSES, query_of
from vllm_vitals.alerts.check import rule_schema
from vllm_vitals.alerts.explain import explain
from vllm_vitals.alerts.runbook_texts import RUNBOOKS
from vllm_vitals.alerts.runbooks import runbooks
from vllm_vitals.alerts.sla_file import load
from vllm_vitals.promql.check import problems


def test_each_alert_has_a_page_and_each_cause_is_on_one():
    assert {*RUNBOOKS} == {alert.name for alert in ALERTS}
    assert {cause for runbook in RUNBOOKS.values() for cause in runbook.causes} == {*CAUSES}
    pages = runbooks(load())
    assert {f"{alert.name}.md" for alert in ALERTS} | {"README.md"} == {*pages}
    for alert in ALERTS:
        assert f"({alert.name}.md)" in pages["README.md"]


@pytest.mark.parametrize("which", ["default", "everything"])
def test_each_query_of_a_runbook_reads_what_is_there(which, everything):
    sla = load() if which == "default" else everything
    known = rule_schema(sla)
    for service in sla.services:
        for name, cause in CAUSES.items():
            query = query_of(cause, sla, service)
            assert problems(query, known) == [], name
            assert not re.search(r"[A-Z]{5,}[,}]", query), name


def test_a_page_holds_the_numbers_and_selectors_of_its_sla(sla_of):
    page = runbooks(sla_of("ttft: 97% under 2.5s"))["VLLMTTFTBudgetBurn.md"]
    assert "promises ttft 97% under 2.5s over 30d: of 10,000 events 300 may be bad" in page
    assert "43.2% bad over 1h" in page
    assert 'job="vllm-vitals"' in page
    for heading in ("Meaning", "Impact", "First", "Cause, and what to change"):
        assert f"\n## {heading}\n" in page
    for tier in ("fast", "medium", "slow", "trickle"):  # where runbook_url leads
        assert f"\n### {tier}\n" in page


def test_pages_name_the_settings_of_vllm_that_help():
    text = "".join(runbooks(load()).values())
    for flag in (
        "--enable-prefix-caching", "--max-num-seqs", "--gpu-memory-utilization", "--max-model-len", "--kv-cache-dtype",
        "--max-num-batched-tokens", "--tensor-parallel-size", "--api-server-count",
    ):  # fmt: skip
        assert flag in text
    assert "replicas" in text


def test_an_explanation_says_when_a_total_outage_is_found():
    text = "\n".join(explain("VLLMAvailabilityBudgetBurn", load()))
    assert "promises availability 99.9% over 30d: of 10,000 events 10 may be bad" in text
    assert re.search(
        r"fast +page +more than 1.44% bad over 1h and over 5m .*; a total outage is found after 1.9 min", text
    )
    assert "Silent below 5 bad events in the long window" in text


def test_an_explanation_says_what_is_not_promised(sla_of):
    sla = sla_of("{ttft: 99% under 300ms}")
    assert "Nothing is promised: no service of this SLA has the objective goodput." in [
        *explain("VLLMGoodputBudgetBurn", sla)
    ]
    assert "lies between two of vLLM's buckets, 0.25 s and 0.5 s" in "\n".join(explain("VLLMTTFTBudgetBurn", sla))
    assert any("does not have it" in text for text in explain("GPUTemperatureHigh", sla))


def test_an_explanation_of_a_limit_shows_its_condition():
    text = "\n".join(explain("GPUTemperatureHigh", load()))
    assert 'nvidia_gpu_temperature_celsius{job="vllm-vitals",sensor="gpu"} > 85' in text
    assert "ticket, for 5m without a break. It ends 5m after the condition does." in text


@pytest.mark.parametrize("alert", [alert.name for alert in ALERTS])
def test_every_alert_can_be_explained(alert, everything):
    for sla in (load(), everything):
        assert all(explain(alert, sla))

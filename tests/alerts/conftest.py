from pathlib import Path

import pytest
from vllm_vitals.alerts.sla import Sla
from vllm_vitals.alerts.sla_file import load

# What the default SLA does not use: engines scraped by themselves, the plugin's page, other windows, no model label.
EVERYTHING = """\
window: 28d
services:
  - name: chat
    owner: ml
    selector: {job: vllm, model_name: "~llama.*|qwen"}
    via: engine
    requests_page: on
    traffic: 2 rps
    objectives:
      ttft: 99% under 300ms
      tpot: {promise: 95% under 60ms, severity: ticket, receiver: mail, min_bad_events: 7}
      availability: {promise: 99.5%, by: [], hours: business}
      engine_errors: {promise: 99.9%, severity: "off"}
      goodput: 94%
    limits: {queue_length: at most 3 for 1m as page}
  - name: batch
    selector: {job: vllm-vitals, zone: a}
    by: []
    custom_buckets: on
    objectives:
      e2e: 95% under 17s
      availability: 99.9%
gpus:
  limits: {memory: at most 70 GiB for 5m, power: at most 650 W}
events: {spot_notice: "off"}
receivers:
  page: {type: webhook, url: "http://127.0.0.1:9/hook"}
  ticket: {type: slack, url_file: /run/slack, channel: "#vllm"}
  mail: {type: email, to: a@example.org, sender: b@example.org, smarthost: "mail.example.org:587"}
business_hours: {days: mon-fri, times: "09:00-17:30", timezone: Europe/Berlin}
"""
ONE = """\
services:
  - name: chat
    selector: {job: vllm-vitals}
    objectives:
      %s
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "sla.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def sla_of(write):
    """Return the SLA of a text; one line alone is an objective of the service `chat`."""

    def sla_of(text: str) -> Sla:
        return load(write(text if "\n" in text else ONE % text))

    return sla_of


@pytest.fixture
def everything(sla_of) -> Sla:
    return sla_of(EVERYTHING)

"""How the choices on top of a dashboard reach the queries below."""

import pytest
from vllm_vitals.dashboards.variables import scoped

EVERY = ("job", "instance", "server", "model", "gpu", "service", "slo")
REST = 'instance=~"$instance",server=~"$server"'


@pytest.mark.parametrize(
    ("bare", "wanted"),
    [
        ("vllm:num_requests_running",
         'vllm:num_requests_running{job=~"$job",instance=~"$instance",server=~"$server",model_name=~"$model"}'),
        ('rate(http_requests_total{status="5xx"}[5m])',
         'rate(http_requests_total{job=~"$job",instance=~"$instance",server=~"$server",status="5xx"}[5m])'),
        ("max by (gpu) (nvidia_gpu_power_watts)",
         'max by (gpu) (nvidia_gpu_power_watts{job=~"$job",instance=~"$instance",gpu=~"$gpu"})'),
        ("rate(vllm_vitals_tracing_spans_total[5m])",
         'rate(vllm_vitals_tracing_spans_total{job=~"$job(-requests)?",instance=~"$instance",server=~"$server"}[5m])'),
        ("vllm_vitals_request_queue_seconds_bucket",
         f'vllm_vitals_request_queue_seconds_bucket{{job=~"$job(-requests)?",{REST},model_name=~"$model"}}'),
        ("slo:objective:ratio", 'slo:objective:ratio{service=~"$service",slo=~"$slo"}'),
        ("min(slo:window_seen:ratio)",
         'min(slo:window_seen:ratio{model_name=~"$model",service=~"$service",slo=~"$slo"})'),
        ("up == 0 or vector(0)", 'up{job=~"$job",instance=~"$instance"} == 0 or vector(0)'),
        ('ALERTS{alertstate="firing"}', 'ALERTS{service=~"$service|gpus",alertstate="firing"}'),
        ("time() - vllm_vitals_gpus offset 5m",
         'time() - vllm_vitals_gpus{job=~"$job",instance=~"$instance"} offset 5m'),
        ('label_replace(up, "server", "$1", "up", "up")',
         'label_replace(up{job=~"$job",instance=~"$instance"}, "server", "$1", "up", "up")'),
    ],
)  # fmt: skip
def test_each_selector_gets_the_choices_that_its_labels_allow(context, bare, wanted):
    assert scoped(bare, EVERY, context.known) == wanted


def test_only_choices_that_a_dashboard_offers_are_used(context):
    assert (
        scoped("vllm:num_requests_running", ["server"], context.known) == 'vllm:num_requests_running{server=~"$server"}'
    )
    assert scoped("prometheus_tsdb_head_series", ["server"], context.known) == "prometheus_tsdb_head_series"

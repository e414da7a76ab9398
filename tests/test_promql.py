"""What the checks of PromQL find, and what they let pass."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from vllm_vitals.promql.check import problems, schema, without_macros
from vllm_vitals.vocabulary.engines import ENGINES, OPTIONAL
from vllm_vitals.vocabulary.engines import VALUES as ENGINE_VALUES
from vllm_vitals.vocabulary.ours import OURS, PLUGIN, RENAMES, VALUES

KNOWN = schema(recorded={"slo:sli_error:ratio5m": frozenset({"slo", "service", "model_name"})}, target_labels=["zone"])
TTFT = "vllm:time_to_first_token_seconds"
PAGES = sorted((Path(__file__).parent / "data").glob("vllm-*.prom"))


@pytest.mark.parametrize(
    "expression",
    [
        f'sum by (server) (increase({TTFT}_count[5m])) - sum by (server) (increase({TTFT}_bucket{{le="1.0"}}[5m]))',
        f"histogram_quantile(0.99, sum by (le, model_name) (rate({TTFT}_bucket[5m])))",
        # a series born within the window: its raw value is its increase
        'http_requests_total{status="5xx"} unless http_requests_total{status="5xx"} offset 5m',
        '(http_requests_total unless http_requests_total offset 5m) and on (instance) (up{job="a"} offset 5m == 1)',
        "up * on (server) group_left (engine) group by (server, engine) (vllm:num_requests_running)",
        f'count by (job) ({TTFT}_count) unless count by (job) ({TTFT}_bucket{{le="0.06"}})',
        "rate(vllm:generation_tokens_total[5m]) / (rate(vllm:prompt_tokens_total[5m]) > 0)",
        "sum(rate(vllm:generation_tokens_total[5m])) or vector(0)",
        'slo:sli_error:ratio5m{slo="ttft"} > 0.144 and slo:sli_error:ratio5m{slo="ttft"} > 0.1',
        'absent(up{job="vllm"})',
        'nvidia_gpu_power_watts{kind="instant"} / ignoring (kind) (nvidia_gpu_power_limit_watts{kind="enforced"} > 0)',
        'vllm:num_requests_running{zone="a",server=~"one|two"} > 0',
        "max_over_time(vllm:num_requests_waiting[10m]) > 5 and changes(vllm:num_preemptions_total[10m]) > 0",
        'up == 0 unless on (instance) ALERTS{alertname="X",anything="goes"}',
    ],
)  # fmt: skip
def test_sound_expressions_pass(expression):
    assert problems(expression, KNOWN) == []


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("vllm:num_preemptions", "vllm:num_preemptions: unknown metric, did you mean vllm:num_preemptions_total?"),
        ("rate(vllm:num_requests_running[5m])", "rate(vllm:num_requests_running): is a gauge, not a counter"),
        ("avg_over_time(vllm:generation_tokens_total[5m])", "is a counter, expected rate or increase"),
        ("deriv(vllm:generation_tokens_total[5m])", "is a counter, expected rate or increase"),
        ("vllm:generation_tokens_total > 5", "the raw value of a counter says nothing"),
        (f"sum(rate({TTFT}[5m]))", f"{TTFT}: a histogram has _bucket, _sum and _count"),
        (f"sum(rate({TTFT}_bucket[5m]))", "sum without le: adds up the buckets of a histogram"),
        (f'rate({TTFT}_bucket{{le="1"}}[5m])', "le is written '1.0', found '1'"),
        (f"histogram_quantile(0.9, rate({TTFT}_sum[5m]))", "histogram_quantile without le"),
        ('rate(http_requests_total{status="500"}[5m])', "status is never '500'; it is 1xx, 2xx, 3xx, 4xx, 5xx"),
        ('rate(vllm:request_success_total{finish_reason="stop"}[5m])', "did you mean 'finished_reason'?"),
        ('rate(vllm:request_success_total{finished_reason=~"stop|lenght"}[5m])', "did you mean 'length'?"),
        ('nvidia_gpu_throttle_active{reason="thermal"}', "reason is never 'thermal', did you mean"),
        ("rate(vllm:generation_tokens_total[30s])", "expected 4 scrape intervals or more (60s)"),
        ("rate(vllm:prompt_tokens_total[5m]) / rate(vllm:generation_tokens_total[5m])", "division that is not guarded"),
        ("rate(sum(vllm:prompt_tokens_total)[5m:1m])", "rate() of a subquery: counter resets are lost"),
        ("sum by (modelname) (vllm:num_requests_running)", "sum by (modelname): no such label"),
        ("vllm:num_requests_running * on (gpu) nvidia_gpu_busy_seconds_total", "* on (gpu): not on the left side"),
        ("vllm:num_requests_running > vllm:num_requests_waiting_by_reason", "only one has reason"),
        ("up * on (instance) group_left (model) vllm:num_requests_running", "model is not there to be taken"),
        ("mad_over_time(vllm:num_requests_running[5m])", "mad_over_time(): not in Prometheus 2.42"),
        ('slo:sli_error:ratio5m{sloo="ttft"}', "has no label 'sloo', did you mean 'slo'?"),
        ("slo:sli_error:ratio9m", "unknown metric, did you mean slo:sli_error:ratio5m?"),
        ('{job="x"}', "a selector without a metric name"),
        ("sum(", "not PromQL"),
    ],
)
def test_each_mistake_is_named(expression, problem):
    found = problems(expression, KNOWN)
    assert any(problem in text for text in found), found


def test_macros_become_what_prometheus_would_get():
    query = 'sum by (${by}) (rate(x{job=~"$job"}[$__rate_interval])) + max_over_time(y[$__range:1m])'
    wanted = 'sum by (a) (rate(x{job=~".*"}[5m])) + max_over_time(y[5m:1m])'
    assert without_macros(query, {"by": "a", "job": ".*"}) == wanted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_engines_vocabulary_is_what_real_pages_hold(page):
    declared = {**ENGINES}
    for family in text_string_to_metric_families(page.read_text()):
        name = family.name + "_total" if family.type == "counter" else family.name
        if name.endswith("_created") or name.startswith(("python_", "process_")) or family.type == "summary":
            continue
        metric = declared[name]
        assert metric.kind == family.type
        for sample in family.samples:
            labels = sample.labels.keys() - {"le"}
            if name != "vllm:cache_config_info":
                assert labels == {*metric.labels}
            assert labels >= {*metric.labels}
            for label, value in sample.labels.items():
                if (name, label) in ENGINE_VALUES:
                    assert value in ENGINE_VALUES[name, label]


def test_every_family_of_an_idle_server_is_declared_as_always_there():
    (idle,) = [page for page in PAGES if page.stem.endswith("idle")]
    text = idle.read_text()
    for metric in OPTIONAL:
        assert f"# TYPE {metric.name} " not in text


def test_values_belong_to_labels_of_metrics():
    known = {**OURS, **PLUGIN, **ENGINES}
    for (name, label), values in {**VALUES, **ENGINE_VALUES}.items():
        assert label in known[name].labels
        assert len({*values}) == len(values)
    assert all(new in ENGINES or new.endswith("_created") for new in RENAMES.values())

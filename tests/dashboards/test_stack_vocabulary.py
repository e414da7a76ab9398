"""The names of third parties' series, against the pages of the real programs where they run here."""

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.http import free_port, get
from support.waiting import wait_for
from vllm_vitals.vocabulary.ours import OURS, PLUGIN
from vllm_vitals.vocabulary.stack import PROMETHEUS, STACK


def test_no_name_stands_twice():
    assert not {*STACK} & {*OURS, *PLUGIN}


@pytest.mark.parametrize("prometheus_binaries", ["2", "3"], indirect=True)
def test_prometheus_writes_what_we_read(run_program, prometheus_binaries, tmp_path):
    port = free_port()
    (tmp_path / "rules.yml").write_text("groups: [{name: one, rules: [{record: a, expr: vector(1)}]}]")
    (tmp_path / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{tmp_path}/rules.yml]\n"
        "alerting: {alertmanagers: [{static_configs: [{targets: ['127.0.0.1:1']}]}]}\n"
    )
    program = run_program(
        prometheus_binaries / "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    )
    program.ready(f"http://127.0.0.1:{port}/-/ready")

    def families():
        page = get(f"http://127.0.0.1:{port}/metrics").text
        # The parser takes `_total` off counters.
        return {one.name: one for one in text_string_to_metric_families(page)}

    wait_for(lambda: "prometheus_tsdb_head_samples_appended" in families(), "the first samples of a rule")
    found = families()
    for metric in PROMETHEUS:
        family = found.get(metric.name) or found.get(metric.name.removesuffix("_total"))
        if family is None:  # a family without a child: nothing was sent to an Alertmanager yet
            assert metric.labels == ("alertmanager",), metric.name
            continue
        assert family.type == metric.kind, metric.name
        labels = {label for sample in family.samples for label in sample.labels} - {"quantile"}
        missing = {*metric.labels} - labels - {"type"}  # type: only where histograms can be native
        assert not missing or not family.samples, (metric.name, labels)
        assert labels <= {*metric.labels, "type"}, (metric.name, labels)

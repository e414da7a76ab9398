"""The seven dashboards as they are shipped."""

import json
from pathlib import Path

import pytest
from vllm_vitals.alerts.sla_file import load
from vllm_vitals.dashboards.build import GENERATED, dashboards, drift, files, for_import, panels_of, query_schema
from vllm_vitals.dashboards.limits import limits_of
from vllm_vitals.dashboards.lint import Context, findings
from vllm_vitals.dashboards.queries import other_queries, panels, queries
from vllm_vitals.vocabulary.ours import NVIDIA_GPU

from .conftest import SLUGS


def test_there_are_seven_with_stable_uids(made):
    assert {slug: data["uid"] for slug, data in made.items()} == {slug: f"vitals-{slug}" for slug in SLUGS}


def test_the_house_and_grafana_s_linter_find_nothing(dashboard, context):
    assert findings(dashboard, context) == []


def test_the_committed_files_are_what_the_code_makes(made):
    assert drift(files(made), GENERATED) == []


def test_a_difference_a_missing_file_and_a_stranger_are_drift(made, tmp_path):
    texts = files(made)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "gpu.json").unlink()
    (tmp_path / "slo.json").write_text("{}")
    (tmp_path / "old.json").write_text("{}")
    found = drift(texts, tmp_path)
    assert [line.removeprefix(f"{tmp_path}/") for line in found] == [
        "gpu.json: missing",
        "slo.json: differs from what the code makes",
        "old.json: no code makes it",
    ]


def test_what_is_optional_is_collapsed_and_names_its_flag(made):
    titles = [panel["title"] for data in made.values() for panel in data["panels"] if panel.get("collapsed")]
    for flag in ("--speculative-config", "--enable-lora", "--kv-transfer-config", "MIG mode", "tracing plugin"):
        assert any(title.endswith(f"({flag})") for title in titles), flag


def test_everything_that_nvml_says_is_somewhere(made):
    expressions = " ".join(query.expression for data in made.values() for query in queries(data))
    assert [metric.name for metric in NVIDIA_GPU if metric.name not in expressions] == []


def test_traces_and_logs_are_only_asked_where_their_data_sources_are_chosen(made):
    sources = {slug: {query.source for query in queries(data)} for slug, data in made.items()}
    assert sources.pop("requests") == {"prometheus", "jaeger", "elasticsearch"}
    assert set().union(*sources.values()) == {"prometheus"}


def test_exemplars_are_asked_of_the_plugin_s_histograms_only(made):
    asked = {
        target["expr"]
        for data in made.values()
        for _, panel, _ in panels(data)
        for target in panel["targets"]
        if target.get("exemplar")
    }
    assert len(asked) > 10
    assert all("vllm_vitals_request_" in expression for expression in asked)


def test_every_dashboard_marks_alerts_restarts_and_deploys(dashboard):
    assert [one["name"] for one in dashboard["annotations"]["list"]] == [
        "Alerts",
        "Restarts",
        "New servers",
        "New models",
    ]


def test_each_promise_of_the_sla_is_a_line_in_its_panels(made, sla):
    promise = sla.services[0].objectives.ttft.promise.threshold
    (panel,) = [one for one in panels_of(made["overview"]) if one["title"] == "Time to first token"]
    assert [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]] == [None, promise]
    assert panel["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"] == {"mode": "dashed"}


def test_another_sla_makes_other_lines_and_stays_sound(sla_file):
    sla = load(sla_file("99% under 3s"))
    made = dashboards(sla)
    (panel,) = [one for one in panels_of(made["overview"]) if one["title"] == "Time to first token"]
    assert [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]] == [None, 3.0]
    context = Context(query_schema(sla), limits_of(sla))
    assert [text for data in made.values() for text in findings(data, context)] == []


def test_where_services_differ_the_promise_is_a_query_not_a_fixed_line(sla_file):
    sla = load(sla_file("99% under 3s", "99% under 4s"))
    made = dashboards(sla)
    (panel,) = [one for one in panels_of(made["overview"]) if one["title"] == "Time to first token"]
    assert len(panel["fieldConfig"]["defaults"]["thresholds"]["steps"]) == 1
    assert panel["targets"][-1]["expr"] == 'max(slo:threshold:seconds{service=~"$service",slo="ttft"})'
    context = Context(query_schema(sla), limits_of(sla))
    assert [text for data in made.values() for text in findings(data, context)] == []


@pytest.mark.parametrize("by", ["[]", "[model_name, server]", "[zone]"])
def test_budgets_are_shown_by_whatever_labels_the_sla_keeps(sla_file, by):
    sla = load(sla_file("99% under 3s", rest=f"    by: {by}\n"))
    made, context = dashboards(sla), Context(query_schema(sla), limits_of(sla))
    assert [text for data in made.values() for text in findings(data, context)] == []
    labels = ", ".join(["service", "slo", *by.strip("[]").split(", ")]).removesuffix(", ")
    assert any(f"min by ({labels}) (slo:error_budget_remaining" in query.expression for query in queries(made["slo"]))


def test_a_window_of_the_sla_moves_the_burn_rates(tmp_path):
    path = tmp_path / "sla.yaml"
    path.write_text(
        "window: 7d\nservices:\n  - name: a\n    selector: {job: x}\n    objectives: {availability: 99.9%}\n"
    )
    sla = load(path)
    made, context = dashboards(sla), Context(query_schema(sla), limits_of(sla))
    assert [text for data in made.values() for text in findings(data, context)] == []
    assert not any("ratio3d" in query.expression for query in queries(made["slo"]))


def test_the_import_form_asks_for_each_data_source(made):
    data = for_import(made["requests"])
    assert [one["name"] for one in data["__inputs"]] == ["DS_PROMETHEUS", "DS_JAEGER", "DS_ELASTICSEARCH"]
    current = {one["name"]: one["current"] for one in data["templating"]["list"] if one["type"] == "datasource"}
    assert current["datasource"]["value"] == "${DS_PROMETHEUS}"
    assert current["jaeger"]["value"] == "${DS_JAEGER}"
    kinds = {one["id"] for one in data["__requires"] if one["type"] == "panel"}
    assert {"traces", "logs", "timeseries", "heatmap"} <= kinds
    assert made["requests"]["templating"]["list"][0]["current"] == {}  # the other form stays


def test_every_query_names_where_it_stands(made):
    found = [query for data in made.values() for query in queries(data)]
    assert len({(query.dashboard, query.panel, query.ref_id) for query in found}) == len(found)
    assert {query.needs for query in found if "spec_decode" in query.expression} == {"--speculative-config"}
    assert all(query.no_value for query in found)
    assert not any("$" in query.runnable().replace('"$1"', "").replace(" $1", "") for query in found)


def test_variables_and_annotations_are_queries_too(made):
    found = {query.panel: query for query in other_queries(made["engine"])}
    assert found["variable server"].runnable() == 'count by (server) (vllm:num_requests_running{job=~".*"})'
    assert found["annotation Alerts"].expression == 'ALERTS{alertstate="firing",service!=""}'


def test_files_are_sorted_and_end_with_a_newline():
    for path in Path(GENERATED).glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

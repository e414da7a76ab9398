"""Each rule finds its mistake; the names after Grafana's dashboard-linter stand first."""

import copy

import pytest
from vllm_vitals.dashboards.lint import RULES, findings


def _panel(data, title):
    every = [*data["panels"], *(inner for panel in data["panels"] for inner in panel.get("panels", ()))]
    return next(panel for panel in every if panel["title"] == title)


def _variable(data, name):
    return next(one for one in data["templating"]["list"] if one["name"] == name)


def _target(data):
    return _panel(data, "Tokens")["targets"][0]


def _ttft(data):
    return _panel(data, "Time to first token")


def _set(owner, **values):
    owner.update(values)


def _expr(data, old, new):
    target = _target(data)
    assert old in target["expr"]
    target["expr"] = target["expr"].replace(old, new)


MISTAKES = {
    # Grafana's dashboard-linter
    "datasource-variable": [
        lambda d: d["templating"]["list"].pop(0),
        lambda d: _set(_variable(d, "datasource"), query="loki"),
    ],
    "job-and-place-variables": [
        lambda d: d["templating"]["list"].remove(_variable(d, "job")),
        lambda d: d["templating"]["list"].remove(_variable(d, "server")),
        lambda d: _set(_variable(d, "job"), multi=False),
        lambda d: _set(_variable(d, "job"), allValue=None),
    ],
    "variables-reload-on-time-change": [lambda d: _set(_variable(d, "model"), refresh=1)],
    "datasources-are-variables": [
        lambda d: _set(_ttft(d), datasource="Prometheus"),
        lambda d: _set(_ttft(d), datasource={"type": "prometheus", "uid": "P1809F7CD0C75ACF3"}),
        lambda d: _target(d).pop("datasource") and _set(_target(d), datasource=None),
        lambda d: _set(_variable(d, "job"), datasource=None),
        lambda d: _set(d["annotations"]["list"][0], datasource=None),
    ],
    "titles-and-descriptions": [lambda d: _set(_ttft(d), title=""), lambda d: _ttft(d).pop("description"),
                                lambda d: _set(_ttft(d), description="TTFT percentiles")],
    "units": [lambda d: _ttft(d)["fieldConfig"]["defaults"].pop("unit")],
    "targets": [lambda d: _set(_ttft(d), targets=[]), lambda d: _set(_target(d), expr="")],
    "promql": [
        lambda d: _expr(d, "sum(", "sum(("),
        lambda d: _expr(d, "vllm:prompt_tokens_total", "vllm:prompt_tokens"),
        lambda d: _set(_target(d), expr="vllm:prompt_tokens_total"),  # a counter that is neither rated nor aggregated
        lambda d: _expr(d, "model_name=~", "model=~"),
        lambda d: _set(_variable(d, "server"), definition="label_values(vllm:num_requests_runing, server)"),
        lambda d: _set(d["annotations"]["list"][1], expr="increase(vllm_vitals_server_restart_total[2m]) > 0"),
        lambda d: _set(_target(d), expr="rate(vllm:prompt_tokens_total[5m]) / rate(vllm:generation_tokens_total[5m])"),
    ],
    "windows": [lambda d: _expr(d, "$__rate_interval", "5m"), lambda d: _expr(d, "$__rate_interval", "$__interval"),
                lambda d: _expr(d, "$__rate_interval", "$__range")],
    "uneditable": [lambda d: _set(d, editable=True)],
    # ours
    "variables-reach-every-query": [
        lambda d: _expr(d, 'job=~"$job",', ""),
        lambda d: _expr(d, 'server=~"$server",', ""),
        lambda d: _expr(d, 'model_name=~"$model"', 'model_name="$model"'),
    ],
    "kinds": [lambda d: _set(_ttft(d), type="graph"), lambda d: _set(_ttft(d), type="singlestat")],
    "duplicates": [
        lambda d: _set(_ttft(d), id=_panel(d, "Tokens")["id"]),
        lambda d: _set(_ttft(d), title="Tokens"),
        lambda d: _set(_ttft(d)["targets"][1], refId="A"),
        lambda d: d["templating"]["list"].append(_variable(d, "job")),
    ],
    "grid": [
        lambda d: _set(_ttft(d), gridPos=_panel(d, "Tokens")["gridPos"]),
        lambda d: _set(_ttft(d)["gridPos"], x=20),
        lambda d: _set(_ttft(d)["gridPos"], w=7),
        lambda d: _set(_ttft(d)["gridPos"], h=7),
    ],
    "exemplars": [lambda d: _set(_target(d), exemplar=True, instant=True)],
    "no-value": [lambda d: _ttft(d)["fieldConfig"]["defaults"].pop("noValue")],
    "thresholds": [
        lambda d: _set(_ttft(d)["fieldConfig"]["defaults"]["thresholds"]["steps"][1], value=0.4),
        lambda d: _set(_ttft(d)["fieldConfig"]["defaults"]["thresholds"]["steps"][0], value=0),
        lambda d: _set(_panel(d, "Longest queue")["fieldConfig"]["defaults"]["thresholds"]["steps"][1], value=99),
    ],
    "links": [
        lambda d: _ttft(d).pop("links"),
        lambda d: _set(_ttft(d)["links"][0], url="/d/vitals-engines?x"),
        lambda d: _set(_ttft(d)["links"][0], url="/d/vitals-overview?x"),
    ],
    "names-of-labels": [
        lambda d: _set(_target(d), legendFormat="{{server}}"),
        lambda d: _set(_panel(d, "Longest queue")["targets"][0], expr="max(vllm:num_requests_waiting)"),
        lambda d: _panel(d, "GPUs")["transformations"][1]["options"]["renameByName"].pop("instance"),
    ],
    "rows-name-what-they-need": [lambda d: _set(d["panels"][0], collapsed=True)],
    "shape": [
        lambda d: _set(d, schemaVersion=12),
        lambda d: _set(d, id=7),
        lambda d: _set(d, uid="overview"),
        lambda d: _set(_ttft(d), interval=None),
    ],
}  # fmt: skip


def test_every_rule_has_a_mistake_to_find():
    assert {rule.__name__.strip("_").replace("_", "-") for rule in RULES} == {*MISTAKES}


@pytest.mark.parametrize(("rule", "mistake"), [(rule, each) for rule, some in MISTAKES.items() for each in some])
def test_a_mistake_is_found_by_its_rule(made, context, rule, mistake):
    data = copy.deepcopy(made["overview"])
    mistake(data)
    rules = [check for check in RULES if check.__name__.strip("_").replace("_", "-") == rule]
    found = [text for check in rules for text in check(data, context)]
    assert found, rule


def test_a_finding_names_dashboard_rule_and_panel(made, context):
    data = copy.deepcopy(made["overview"])
    _ttft(data)["fieldConfig"]["defaults"].pop("unit")
    assert findings(data, context) == ["vitals-overview: units: Time to first token: no unit"]

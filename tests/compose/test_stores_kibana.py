"""Kibana's objects: one a line, references resolve, no field that the index does not have, and who links to them."""

import json
import re

import pytest
from vllm_vitals.compose import kibana_objects
from vllm_vitals.compose.bundle import SHIPPED
from vllm_vitals.compose.log_fields import BY_NAME

OBJECTS = [json.loads(line) for line in kibana_objects.FILE.read_text().splitlines()]
LINKS = json.loads((SHIPPED / "jaeger/ui.json").read_text())["linkPatterns"]
AGGREGATABLE = {"keyword", "long", "float", "boolean", "date"}


def of_type(kind):
    return [one for one in OBJECTS if one["type"] == kind]


def source(one) -> dict:
    return json.loads(one["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"])


def panels() -> list[dict]:
    (dashboard,) = of_type("dashboard")
    return json.loads(dashboard["attributes"]["panelsJSON"])


def fields_of(query: str) -> set[str]:
    """Return the fields that a KQL query names."""
    return set(re.findall(r"([\w.@]+) *(?::|>=|<=|>|<)", re.sub(r'"[^"]*"', '""', query)))


def test_the_file_is_made_by_the_module():
    assert kibana_objects.FILE.read_text() == kibana_objects.text(), "run python -m vllm_vitals.compose.kibana_objects"


def test_ids_are_unique_and_ours():
    ids = [(one["type"], one["id"]) for one in OBJECTS]
    assert len(set(ids)) == len(ids)
    assert all(one["id"].startswith("vllm-vitals-") for one in OBJECTS)


def test_every_object_says_of_which_version_it_is_and_none_is_newer_than_the_pin():
    for one in OBJECTS:
        for key in ("coreMigrationVersion", "typeMigrationVersion"):
            assert tuple(map(int, one[key].split("."))) < (9, 5, 1)


def test_references_lead_to_objects_that_come_before():
    known: set[tuple[str, str]] = set()
    for one in OBJECTS:
        assert {(reference["type"], reference["id"]) for reference in one["references"]} <= known
        known.add((one["type"], one["id"]))


def test_every_named_reference_is_there():
    for search in of_type("search"):
        assert source(search)["indexRefName"] in {reference["name"] for reference in search["references"]}
    (dashboard,) = of_type("dashboard")
    names = {reference["name"] for reference in dashboard["references"]}
    wanted = set()
    for panel in panels():
        index = panel["panelIndex"]
        if "panelRefName" in panel:
            wanted.add(f"{index}:{panel['panelRefName']}")
        else:
            wanted |= {f"{index}:{one['name']}" for one in panel["embeddableConfig"]["attributes"]["references"]}
    assert wanted == names


def test_there_are_the_searches_that_operators_need():
    assert {one["id"] for one in of_type("search")} >= {
        "vllm-vitals-all", "vllm-vitals-errors", "vllm-vitals-slow", "vllm-vitals-aborted", "vllm-vitals-sessions",
    }  # fmt: skip


@pytest.mark.parametrize("search", of_type("search"), ids=lambda one: one["id"])
def test_searches_use_fields_of_the_index(search):
    attributes = search["attributes"]
    sorted_by = {name for name, _ in attributes["sort"]}
    assert set(attributes["columns"]) | sorted_by | fields_of(source(search)["query"]["query"]) <= set(BY_NAME)
    assert {BY_NAME[name].type for name in sorted_by} <= AGGREGATABLE


@pytest.mark.parametrize("panel", [one for one in panels() if one["type"] == "lens"], ids=lambda one: one["title"])
def test_panels_use_fields_of_the_index_as_far_as_these_can_be_summed_up(panel):
    state = panel["embeddableConfig"]["attributes"]["state"]
    assert fields_of(state["query"]["query"]) <= set(BY_NAME)
    (layer,) = state["datasourceStates"]["formBased"]["layers"].values()
    assert layer["columnOrder"] == list(layer["columns"])
    for column in layer["columns"].values():
        name = column["sourceField"]
        if name == "___records___":
            assert column["operationType"] == "count"
            continue
        assert BY_NAME[name].type in AGGREGATABLE
        if column["operationType"] in {"average", "sum", "percentile"}:
            assert BY_NAME[name].type in {"long", "float"}
        if column["operationType"] == "terms":
            assert column["params"]["orderBy"]["columnId"] in layer["columns"]
    shown = state["visualization"]
    named = [shown] if "columns" in shown else shown["layers"]
    for one in named:
        columns = [column["columnId"] for column in one.get("columns", [])]
        columns += [*one.get("accessors", []), *filter(None, [one.get("xAccessor"), one.get("splitAccessor")])]
        assert set(columns) == set(layer["columns"])


def test_panels_do_not_lie_on_each_other_and_fit_the_page():
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridData"]
        assert place["i"] == panel["panelIndex"]
        assert place["x"] + place["w"] <= 48
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        taken |= cells


def test_a_trace_id_is_a_link_to_jaeger():
    (view,) = of_type("index-pattern")
    formats = json.loads(view["attributes"]["fieldFormatMap"])
    assert formats["trace.id"]["params"]["urlTemplate"] == "@JAEGER_URL@/trace/{{value}}"
    assert set(formats) <= set(BY_NAME)
    assert view["attributes"]["title"] == "logs-vllm-*"


@pytest.mark.parametrize("link", LINKS, ids=lambda one: one["text"])
def test_jaegers_links_lead_to_a_search_that_is_there_and_ask_for_fields_that_are(link):
    url = link["url"]
    assert url.startswith("@KIBANA_URL@/app/discover#/view/")
    (search,) = re.findall(r"/view/([a-z-]+)\?", url)
    assert search in {one["id"] for one in of_type("search")}
    (query,) = re.findall(r"query:'([^']*)'", url)
    assert fields_of(query.replace("%22", '"')) <= set(BY_NAME)


def test_grafana_and_smoke_ask_for_fields_of_the_index():
    text = (SHIPPED / "grafana/provisioning/datasources/vllm-vitals.yaml").read_text()
    for name in ("trace.id", "message", "log.level", "@timestamp"):
        assert name in text
        assert name in BY_NAME

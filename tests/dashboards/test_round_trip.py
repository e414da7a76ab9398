"""The models of Grafana's own SDK know every key that we write: what they do not know, Grafana would ignore."""

import copy
import json
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it prefers the dashboards of Grafana 13, which Grafana 10 does not read
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard


@pytest.fixture(scope="module", autouse=True)
def _plugins():
    register_default_plugins()


def _lost(before, after, path=""):
    """Yield the paths that are not in the second, or differ there."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after:
                yield from _lost(value, after[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _lost(one, other, f"{path}[{index}]")
    elif before != after:
        yield path


def _round_trip(data):
    return json.loads(json.dumps(Dashboard.from_json(data), cls=JSONEncoder))


def test_nothing_is_lost(dashboard):
    assert [*_lost(dashboard, _round_trip(dashboard))] == []


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (lambda panel: panel["options"], "legnd"),
        (lambda panel: panel["fieldConfig"]["defaults"], "nullValue"),
        (lambda panel: panel["fieldConfig"]["defaults"]["custom"], "fillOpacty"),
        (lambda panel: panel["targets"][0], "intervalFaktor"),
    ],
)
def test_a_misspelt_key_would_be(made, place, key):
    data = copy.deepcopy(made["overview"])
    panel = next(one for one in data["panels"] if one["type"] == "timeseries")
    place(panel)[key] = 1
    assert [path.rpartition(".")[2] for path in _lost(data, _round_trip(data))] == [key]

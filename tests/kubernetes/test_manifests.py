"""The Kubernetes manifests: rendered by kubectl, valid for API server and operators, confined, wired to each other."""

import json
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from support.fixtures import CACHE
from vllm_vitals.alerts.build import generate
from vllm_vitals.alerts.check import rule_schema
from vllm_vitals.alerts.sla_file import load
from vllm_vitals.compose.manifests import SOURCE, kubernetes_files
from vllm_vitals.dashboards.build import GENERATED as FOLDER
from vllm_vitals.promql.check import problems
from vllm_vitals.settings.config import load as load_settings

KUBERNETES = "1.36"
CUSTOM = {"PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule, "ScaledObject": ScaledObject}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kubernetes")
    dashboards = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    for name, text in kubernetes_files(load(), dashboards).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def render(folder):
    kubectl = CACHE / "kubectl/kubectl"
    if not kubectl.exists():
        pytest.skip("Debian sid gave no kubectl that runs here")

    def render(place: Path | str) -> list[dict]:
        done = subprocess.run([kubectl, "kustomize", folder / place], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    return render


@pytest.fixture(scope="module")
def everything(render) -> list[dict]:
    return render("overlays/example")


def of_kind(objects, *kinds):
    return [one for one in objects if one["kind"] in kinds]


def named(objects, kind, name):
    (found,) = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    return found


def pods(objects):
    return [one["spec"]["template"] for one in of_kind(objects, "Deployment", "DaemonSet")]


def containers(objects):
    return [one for pod in pods(objects) for one in pod["spec"]["containers"]]


@pytest.mark.parametrize(
    "place", ["overlays/example", "base/node", "base/collector", "base/filebeat", "base/engine-monitor", "base/rules"]
)
def test_each_part_renders_by_itself(render, place):
    assert render(place)


def test_core_objects_are_what_the_api_server_takes(everything):
    core = [one for one in everything if one["kind"] not in CUSTOM]
    assert len(core) > 15
    for one in core:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_custom_objects_are_what_their_operators_take_and_lose_nothing(everything):
    for one in of_kind(everything, *CUSTOM):
        model = CUSTOM[one["kind"]].model_validate(one)
        again = json.loads(model.model_dump_json(by_alias=True, exclude_unset=True))
        assert without_numbers(again) == without_numbers(one), one["metadata"]["name"]


def without_numbers(value):
    """Return a value in which 1 and 1.0, "30" and 30 are alike: the models have their own idea of some."""
    if isinstance(value, dict):
        return {key: without_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_numbers(inner) for inner in value]
    return str(value)


def test_a_misspelt_key_of_a_custom_object_is_lost_and_so_found(everything):
    (scaled,) = of_kind(everything, "ScaledObject")
    wrong = {**scaled, "spec": {**scaled["spec"], "maxReplicas": 3}}
    again = json.loads(ScaledObject.model_validate(wrong).model_dump_json(by_alias=True, exclude_unset=True))
    assert without_numbers(again) != without_numbers(wrong)


def test_the_rules_are_those_of_the_sla(everything):
    (rule,) = of_kind(everything, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(generate(load())["prometheusrule.yaml"])["spec"]


def test_each_dashboard_is_a_config_map_that_grafanas_sidecar_finds(everything):
    found = [
        one for one in of_kind(everything, "ConfigMap") if one["metadata"].get("labels", {}).get("grafana_dashboard")
    ]
    assert sorted(name for one in found for name in one["data"]) == sorted(path.name for path in FOLDER.glob("*.json"))
    for one in found:
        assert one["metadata"]["annotations"]["grafana_folder"] == "vLLM"
        assert sum(map(len, one["data"].values())) < 1 << 20, "the API server refuses more"


def test_every_container_is_confined_and_bounded(everything):
    ours = [one for one in containers(everything) if one["name"] != "vllm"]
    assert len(ours) == 4
    for one in ours:
        context = one["securityContext"]
        assert context["readOnlyRootFilesystem"] is True, one["name"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert one["resources"]["limits"]["memory"]
        assert one["resources"]["requests"]["cpu"]
        assert "livenessProbe" in one
        assert ":" in one["image"]
        assert not one["image"].endswith(":latest")
    assert not any(pod["spec"].get("hostNetwork") for pod in pods(everything))


def test_no_secret_stands_in_a_manifest(everything):
    assert not of_kind(everything, "Secret")
    for one in containers(everything):
        for variable in one.get("env", ()):
            if any(word in variable["name"] for word in ("PASSWORD", "TOKEN", "USERNAME")):
                assert "secretKeyRef" in variable["valueFrom"]


def test_what_is_mounted_is_there(everything):
    maps = {one["metadata"]["name"] for one in of_kind(everything, "ConfigMap")}
    for pod in pods(everything):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        for one in pod["spec"]["containers"]:
            for mount in one.get("volumeMounts", ()):
                volume = volumes[mount["name"]]
                if "configMap" in volume:
                    assert volume["configMap"]["name"] in maps


def test_each_pod_monitor_finds_a_port_of_the_pods_that_it_selects(everything):
    for monitor in of_kind(everything, "PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        selected = [pod for pod in pods(everything) if wanted <= pod["metadata"]["labels"].items()]
        assert selected, monitor["metadata"]["name"]
        for pod in selected:
            ports = {port["name"] for one in pod["spec"]["containers"] for port in one["ports"]}
            assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports


def test_scrapes_get_the_jobs_that_the_default_sla_selects(everything):
    jobs = {
        relabeling["replacement"]
        for monitor in of_kind(everything, "PodMonitor")
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
        for relabeling in endpoint.get("relabelings", ())
        if relabeling["targetLabel"] == "job"
    }
    job = load().services[0].selector["job"]
    assert jobs == {job, f"{job}-requests"}


def test_vllm_gets_time_to_load_its_model_and_keeps_what_it_had(everything):
    pod = named(everything, "Deployment", "vllm")["spec"]["template"]
    (vllm,) = [one for one in pod["spec"]["containers"] if one["name"] == "vllm"]
    probe = vllm["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 3600
    assert vllm["args"][-1] == "--middleware=vllm_vitals.tracing.middleware.Vitals"
    assert vllm["args"][:2] == ["--model", "Qwen/Qwen3-0.6B"]
    assert pod["spec"]["shareProcessNamespace"] is True


def test_no_probe_of_vllm_asks_the_sidecar(everything):
    """A sidecar that ends must not end vLLM."""
    pod = named(everything, "Deployment", "vllm")["spec"]["template"]
    (vllm,) = [one for one in pod["spec"]["containers"] if one["name"] == "vllm"]
    assert {vllm[kind]["httpGet"]["port"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")} == {8000}


def test_the_exporters_settings_are_settings():
    assert load_settings(SOURCE / "base/node/vitals.yaml", {}, {}).spot.cloud == "auto"


def test_scaling_asks_for_series_that_there_are(everything):
    known = rule_schema(load())
    (scaled,) = of_kind(everything, "ScaledObject")
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    adapter = yaml.safe_load((SOURCE / "components/scale-hpa/adapter-values.yaml").read_text())
    queries += [rule["metricsQuery"] for rule in adapter["rules"]["external"]]
    assert len(queries) == 4
    for query in queries:
        assert problems(query, known) == []


def test_both_ways_of_scaling_ask_the_same(everything):
    adapter = yaml.safe_load((SOURCE / "components/scale-hpa/adapter-values.yaml").read_text())
    hpa = yaml.safe_load((SOURCE / "components/scale-hpa/hpa.yaml").read_text())
    kubernetes_validate.validate(hpa, KUBERNETES, strict=True)
    assert {metric["external"]["metric"]["name"] for metric in hpa["spec"]["metrics"]} == {
        rule["name"]["as"] for rule in adapter["rules"]["external"]
    }
    (scaled,) = of_kind(everything, "ScaledObject")
    assert [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]] == [
        rule["metricsQuery"] for rule in adapter["rules"]["external"]
    ]

"""Rules that every service of every compose file keeps, and what the schema and the pins say."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from support.compose_files import compose_config, read_compose
from vllm_vitals.compose import env_file
from vllm_vitals.compose.bundle import PROFILES, SHIPPED

SHIPPED_FILE = read_compose(SHIPPED / "compose.yaml")
TLS = read_compose(SHIPPED / "compose.tls.yaml")
SERVICES = {**SHIPPED_FILE["services"], "proxy": TLS["services"]["proxy"]}
JOBS = {"secrets", "elasticsearch-setup", "kibana-setup"}
# Probed from a service beside them: their images hold no program that could look.
PROBED = {"collector": "collector-probe", "jaeger": "jaeger-probe"}
# Who needs more than nothing, and why it stands in the file.
ROOT = {"secrets", "filebeat"}
CAPABILITIES = {
    "secrets": {"CHOWN", "DAC_OVERRIDE", "FOWNER"},
    "filebeat": {"DAC_READ_SEARCH"},
    "proxy": {"NET_BIND_SERVICE"},
}
ENV = env_file.settings((SHIPPED / ".env.example").read_text())

each_service = pytest.mark.parametrize("name", SERVICES)


@each_service
def test_root_file_system_is_read_only(name):
    assert SERVICES[name]["read_only"] is True


@each_service
def test_no_capability_and_no_way_to_gain_one(name):
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert set(SERVICES[name].get("cap_add", [])) == CAPABILITIES.get(name, set())
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]
    assert not SERVICES[name].get("privileged")


@each_service
def test_runs_as_a_named_user_that_is_not_root(name):
    uid = SERVICES[name]["user"].split(":")[0]
    assert uid.isdecimal()
    assert (uid == "0") == (name in ROOT)


@each_service
def test_memory_cpu_and_processes_are_bounded(name):
    assert SERVICES[name]["mem_limit"]
    assert SERVICES[name]["cpus"]
    assert SERVICES[name]["pids_limit"]


@each_service
def test_its_own_log_is_rotated(name):
    options = SERVICES[name]["logging"]["options"]
    assert SERVICES[name]["logging"]["driver"] == "json-file"
    assert options["max-size"]
    assert options["max-file"]


@each_service
def test_somebody_looks_whether_it_is_healthy(name):
    if name not in JOBS:
        probe = SERVICES[PROBED.get(name, name)]
        assert probe["healthcheck"]["test"]


@each_service
def test_waits_for_health_and_never_for_a_bare_start(name):
    waits = SERVICES[name].get("depends_on", {})
    if name in PROBED.values():
        return
    for other, how in waits.items():
        assert how["condition"] == ("service_completed_successfully" if other in JOBS else "service_healthy")


@each_service
def test_published_on_loopback_only(name):
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"\$\{BIND_ADDRESS:-127\.0\.0\.1\}:\$\{[A-Z_]+:-\d+\}:\d+", port)


@each_service
def test_files_of_the_machine_are_mounted_read_only(name):
    for mount in SERVICES[name].get("volumes", []):
        if isinstance(mount, dict):
            assert mount["read_only"] is True


@each_service
def test_no_access_to_docker_itself(name):
    assert "docker.sock" not in yaml.safe_dump(SERVICES[name])


@each_service
def test_version_stands_in_env_and_is_a_fixed_one(name):
    variable = re.match(r"\$\{([A-Z_]+_IMAGE):\?", SERVICES[name]["image"])
    assert variable, SERVICES[name]["image"]
    tag = ENV[variable[1]].rpartition(":")[2]
    assert tag == "local" or re.search(r"\d+\.\d+", tag)


@each_service
def test_belongs_to_a_profile(name):
    assert set(SERVICES[name]["profiles"]) <= set(PROFILES)


@each_service
def test_no_secret_in_its_environment(name):
    for key, value in SERVICES[name].get("environment", {}).items():
        if re.search("PASSWORD|SECRET|TOKEN|ENCRYPTION", key):
            assert "/run/secrets/" in value


def test_elasticsearch_has_no_way_out_and_no_way_in():
    assert SHIPPED_FILE["networks"]["stores"] == {"internal": True}
    assert SERVICES["elasticsearch"]["networks"] == ["stores"]
    assert "ports" not in SERVICES["elasticsearch"]


def test_every_secret_reaches_whom_it_is_given_to():
    script = SERVICES["secrets"]["command"][0]
    given = set(
        re.findall(r"\b(?:es_\w+_password|grafana_admin_password|kibana_encryption_key|hf_token|proxy_users)\b", script)
    )
    assert given == set(SHIPPED_FILE["secrets"]) == set(SERVICES["secrets"]["secrets"])
    mounted = {
        mount["volume"]["subpath"]
        for service in SERVICES.values()
        for mount in service.get("volumes", [])
        if isinstance(mount, dict) and mount.get("source") == "secrets"
    }
    assert mounted <= set(re.findall(r"(?m)^give (\w+) ", script))


def test_every_variable_is_explained_in_env_example():
    text = "".join(path.read_text() for path in SHIPPED.glob("compose*.yaml"))
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text)) - {"EXPORTER_GPUS"}  # set by compose.gpus.yaml
    assert used <= set(ENV)
    assert set(ENV) - used <= {"COMPOSE_PROFILES", "COMPOSE_FILE", "EXPORTER_URL"}  # read by `bundle init`


def in_mib(size: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(m|g|MiB)", size).groups()
    return int(number) * (1024 if unit == "g" else 1)


@pytest.mark.parametrize(("name", "share"), [("GRAFANA", 0.6), ("JAEGER", 0.8), ("COLLECTOR", 0.8 * 0.8)])
def test_go_programs_that_do_not_see_their_bound_are_told_of_it(name, share):
    """After the README of the collector's memory_limiter; Grafana earlier; Prometheus does so by itself."""
    limit, told = in_mib(ENV[f"{name}_MEMORY"]), in_mib(ENV[f"{name}_GOMEMLIMIT"])
    assert share * limit * 0.95 < told <= share * limit
    service = SERVICES[name.lower()]
    assert service["mem_limit"] == f"${{{name}_MEMORY:-{ENV[f'{name}_MEMORY']}}}"
    assert service["environment"]["GOMEMLIMIT"] == f"${{{name}_GOMEMLIMIT:-{ENV[f'{name}_GOMEMLIMIT']}}}"


def test_the_long_term_configuration_is_the_usual_one_and_more():
    usual = (SHIPPED / "prometheus/prometheus.yml").read_text()
    more = (SHIPPED / "prometheus/prometheus.remote-write.yml").read_text()
    assert more.startswith(usual)
    assert yaml.safe_load(more).keys() - yaml.safe_load(usual).keys() == {"remote_write"}


def test_dashboards_find_the_data_sources_and_links_lead_to_known_ones():
    sources = yaml.safe_load((SHIPPED / "grafana/provisioning/datasources/vllm-vitals.yaml").read_text())["datasources"]
    uids = {one["uid"] for one in sources}
    assert uids == {"prometheus", "alertmanager", "jaeger", "elasticsearch"}
    assert set(re.findall(r"'(?:datasourceUid|alertmanagerUid)': '([^']+)'", str(sources))) <= uids
    assert all(one["editable"] is False for one in sources)


# ---- overlays --------------------------------------------------------------------------------------------------------
GATEWAY = read_compose(SHIPPED / "compose.gateway.yaml")["services"]


def test_the_gateway_takes_the_collectors_ports_and_keeps_its_rules():
    gateway = GATEWAY["gateway"]
    assert gateway["ports"] == SERVICES["collector"]["ports"]
    assert GATEWAY["collector"]["ports"] == []  # !reset
    for name in ("gateway", "gateway-probe"):
        service = GATEWAY[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"].split(":")[0] != "0"
        assert service["mem_limit"]
        assert service["pids_limit"]
        assert service["logging"]["options"]["max-size"]
    assert GATEWAY["vllm"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://gateway:4317"


ALL = ["gpus", "remote-write", "tls", "expose", "tail-sampling", "gateway"]
OVERLAYS = [
    ":".join(["compose.yaml", *(f"compose.{name}.yaml" for name in names)])
    for names in ([], ["tail-sampling"], ["tail-sampling", "gateway"], ALL)
]


def test_every_overlay_is_among_those_that_are_tried():
    assert {f"compose.{name}.yaml" for name in ALL} == {path.name for path in SHIPPED.glob("compose.*.yaml")} - {
        "compose.yaml"
    }


def rendered(programs, folder, files: str, **settings: str) -> dict:
    """Return what Compose makes of the files."""
    said = compose_config(programs, folder, "--format", "json", files=files, profiles="all,vllm", **settings)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)["services"]


@pytest.mark.parametrize("files", OVERLAYS)
def test_compose_takes_every_combination_and_each_mounted_file_is_there(programs, fresh_bundle, files):
    services = rendered(programs, fresh_bundle, files)
    assert {"elasticsearch-setup", "kibana-setup", "jaeger", "kibana", "filebeat"} <= set(services)
    for service in services.values():
        for mount in service.get("volumes", []):
            if mount["type"] == "bind" and mount["source"].startswith(str(fresh_bundle)):
                assert Path(mount["source"]).exists(), mount["source"]
    command = services["collector"]["command"]
    assert (len(command) == 2) == ("tail-sampling" in files)
    mounted = {mount["target"] for mount in services["collector"]["volumes"]}
    assert {argument.removeprefix("--config=") for argument in command} <= mounted
    assert bool(services["collector"].get("ports")) == ("gateway" not in files)


def test_links_between_jaeger_and_kibana_follow_the_ports_of_env(programs, fresh_bundle):
    services = rendered(programs, fresh_bundle, "compose.yaml", KIBANA_PORT="5777", JAEGER_PORT="16777")
    assert services["secrets"]["environment"]["KIBANA_URL"] == "http://127.0.0.1:5777"
    assert services["kibana"]["environment"]["SERVER_PUBLICBASEURL"] == "http://127.0.0.1:5777"
    assert services["kibana-setup"]["environment"]["JAEGER_PUBLIC_URL"] == "http://127.0.0.1:16777"
    services = rendered(programs, fresh_bundle, "compose.yaml", KIBANA_URL="https://logs.example")
    assert services["secrets"]["environment"]["KIBANA_URL"] == "https://logs.example"


def test_the_job_gives_jaeger_its_page_with_kibanas_address(tmp_path):
    """The job's own lines, run here; `chown` needs root there."""
    script = SERVICES["secrets"]["command"][0].replace("$$", "$")
    lines = [line.strip() for line in script.splitlines() if "/jaeger/" in line or "jaeger-ui" in line]
    text = "\n".join(line for line in lines if not line.startswith(("chown", "#")))
    text = text.replace("/out/", f"{tmp_path}/").replace("/jaeger-ui.json", str(SHIPPED / "jaeger/ui.json"))
    (tmp_path / "jaeger").mkdir()
    run = subprocess.run(
        ["sh", "-euc", text], env={"KIBANA_URL": "https://logs.example:5643", "PATH": os.environ["PATH"]}
    )
    assert run.returncode == 0
    page = json.loads((tmp_path / "jaeger/ui.json").read_text())
    assert all(link["url"].startswith("https://logs.example:5643/app/discover") for link in page["linkPatterns"])
    config = yaml.safe_load((SHIPPED / "jaeger/config.yaml").read_text())
    assert config["extensions"]["jaeger_query"]["ui"]["config_file"] == "/run/secrets/ui.json"

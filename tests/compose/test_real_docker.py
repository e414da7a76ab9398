"""The shipped compose file, profiles all and demo, on a real Docker Engine.

Real: Docker, Compose, Prometheus, Alertmanager, node_exporter (Debian's builds), the exporter's image as its Dockerfile
makes it, the demo, the set-up jobs, the collector's core where it was built. Stand-ins, which refuse to start where
they are not given what their program needs: Grafana, Jaeger, Elasticsearch, Kibana, Filebeat, the collector's contrib
parts, vLLM. Not as shipped: images, networks.

The tests stand in the order of what takes long: the demo's scene begins anew where it is killed, with everybody
watching, and its alert ripens while other services are killed.
"""

import contextlib
import json
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from docker_engine import images
from docker_engine.bundles import ADDRESSES, PINS, Bundle
from support import container_lines, log_lines
from support.collectors import CORE
from support.compose_files import read_compose
from support.fixtures import CACHE
from support.log_pipeline import Indexed, Ingest, filebeat, index
from support.programs import Program
from support.store_servers import MADE_ONCE, SET_UP, index_of
from support.traced_vllm import TracedVllm
from support.waiting import wait_for
from vllm_vitals.compose import log_store
from vllm_vitals.compose.bundle import SHIPPED
from vllm_vitals.compose.log_fields import BY_NAME

pytestmark = pytest.mark.docker

KILLED = 128 + signal.SIGKILL  # what Docker does where SIGTERM was not heard
SHIPPED_SERVICES = {
    name: service
    for name, service in read_compose(SHIPPED / "compose.yaml")["services"].items()
    if {"all", "demo"} & set(service["profiles"]) or name == "vllm"
}
JOBS = {name for name, service in SHIPPED_SERVICES.items() if service["restart"] != "unless-stopped"}
PROBED = sorted(name for name, service in SHIPPED_SERVICES.items() if "healthcheck" in service)
SERVICES = sorted(SHIPPED_SERVICES.keys() - JOBS)
WATCHED = {"jaeger": "http://jaeger:13133/status", "collector": "http://collector:13134/"}  # by their probes
IN_NETNS = ["compose", "exec", "-T", "netns", "wget", "-q", "-O", "/dev/null"]
OF_THE_ALERT = ["alertmanager", "prometheus", "demo"]
FILEBEAT = yaml.safe_load((SHIPPED / "filebeat/filebeat.yml").read_text())
MAPPING = json.loads((SHIPPED / "elasticsearch/logs-fields.json").read_text())
PIPELINES = {
    log_store.PIPELINE: json.loads((SHIPPED / "elasticsearch/logs-pipeline.json").read_text()),
    log_store.JSON_PIPELINE: json.loads((SHIPPED / "elasticsearch/logs-json-pipeline.json").read_text()),
}


@pytest.fixture
def bundle(running_bundle) -> Bundle:
    assert running_bundle.started == 0, running_bundle.output
    return running_bundle


def states(bundle) -> dict[str, str]:
    lines = bundle.compose("ps", "--all", "--format", "json").splitlines()
    return {one["Service"]: one["Health"] or f"{one['State']} {one['ExitCode']}" for one in map(json.loads, lines)}


# ---- start -----------------------------------------------------------------------------------------------------------
def test_up_waits_until_all_is_healthy_and_says_where_it_is(bundle):
    found = states(bundle)
    assert {name: found[name] for name in PROBED} == dict.fromkeys(PROBED, "healthy")
    assert {name: found[name] for name in JOBS} == dict.fromkeys(JOBS, "exited 0")
    assert set(found) - set(SHIPPED_SERVICES) == {"netns", "webhook"}
    for port in (3000, 9090, 9093, 9836, 9837, 16686, 5601, 4317, 4318):
        assert f"http://127.0.0.1:{port}" in bundle.output
    assert "secrets/grafana_admin_password" in bundle.output
    for service in PROBED:
        assert f"{service:<23} healthy" in bundle.output


def test_what_is_no_real_program_says_so_on_its_image(bundle):
    for name, pin in images.STAND_INS.items():
        label = bundle.docker(
            "image", "inspect", "--format", '{{index .Config.Labels "vllm-vitals.inside"}}', PINS[pin]
        )
        assert label.startswith(f"STAND-IN, no {name}")


def test_somebody_listens_at_every_port_that_is_published(bundle):
    sockets = bundle.compose("exec", "-T", "netns", "cat", "/proc/net/tcp", "/proc/net/tcp6")
    listening = {(int(address[:2], 16), int(port, 16))  # (0, port): at every address
                 for address, port in re.findall(r"\d+: (\w+):(\w{4}) \w+:\w{4} 0A", sockets)}  # fmt: skip
    for name, service in SHIPPED_SERVICES.items():
        for published in service.get("ports", ()):
            port = int(published.rpartition(":")[2])
            last = int(ADDRESSES.get(name, "0").rpartition(".")[2])
            assert (last, port) in listening, f"{name} {port}"


def test_every_limit_of_the_file_is_one_that_docker_took(bundle):
    for name, one in bundle.containers().items():
        if name in SHIPPED_SERVICES:
            host = one["HostConfig"]
            assert host["ReadonlyRootfs"], name
            assert host["CapDrop"] == ["ALL"], name
            assert host["SecurityOpt"] == ["no-new-privileges:true"], name
            assert 0 < host["Memory"] <= 64 << 30, name
            assert 0 < host["NanoCpus"] <= 2e9, name
            assert host["PidsLimit"] > 0, name
            assert host["LogConfig"]["Config"]["max-size"] == f"{container_lines.ROTATED_AT}", name


# ---- the jobs --------------------------------------------------------------------------------------------------------
def calls(bundle) -> list[tuple[str, str, int]]:
    """Return what Elasticsearch was told to be, call by call."""
    journal = bundle.compose("exec", "-T", "elasticsearch", "cat", "/usr/share/elasticsearch/data/calls.jsonl")
    made = map(json.loads, journal.splitlines())
    return [
        (one["method"], one["path"], one["status"])
        for one in made
        if one["user"] == "elastic" and not one["path"].startswith(("/_cluster/health", "/_security/_authenticate"))
    ]


def test_elasticsearch_is_told_everything_once(bundle):
    told = calls(bundle)
    stream = "/_data_stream/logs-vllm-default"
    missing = {stream, "/_alias/jaeger-span-write", "/_alias/jaeger-service-write"}
    assert {path for method, path, status in told if (method, status) == ("GET", 404)} == missing
    puts = [(method, path) for method, path, status in told if status == 200]
    assert {"stream" if path == stream else path for _, path in puts} == SET_UP
    assert set(Counter(puts).values()) == {1}
    assert len(told) == len(puts) + len(missing), told


def test_kibana_has_its_objects_with_links_to_jaeger(bundle):
    kept = json.loads(bundle.compose("exec", "-T", "kibana", "cat", "/usr/share/kibana/data/things.json"))
    assert len(kept["objects"]) == len((SHIPPED / "kibana/objects.ndjson").read_text().splitlines())
    assert "http://127.0.0.1:16686/trace/" in json.dumps(kept["objects"])
    assert "@JAEGER_URL@" not in json.dumps(kept)


def test_grafanas_password_for_the_logs_is_one_that_elasticsearch_takes(bundle):
    ask = (
        "import base64, urllib.request as r; password = open('/run/secrets/es_grafana_password', 'rb').read(); "
        "token = base64.b64encode(b'grafana_reader:' + password).decode(); "
        "print(r.urlopen(r.Request('http://elasticsearch:9200/_security/_authenticate', "
        "headers={'Authorization': f'Basic {token}'})).read().decode())"
    )
    said = bundle.compose("exec", "-T", "grafana", "/usr/local/bin/python", "-c", ask)
    assert json.loads(said) == {"username": "grafana_reader"}


# ---- container logs --------------------------------------------------------------------------------------------------
def log_files(container: dict) -> list[Path]:
    """Return what Docker wrote of a container, the oldest first."""
    path = Path(container["LogPath"])
    rotated = sorted(path.parent.glob(f"{path.name}.*"), key=lambda one: int(one.suffix[1:]), reverse=True)
    return [*rotated, path]


def events(container: dict) -> list[dict]:
    """Return what Filebeat makes of them, file by file as it reads them."""
    variables = {"PROJECT": "vllm-vitals"}
    return [event for path in log_files(container) for event in filebeat(FILEBEAT, path.read_bytes(), variables)]


def stored(event: dict) -> Indexed:
    document = Ingest(PIPELINES).run(log_store.PIPELINE, event)
    indexed = index(MAPPING, document)
    assert indexed.fields["@timestamp"]
    return indexed


@pytest.fixture(scope="module")
def of_vllm(running_bundle) -> list[dict]:
    assert running_bundle.started == 0, running_bundle.output
    return events(running_bundle.container("vllm"))


def test_filebeat_can_read_every_file_that_docker_wrote(bundle):
    seen = json.loads(bundle.get("http://127.0.0.1:5066/stand-in/files"))
    written = Path(f"{bundle.docker.folder}/data/containers").glob("*/*-json.log*")
    assert seen == sorted(f"/var/lib/docker/containers/{path.parent.name}/{path.name}" for path in written)


def test_no_line_is_lost_in_files_that_docker_rotated(bundle, of_vllm, lines):
    assert len(log_files(bundle.container("vllm"))) > 2
    for stream in ("stdout", "stderr"):
        found = [event["message"] for event in of_vllm if event["log"]["iostream"] == stream]
        assert found == [line.text for line in lines if line.stream == stream]


def test_every_line_has_service_container_and_stream(of_vllm):
    for event in of_vllm:
        fields = stored(event).fields
        assert fields["container.name"] == "vllm-vitals-vllm-1"
        assert fields["log.iostream"] == event["log"]["iostream"]
        assert fields["service.name"] == "vllm"


def test_lines_of_our_writers_arrive_field_by_field(of_vllm, tmp_path):
    kinds = Counter()
    ours = {line: json.loads(line) for line in (one["message"] for one in of_vllm) if line.startswith('{"@timestamp"')}
    assert len({record.get("event.dataset", record["log.logger"]) for record in ours.values()}) >= 3
    for event in of_vllm:
        if said := ours.get(event["message"]):
            indexed = stored(event)
            assert (indexed.ignored, indexed.unmapped) == ([], [])
            fields = {name: value for name, value in said.items() if name in BY_NAME}
            assert {name: indexed.fields[name] for name in fields} == fields
            kinds[event["message"]] += 1
    assert len(kinds) == len(log_lines.ours(tmp_path / "s")) + 1  # and the long one
    assert sorted(Counter(kinds.values())) == [1, max(kinds.values())]


def test_plain_lines_of_vllm_are_taken_apart_and_keep_dockers_time(of_vllm):
    for event in of_vllm:
        line = event["message"]
        if line.startswith(("(APIServer", "(EngineCore", "INFO")):
            indexed = stored(event)
            level = re.search("DEBUG|INFO|WARNING|ERROR", line)[0].lower()
            assert indexed.fields["log.level"] == level
            assert indexed.fields["@timestamp"] == event["@timestamp"]
            assert (
                indexed.fields["message"] == line.removesuffix("\r").partition("] " if "[" in line else "INFO:     ")[2]
            )
            if found := re.match(r"\((\w+) pid=(\d+)\)", line):
                assert (indexed.fields["process.name"], indexed.fields["process.pid"]) == (found[1], int(found[2]))


def test_garbage_is_kept_as_it_is_and_forges_nothing(of_vllm):
    kept = Counter()
    for event in of_vllm:
        if event["message"] in container_lines.GARBAGE and not event["message"].startswith('{"'):
            assert stored(event).fields["message"] == event["message"]
            kept[event["message"]] += 1
    assert len(kept) == sum(not one.startswith('{"') for one in container_lines.GARBAGE)


def test_services_of_the_bundle_are_read_and_the_stores_are_not(bundle):
    read = {name for name, container in bundle.containers().items() if events(container)}
    assert read == {"alertmanager", "collector", "demo", "elasticsearch-retention", "exporter", "grafana", "jaeger",
                    "node_exporter", "prometheus", "vllm"}  # fmt: skip


WITH_LINES = ["alertmanager", "collector", "demo", "elasticsearch-retention", "exporter", "node_exporter", "prometheus"]


@pytest.mark.parametrize("service", WITH_LINES)
def test_lines_of_real_services_have_their_level_and_where_they_came_from(bundle, service):
    container = bundle.container(service)
    found = [stored(event) for event in events(container)]
    assert len(found) == sum(path.read_bytes().count(b'\\n",') for path in log_files(container))
    for indexed in found:
        assert indexed.ignored == []
        assert indexed.fields["service.name"] == service
        assert indexed.fields["container.name"] == f"vllm-vitals-{service}-1"
        assert indexed.fields["log.iostream"] in {"stdout", "stderr"}
        if indexed.fields["log.iostream"] == "stderr":  # ours print addresses to the other one
            assert indexed.fields["log.level"] in {"debug", "info", "warn", "warning", "error"}, indexed.fields
    always = {"alertmanager", "elasticsearch-retention", "node_exporter", "prometheus"}
    assert service not in always or "log.level" in found[0].fields


# ---- what runs -------------------------------------------------------------------------------------------------------
def test_prometheus_scrapes_the_exporter_and_everything_else(bundle):
    jobs = {"vllm-vitals", "vllm-vitals-requests", "node", "prometheus", "alertmanager", "collector", "span-metrics"}
    wait_for(lambda: {one["metric"]["job"] for one in bundle.query("up==1")} == jobs, f"targets {jobs}", 60, pause=1)
    wait_for(lambda: bundle.query("vllm_vitals_server_up"), "an engine of the demo", 60, pause=1)


@pytest.mark.skipif(not CORE.exists(), reason="tests/otelcol/build.sh has not built the collector's core")
def test_a_span_passes_the_collectors_core_on_its_way_to_jaeger(bundle):
    span = {
        "traceId": "0" * 31 + "1",
        "spanId": "0" * 15 + "1",
        "name": "s",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "2",
    }
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
    said = bundle.compose("exec", "-T", "netns", "wget", "-q", "-O", "-", "--header", "Content-Type: application/json",
                          "--post-data", body, "http://collector:4318/v1/traces")  # fmt: skip
    assert json.loads(said) == {"partialSuccess": {}}
    page = "http://jaeger:16686/stand-in/connections"
    wait_for(lambda: json.loads(bundle.get(page))["http2"], "the collector at Jaeger's port", 30, pause=0.5)


RECEIVER = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from support.otlp_receiver import OtlpReceiver
with OtlpReceiver(host=sys.argv[2], grpc_port=4317) as receiver:
    told = 0
    while True:
        for resource, span in receiver.spans()[told:]:
            told += 1
            print(json.dumps([span.trace_id.hex(), span.name, resource.get("service.name")]), flush=True)
        time.sleep(0.1)
"""


@pytest.mark.skipif(not CORE.exists(), reason="tests/otelcol/build.sh has not built the collector's core")
def test_a_real_vllms_spans_pass_the_running_bundle(bundle, tmp_path):
    """vLLM with the plugin runs in the bundle's network, beside its containers; a receiver takes Jaeger's place."""
    inside = ["nsenter", f"--net=/proc/{bundle.container('netns')['State']['Pid']}/ns/net"]
    bundle.compose("stop", "jaeger")
    receiver = Program(
        [*inside, sys.executable, "-c", RECEIVER, Path(__file__).parents[1], ADDRESSES["jaeger"]], tmp_path / "spans"
    )
    to_collector = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{ADDRESSES['collector']}:4317",
        "VLLM_VITALS_TRACING_EXPORT": "process",
    }
    server = TracedVllm(CACHE, environment=to_collector, inside=inside)

    def serves() -> bool:
        assert server.process.poll() is None, server.output[-3000:]
        return bundle.docker(*IN_NETNS, f"{server.url}/health", check=False, both=True, cwd=bundle.folder) == ""

    def arrived() -> set[tuple[str, str, str]]:
        spans = [tuple(json.loads(line)) for line in receiver.output.splitlines()]
        return {span for span in spans if span[2] == "vllm"}  # the collector tries again what Jaeger did not answer

    try:
        wait_for(serves, "vLLM", 300, pause=1)
        for number in range(3):
            header = f"traceparent: 00-{number + 1:032x}-{0xAA:016x}-01"
            post = ["--header", "Content-Type: application/json", "--header", header, "--post-data"]
            body = json.dumps({"model": server.MODEL, "prompt": "The engine", "max_tokens": 4})
            bundle.docker(*IN_NETNS, *post, body, f"{server.url}/v1/completions", cwd=bundle.folder)
        tree = {"POST /v1/completions", "llm_request", "vllm.ingress", "vllm.queue", "vllm.prefill", "vllm.decode"}
        wanted = {(f"{number + 1:032x}", name, "vllm") for number in range(3) for name in tree}
        wait_for(lambda: arrived() == wanted, "all spans", 60)
    finally:
        server.stop()
        receiver.stop()
        bundle.compose("start", "jaeger")


def test_the_oldest_lines_and_spans_go_where_there_are_too_many(bundle):
    page = "http://elasticsearch:9200/stand-in/indices"
    before = json.loads(bundle.get(page))
    old = {
        ".ds-logs-vllm-default-2025.12.30-000000": index_of(1, 31 << 30),
        "jaeger-span-2025-12-30": index_of(1, 61 << 30),
    }
    bundle.compose("exec", "-T", "netns", "wget", "-q", "-O", "-", "--post-data", json.dumps(old), page)
    assert json.loads(bundle.get(page)) == before | old
    bundle.compose("restart", "elasticsearch-retention")  # it looks when it starts
    wait_for(lambda: json.loads(bundle.get(page)) == before, "both gone", 60, pause=0.5)
    said = bundle.compose("logs", "--no-log-prefix", "elasticsearch-retention").splitlines()
    assert {line["index"] for line in map(json.loads, said) if "index" in line} == set(old)
    in_kibana = [stored(event).fields for event in events(bundle.container("elasticsearch-retention"))]
    assert {fields["json.index"] for fields in in_kibana if "json.index" in fields} == set(old)


def comes_back(bundle, service: str) -> None:
    before = bundle.container(service)
    os.kill(before["State"]["Pid"], signal.SIGKILL)

    def back() -> bool:
        now = bundle.container(service)
        if now["RestartCount"] <= before["RestartCount"]:
            return False
        return (
            bool(bundle.get(WATCHED[service])) if service in WATCHED else now["State"]["Health"]["Status"] == "healthy"
        )

    wait_for(back, f"{service} again", 60, pause=0.3)


@pytest.mark.parametrize("service", OF_THE_ALERT + [name for name in SERVICES if name not in OF_THE_ALERT])
def test_a_killed_service_comes_back(bundle, service):
    comes_back(bundle, service)


def test_status_and_logs_tell_of_the_running_bundle(bundle):
    code, output = bundle.command("status")
    assert code == 0, output
    found = {line.split()[1]: line for line in output.splitlines() if line.startswith("[ok]")}
    for service in SERVICES:  # a real Engine's figures: a process that runs uses memory
        cores, mebibytes = re.search(r" (?:healthy|running) +(\d+\.\d\d) cores +(\d+) MiB$", found[service]).groups()
        assert float(cores) < 2
        assert int(mebibytes) < 512
    assert all(re.fullmatch(r"\[ok\]  [a-z-]+ +done", found[job]) for job in JOBS)
    summed = re.search(r"(?m)^      all +(\d+\.\d\d) cores +(\d+) MiB$", output)
    assert int(summed[2]) > 100
    assert re.search(r"(?m)^      of profile metrics +.*budget 0\.1 cores and 700 MiB", output)
    code, output = bundle.command("logs", "--tail", "5", "grafana")
    assert code == 0
    assert "stand-in for grafana" in output


def test_an_upgrade_takes_effect_in_what_reads_a_changed_file_and_leaves_the_rest_running(bundle):
    before = {name: one["State"]["StartedAt"] for name, one in bundle.containers().items()}
    sla = bundle.folder / "sla.yaml"
    sla.write_text(sla.read_text().replace("ttft: 99% under 500ms", "ttft: 98% under 500ms"))
    code, output = bundle.command("upgrade", "--timeout", "3m")
    assert code == 0, output
    after = {name: one["State"]["StartedAt"] for name, one in bundle.containers().items()}
    # Prometheus evaluates its rules, the live pages judge by it.
    readers = {"prometheus", "exporter", "demo"}
    assert {name for name in after if after[name] != before[name]} == readers | JOBS, output
    assert f"restarted, since files that they read have changed: {', '.join(sorted(readers))}" in output
    assert "vector(0.98)" in bundle.get("http://prometheus:9090/api/v1/rules")


# ---- faults ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", images.STAND_INS)
def test_a_stand_in_refuses_what_its_program_could_not_live_with(bundle, name):
    image = PINS[images.STAND_INS[name]]
    said = bundle.docker("run", "--rm", "--network", "none", "--user", "12345", image, "--odd", both=True, check=False)
    for problem in (
        "user: expected ", "arguments: expected ", "root file system: expected read-only", "CapBnd: expected ",
        "no-new-privileges: expected 1", "memory: expected bounded",
    ):  # fmt: skip
        assert f"stand-in for {name}: refused: {problem}" in said


def test_a_stand_in_refuses_a_secret_that_others_can_read_or_that_stands_in_the_environment(bundle, tmp_path):
    for name in ("es_grafana_password", "grafana_admin_password"):
        (tmp_path / name).write_text(f"secret of {name}")
        (tmp_path / name).chmod(0o444)
    said = bundle.docker(
        "run", "--rm", "--network", "none", "--env", "PASSWORD=secret of es_grafana_password", "--volume",
        f"{tmp_path}:/run/secrets", PINS["GRAFANA_IMAGE"], both=True, check=False,
    )  # fmt: skip
    assert "/run/secrets/grafana_admin_password: expected mode 400 of user 0, found 444 of 0" in said
    assert "es_grafana_password: expected in its file alone, found in the environment" in said
    assert "/run/secrets: expected read-only, found nothing of the kind" in said
    assert "secret of" not in said


def test_a_wrong_setting_ends_with_1_and_the_jobs_words(bundle):
    bundle.set(LOGS_RETENTION="a week")
    try:
        code, output = bundle.command("up", "--timeout", "90s")
        assert code == 1, output
        assert ".env: LOGS_RETENTION: expected a number with one of d h, found 'a week'" in output
        assert "bundle logs --dir" in output
    finally:
        bundle.set(LOGS_RETENTION="7d")


def test_a_scene_of_the_demo_becomes_an_alert_at_the_webhook(bundle):
    def told() -> set[str]:
        lines = [
            line for line in bundle.compose("logs", "--no-log-prefix", "webhook").splitlines() if line.startswith("{")
        ]
        return {alert["labels"]["alertname"] for line in lines for alert in json.loads(line)["alerts"]}

    wait_for(lambda: told() & {"GPUXidFatal", "GPULost", "VLLMServerDown"}, "a page", 300, pause=2)


# ---- end and start ---------------------------------------------------------------------------------------------------
KEEPING = {
    "grafana": "/var/lib/grafana",
    "elasticsearch": "/usr/share/elasticsearch/data",
    "kibana": "/usr/share/kibana/data",
    "filebeat": "/usr/share/filebeat/data",
    "vllm": "/cache",
}
SILENCE = {
    "matchers": [{"name": "alertname", "value": "none", "isRegex": False}], "startsAt": "2026-01-01T00:00:00Z",
    "endsAt": "2100-01-01T00:00:00Z", "createdBy": "test", "comment": "kept",
}  # fmt: skip
SILENCES = "http://alertmanager:9093/api/v2/silences"


def starts(bundle) -> dict[str, int]:
    return {name: int(bundle.compose("exec", "-T", name, "cat", f"{path}/starts")) for name, path in KEEPING.items()}


class Before(NamedTuple):
    """What there was before the bundle was stopped, and how its services ended."""

    ends: dict[str, int]
    starts: dict[str, int]
    calls: list[tuple[str, str, int]]
    begin: float


@pytest.fixture(scope="module")
def before(running_bundle) -> Before:
    bundle = running_bundle
    assert bundle.started == 0, bundle.output
    begin = oldest_sample(bundle)
    counts, told = starts(bundle), calls(bundle)
    bundle.compose("exec", "-T", "netns", "wget", "-q", "-O", "-", "--header", "Content-Type: application/json",
                   "--post-data", json.dumps(SILENCE), SILENCES)  # fmt: skip
    bundle.compose("stop")
    lines = bundle.compose("ps", "--all", "--format", "json").splitlines()
    return Before({one["Service"]: one["ExitCode"] for one in map(json.loads, lines)}, counts, told, begin)


def oldest_sample(bundle) -> float:
    expression = "prometheus_tsdb_lowest_timestamp_seconds"
    return float(wait_for(lambda: bundle.query(expression), "Prometheus", 60, pause=1)[0]["value"][1])


def test_every_service_ends_by_itself_when_asked_to(before):
    assert set(before.ends) >= set(SERVICES)
    assert {name: code for name, code in before.ends.items() if code == KILLED} == {}


def test_down_and_up_keep_the_data_and_set_up_again_without_fault(bundle, before):
    secret = (bundle.folder / "secrets/grafana_admin_password").read_text()
    assert bundle.command("down")[0] == 0
    code, output = bundle.command("up", "--timeout", "3m")
    assert code == 0, output
    assert {name: states(bundle)[name] for name in JOBS} == dict.fromkeys(JOBS, "exited 0")
    assert starts(bundle) == {name: count + 1 for name, count in before.starts.items()}
    assert "kept" in bundle.get(SILENCES)
    assert oldest_sample(bundle) <= before.begin
    assert (bundle.folder / "secrets/grafana_admin_password").read_text() == secret
    told = calls(bundle)
    assert told[: len(before.calls)] == before.calls
    news = told[len(before.calls) :]
    assert {status for *_, status in news} == {200}
    assert {path for method, path, _ in news if method != "GET"} == {
        *SET_UP - MADE_ONCE, "/logs-vllm-default/_mapping?write_index_only=true",
    }  # fmt: skip
    assert set(Counter(news).values()) == {1}


def secrets_of(bundle) -> list[str]:
    texts = [path.read_text().strip() for path in (bundle.folder / "secrets").iterdir() if path.is_file()]
    return [text for text in texts if text]  # hf_token is empty


def test_nothing_that_can_be_seen_holds_a_secret(bundle):
    containers = bundle.containers().values()
    public = [bundle.said, bundle.compose("config"), json.dumps(list(containers)), bundle.compose("logs", "--no-color")]
    processes = 0
    for container in containers:
        if container["State"]["Running"]:
            for pid in bundle.docker("top", container["Id"], "-eo", "pid").split()[1:]:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a healthcheck that has just ended
                    public += [
                        Path(f"/proc/{pid}/{kind}").read_text(errors="replace") for kind in ("environ", "cmdline")
                    ]
                    processes += 1
    assert processes >= len(SERVICES)
    assert len(secrets_of(bundle)) >= 9
    assert [secret for secret in secrets_of(bundle) for text in public if secret in text] == []


def test_a_broken_configuration_ends_with_1_and_says_why(bundle):
    config = bundle.folder / "prometheus/prometheus.yml"
    config.write_text(config.read_text().replace("scrape_interval: 15s", "scrape_intervall: 15s"))
    bundle.compose("rm", "--stop", "--force", "prometheus")
    code, output = bundle.command("up", "--timeout", "90s")
    assert code == 1, output
    assert "scrape_intervall" in output
    assert "bundle logs --dir" in output
    assert [secret for secret in secrets_of(bundle) if secret in bundle.said] == []

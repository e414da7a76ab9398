"""The set-up scripts of Elasticsearch and Kibana, run by real shells with a real curl against servers of ours."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.store_servers import SET_UP, KibanaStore, Store, index_of, serving
from vllm_vitals.compose.bundle import SHIPPED

ELASTICSEARCH = SHIPPED / "elasticsearch/setup.sh"
KIBANA = SHIPPED / "kibana/setup.sh"
ODD = 'p"a\\ss %s$(id) ü'  # what a user may choose
PASSWORDS = {
    "es_elastic_password": f"elastic-{ODD}",
    "es_kibana_password": f"kibana-{ODD}",
    "es_filebeat_password": f"filebeat-{ODD}",
    "es_jaeger_password": f"jaeger-{ODD}",
    "es_grafana_password": f"grafana-{ODD}",
    "es_retention_password": f"keeper-{ODD}",
}
SHELLS = [shell for shell in ("bash", "dash", "busybox") if shutil.which(shell)]


@pytest.fixture
def secrets(tmp_path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    for name, password in PASSWORDS.items():
        (folder / name).write_text(password)
    return folder


@pytest.fixture(params=SHELLS)
def shell(request) -> list[str]:
    return ["busybox", "sh"] if request.param == "busybox" else [request.param]


@pytest.fixture
def elasticsearch():
    with serving(Store(PASSWORDS["es_elastic_password"])) as store:
        yield store


@pytest.fixture
def kibana():
    with serving(KibanaStore(PASSWORDS["es_elastic_password"])) as store:
        yield store


def run(script: Path, store: Store, secrets: Path, shell=("sh",), path: str = "", **variables: str):
    """Run a set-up; whatever happens, no output holds a password and no file is left behind."""
    work = secrets.parent / "work"
    work.mkdir(exist_ok=True)
    name = "ELASTICSEARCH_URL" if script == ELASTICSEARCH else "KIBANA"
    environment = {
        name: store.url,
        "SECRETS": str(secrets),
        "SETUP_DEADLINE": "5",
        "TMPDIR": str(work),
        "PATH": f"{path}{os.environ['PATH']}",
        **variables,
    }
    said = subprocess.run([*shell, script], env=environment, capture_output=True, text=True, timeout=60)
    for password in PASSWORDS.values():
        assert password not in said.stdout + said.stderr
    assert [*work.iterdir()] == []
    return said


def test_puts_users_retention_templates_and_pipelines_in_an_order_that_holds(shell, elasticsearch, secrets):
    said = run(ELASTICSEARCH, elasticsearch, secrets, shell)
    assert said.returncode == 0, said.stderr
    assert said.stderr == ""
    assert said.stdout.splitlines()[-1] == "Elasticsearch is set up"
    assert set(elasticsearch.things) == SET_UP


def test_passwords_arrive_as_they_stand_in_their_files(elasticsearch, secrets):
    run(ELASTICSEARCH, elasticsearch, secrets)
    things = elasticsearch.things
    assert things["/_security/user/kibana_system/_password"]["password"] == PASSWORDS["es_kibana_password"]
    for user in ("filebeat_writer", "jaeger_writer", "grafana_reader", "retention"):
        secret = user.partition("_")[0]
        assert things[f"/_security/user/{user}"] == {
            "password": PASSWORDS[f"es_{secret}_password"],
            "roles": [user],
        }


def test_roles_may_what_their_program_does_and_no_more(elasticsearch, secrets):
    run(ELASTICSEARCH, elasticsearch, secrets)
    roles = {path.rpartition("/")[2]: body for path, body in elasticsearch.things.items() if "/role/" in path}
    assert [role["cluster"] for role in roles.values()] == [["monitor"]] * 4
    may = {name: (role["indices"][0]["names"], set(role["indices"][0]["privileges"])) for name, role in roles.items()}
    assert may["filebeat_writer"] == (["logs-vllm-*"], {"create_doc", "auto_configure"})
    assert may["grafana_reader"] == (["logs-vllm-*"], {"read", "view_index_metadata"})
    assert may["retention"] == (
        ["logs-vllm-default", "jaeger-span-*"],
        {"monitor", "view_index_metadata", "delete_index"},
    )
    names, privileges = may["jaeger_writer"]
    assert all(name.startswith("jaeger-") for name in names)
    assert privileges == {"read", "index", "auto_configure", "view_index_metadata"}


def test_settings_of_env_reach_the_policies(elasticsearch, secrets):
    said = run(ELASTICSEARCH, elasticsearch, secrets, LOGS_RETENTION="36h", LOGS_ROLLOVER_SIZE="500mb",
               TRACES_RETENTION_DAYS="14", TRACES_ROLLOVER_SIZE="2gb")  # fmt: skip
    assert said.returncode == 0, said.stderr
    logs = elasticsearch.things["/_ilm/policy/vllm-vitals-logs"]["policy"]["phases"]
    assert logs["hot"]["actions"]["rollover"] == {"max_age": "1d", "max_primary_shard_size": "500mb"}
    assert logs["delete"]["min_age"] == "36h"
    spans = elasticsearch.things["/_ilm/policy/vllm-vitals-spans"]["policy"]["phases"]
    assert spans["hot"]["actions"]["rollover"] == {"max_age": "1d", "max_primary_shard_size": "2gb"}
    assert spans["delete"]["min_age"] == "14d"
    daily = elasticsearch.things["/_ilm/policy/vllm-vitals-traces"]["policy"]["phases"]
    assert daily["delete"]["min_age"] == "15d", "the last entry of a day is kept for 14 days, too"
    assert "rollover" not in json.dumps(daily), "Jaeger makes these indices"
    failures = elasticsearch.things["/_index_template/vllm-vitals-logs"]["template"]["data_stream_options"]
    assert failures["failure_store"]["lifecycle"]["data_retention"] == "36h"
    assert "@" not in json.dumps([body for path, body in elasticsearch.things.items() if "/_ilm/" in path])


@pytest.mark.parametrize(
    ("name", "value"),
    [("LOGS_RETENTION", "7"), ("LOGS_RETENTION", "0d"), ("LOGS_RETENTION", '7d","x":"'), ("LOGS_ROLLOVER_SIZE", "10"),
     ("LOGS_ROLLOVER_SIZE", "10GB"), ("TRACES_RETENTION_DAYS", "7d"), ("TRACES_RETENTION_DAYS", "-1"),
     ("LOGS_RETENTION_SIZE", "30g"), ("LOGS_RETENTION_SIZE", "gb"), ("TRACES_RETENTION_SIZE", "1.5tb"),
     ("TRACES_RETENTION_SIZE", "9999999tb"), ("TRACES_ROLLOVER_SIZE", "1tb")],
)  # fmt: skip
def test_a_wrong_setting_is_told_before_anything_is_asked(elasticsearch, secrets, name, value):
    said = run(ELASTICSEARCH, elasticsearch, secrets, **{name: value})
    assert said.returncode == 1
    assert f".env: {name}: expected a number" in said.stderr
    assert value in said.stderr
    assert elasticsearch.calls == []


@pytest.mark.parametrize("what", ["LOGS", "TRACES"])
def test_a_rollover_that_leaves_next_to_nothing_to_delete_is_told(elasticsearch, secrets, what):
    sizes = {f"{what}_ROLLOVER_SIZE": "6gb", f"{what}_RETENTION_SIZE": "11gb"}
    said = run(ELASTICSEARCH, elasticsearch, secrets, **sizes)
    assert said.returncode == 1
    told = f".env: {what}_ROLLOVER_SIZE: expected at most half of {what}_RETENTION_SIZE (11gb), found '6gb'"
    assert told in said.stderr
    assert elasticsearch.calls == []
    assert run(ELASTICSEARCH, elasticsearch, secrets, **sizes | {f"{what}_RETENTION_SIZE": "12gb"}).returncode == 0


def test_again_changes_nothing_and_takes_new_fields(shell, elasticsearch, secrets):
    run(ELASTICSEARCH, elasticsearch, secrets, shell)
    first = json.dumps([elasticsearch.things, elasticsearch.indices], sort_keys=True)
    elasticsearch.calls.clear()
    said = run(ELASTICSEARCH, elasticsearch, secrets, shell)
    assert said.returncode == 0, said.stderr
    assert json.dumps([elasticsearch.things, elasticsearch.indices], sort_keys=True) == first
    assert ("PUT", "/_data_stream/logs-vllm-default") not in elasticsearch.calls
    assert ("PUT", "/logs-vllm-default/_mapping?write_index_only=true") in elasticsearch.calls


def test_jaeger_finds_indices_behind_its_aliases_and_those_of_a_day_from_before(elasticsearch, secrets):
    elasticsearch.indices["jaeger-span-2026-01-01"] = index_of(1, 10)
    assert run(ELASTICSEARCH, elasticsearch, secrets).returncode == 0
    aliases = {name: one["aliases"] for name, one in elasticsearch.indices.items()}
    assert aliases["jaeger-span-000001"] == {"jaeger-span-read": None, "jaeger-span-write": True}
    assert aliases["jaeger-service-000001"] == {"jaeger-service-read": None, "jaeger-service-write": True}
    assert aliases["jaeger-span-2026-01-01"] == {"jaeger-span-read": None}


def test_spans_that_rolled_over_are_left_as_they_are(elasticsearch, secrets):
    run(ELASTICSEARCH, elasticsearch, secrets)
    elasticsearch.indices["jaeger-span-000002"] = elasticsearch.indices.pop("jaeger-span-000001")
    assert run(ELASTICSEARCH, elasticsearch, secrets).returncode == 0
    assert "jaeger-span-000001" not in elasticsearch.indices


def test_a_type_that_changed_gets_a_new_index(elasticsearch, secrets):
    run(ELASTICSEARCH, elasticsearch, secrets)
    elasticsearch.conflicting = True
    said = run(ELASTICSEARCH, elasticsearch, secrets)
    assert said.returncode == 0, said.stderr
    assert ("POST", "/logs-vllm-default/_rollover?lazy=true") in elasticsearch.calls


def test_a_changed_password_is_put_again(elasticsearch, secrets):
    run(ELASTICSEARCH, elasticsearch, secrets)
    (secrets / "es_jaeger_password").write_text("another one\n")
    run(ELASTICSEARCH, elasticsearch, secrets)
    assert elasticsearch.things["/_security/user/jaeger_writer"]["password"] == "another one"


def test_waits_until_elasticsearch_is_ready(elasticsearch, secrets):
    elasticsearch.unready = 2
    assert run(ELASTICSEARCH, elasticsearch, secrets).returncode == 0


@pytest.mark.parametrize("script", [ELASTICSEARCH, KIBANA], ids=["elasticsearch", "kibana"])
def test_gives_up_at_its_deadline_and_says_what_it_heard(elasticsearch, kibana, secrets, script):
    store = elasticsearch if script == ELASTICSEARCH else kibana
    store.unready = 1000
    said = run(script, store, secrets, SETUP_DEADLINE="1")
    assert said.returncode == 1
    assert "is not ready after 1 s: 503: {" in said.stderr


@pytest.mark.parametrize("script", [ELASTICSEARCH, KIBANA], ids=["elasticsearch", "kibana"])
def test_nobody_there_is_told_with_the_address(secrets, script):
    said = run(script, Store("", url="http://127.0.0.1:9"), secrets, SETUP_DEADLINE="0")
    assert said.returncode == 1
    assert "no answer from http://127.0.0.1:9" in said.stderr


@pytest.mark.parametrize("script", [ELASTICSEARCH, KIBANA], ids=["elasticsearch", "kibana"])
def test_a_password_that_is_refused_is_told_as_such(elasticsearch, kibana, secrets, script):
    store = elasticsearch if script == ELASTICSEARCH else kibana
    store.password = "changed in Kibana"
    said = run(script, store, secrets, SETUP_DEADLINE="0")
    assert said.returncode == 1
    assert "refuses the password of user elastic" in said.stderr


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("/_security/user/kibana_system/_password", "user kibana_system"),
        ("/_security/role/jaeger_writer", "role jaeger_writer"),
        ("/_ingest/pipeline/vllm-vitals-logs", "pipeline for logs"),
        ("/_index_template/jaeger-span", "template of jaeger-span"),
        ("/_data_stream/logs-vllm-default", "data stream of logs"),
        ("/_alias/jaeger-span-write", "first index of jaeger-span"),
        ("/jaeger-service-*/_alias/jaeger-service-read", "what is read of jaeger-service"),
    ],
)
def test_a_step_that_fails_says_which_and_why_and_ends(elasticsearch, secrets, path, step):
    elasticsearch.faults[path] = (500, '{"error":\n"disk full"}')
    said = run(ELASTICSEARCH, elasticsearch, secrets)
    assert said.returncode == 1
    assert f"elasticsearch-setup: {step}:" in said.stderr
    assert '500: {"error": "disk full"}' in said.stderr
    assert elasticsearch.calls[-1][1] == path


def test_an_answer_that_repeats_a_password_is_not_shown(elasticsearch, secrets):
    password = PASSWORDS["es_kibana_password"]
    elasticsearch.faults["/_security/user/kibana_system/_password"] = (400, f"bad password {password}")
    said = run(ELASTICSEARCH, elasticsearch, secrets)
    assert said.returncode == 1
    assert "an answer that is not shown" in said.stderr


@pytest.mark.parametrize(("content", "why"), [(None, "found none"), ("", "found nothing"), ("a\tb", "control")])
def test_a_password_that_is_none_is_refused(elasticsearch, secrets, content, why):
    (secrets / "es_grafana_password").unlink()
    if content is not None:
        (secrets / "es_grafana_password").write_text(content)
    said = run(ELASTICSEARCH, elasticsearch, secrets)
    assert said.returncode == 1
    assert f"{secrets}/es_grafana_password" in said.stderr
    assert why in said.stderr


@pytest.mark.parametrize("script", [ELASTICSEARCH, KIBANA], ids=["elasticsearch", "kibana"])
def test_no_program_is_started_with_a_password(elasticsearch, kibana, secrets, tmp_path, script):
    """Every program that a script starts is one that first notes its arguments and environment."""
    log = tmp_path / "started"
    noted = tmp_path / "noted"
    noted.mkdir()
    for name in ("curl", "cat", "cut", "tr", "date", "mktemp", "rm", "dirname"):
        real = shutil.which(name)
        (noted / name).write_text(f'#!/bin/sh\n{{ echo "$0 $*"; env; }} >>{log}\nexec {real} "$@"\n')
        (noted / name).chmod(0o755)
    store = elasticsearch if script == ELASTICSEARCH else kibana
    assert run(script, store, secrets, path=f"{noted}:").returncode == 0
    started = log.read_text()
    assert "curl" in started
    assert not [password for password in PASSWORDS.values() if password in started or password[:9] in started]


def test_kibana_gets_all_objects_with_links_to_the_bundles_jaeger(shell, kibana, secrets):
    kibana.unready = 1
    said = run(KIBANA, kibana, secrets, shell, JAEGER_PUBLIC_URL="https://traces.example:16443/")
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[-1] == "Kibana is set up"
    view = kibana.things["objects"][0]["attributes"]
    url = json.loads(view["fieldFormatMap"])["trace.id"]["params"]["urlTemplate"]
    assert url == "https://traces.example:16443/trace/{{value}}"
    assert run(KIBANA, kibana, secrets, shell).returncode == 0


@pytest.mark.parametrize("address", ["traces.example", 'http://x"y', "http://x y"])
def test_an_address_that_is_none_is_refused(kibana, secrets, address):
    said = run(KIBANA, kibana, secrets, JAEGER_PUBLIC_URL=address)
    assert said.returncode == 1
    assert "JAEGER_URL: expected an address" in said.stderr
    assert kibana.calls == []


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [(200, '{"successCount":1,"success":false,"errors":[{"id":"x"}]}', "some were refused"),
     (413, '{"message":"Payload too large"}', "413")],
)  # fmt: skip
def test_objects_that_are_refused_are_told(kibana, secrets, status, answer, why):
    kibana.faults["/api/saved_objects/_import?overwrite=true"] = (status, answer)
    said = run(KIBANA, kibana, secrets)
    assert said.returncode == 1
    assert why in said.stderr


def test_compose_gives_the_scripts_what_they_read(compose_file):
    settings = (SHIPPED / "elasticsearch/settings.sh").read_text()
    for service, script in (
        ("elasticsearch-setup", ELASTICSEARCH),
        ("elasticsearch-retention", SHIPPED / "elasticsearch/retention.sh"),
        ("kibana-setup", KIBANA),
    ):
        text = script.read_text() + (settings if "settings.sh" in script.read_text() else "")
        for name in compose_file["services"][service]["environment"]:
            assert f"${{{name}:-" in text, name
        assert compose_file["services"][service]["entrypoint"] == ["/bin/bash", f"/setup/{script.name}"]

"""`bundle init` and `upgrade`: secrets, what stays, what is backed up, what is refused."""

import io
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml
from vllm_vitals.compose import env_file, watch
from vllm_vitals.compose.bundle import SHIPPED, init
from vllm_vitals.compose.docker import Service
from vllm_vitals.compose.passwords import PROXY_USERS, SECRETS, make_missing
from vllm_vitals.compose.source_archive import archive
from vllm_vitals.compose.watch import Calm, failing, pages


@pytest.fixture
def folder(fresh_bundle, tmp_path):
    return shutil.copytree(fresh_bundle, tmp_path / "bundle")


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_fresh_and_only_their_owner_reads_them(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    make_missing(other)
    for name in [*SECRETS, PROXY_USERS]:
        assert mode(folder / "secrets" / name) == 0o600
        if name != "hf_token":
            assert len((folder / "secrets" / name).read_text()) >= 32
            assert (folder / "secrets" / name).read_text() != (other / "secrets" / name).read_text()
    assert mode(folder / "secrets") == 0o700


def test_users_of_containers_can_read_all_else_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        init(tmp_path / "bundle")
    finally:
        os.umask(before)
    mounted = [tmp_path / "bundle" / name for name in ("prometheus", "alertmanager", "grafana", "exporter", "proxy")]
    for path in [one for top in mounted for one in (top, *top.rglob("*"))]:
        assert mode(path) & 0o055 == (0o055 if path.is_dir() or path.suffix == ".sh" else 0o044), path


def test_again_changes_nothing(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = init(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert {one.outcome for one in result.files} <= {"same", "yours"}
    assert result.secrets == ()


def test_an_upgrade_makes_the_secret_that_an_earlier_version_had_not(command, folder):
    kept = (folder / "secrets/es_elastic_password").read_text()
    (folder / "secrets/es_retention_password").unlink()
    code, output, _ = command("bundle", "upgrade", "--dir", folder, "--no-start")
    assert code == 0
    assert "1 new in" in output
    assert mode(folder / "secrets/es_retention_password") == 0o600
    assert (folder / "secrets/es_elastic_password").read_text() == kept


def test_what_differs_is_kept_beside_the_new_one(folder):
    (folder / "compose.yaml").write_text("mine")
    changed = [one for one in init(folder).files if one.backup]
    assert [one.path for one in changed] == ["compose.yaml"]
    assert changed[0].backup.read_text() == "mine"
    assert (folder / "compose.yaml").read_text() == (SHIPPED / "compose.yaml").read_text()


@pytest.mark.parametrize("name", ["exporter/vitals.yaml", "prometheus/targets/vllm-vitals.exporter.yml"])
def test_what_is_yours_to_edit_is_left_alone(folder, name):
    (folder / name).write_text("# mine\n")
    init(folder)
    assert (folder / name).read_text() == "# mine\n"


def test_your_settings_survive_and_new_versions_come():
    old = "A_IMAGE=a:1\nPORT=3000\n"
    new = "# pinned\nA_IMAGE=a:2\nPORT=3000\nMORE=x\n"
    mine = "A_IMAGE=a:1\nPORT=3333\nEXTRA=y\n"
    merged = env_file.settings(env_file.merged(new, old, mine))
    assert merged == {"A_IMAGE": "a:2", "PORT": "3333", "MORE": "x", "EXTRA": "y"}


def test_an_image_pinned_by_you_is_not_raised():
    assert env_file.settings(env_file.merged("A=a:2\n", "A=a:1\n", "A=mine:1\n")) == {"A": "mine:1"}


def test_rules_of_a_service_that_is_gone_are_put_away(folder):
    stale = folder / "prometheus/rules/old.rules.yml"
    stale.write_text("groups: []\n")
    gone = [one for one in init(folder).files if one.outcome == "gone"]
    assert [one.path for one in gone] == ["prometheus/rules/old.rules.yml"]
    assert not stale.exists()
    assert gone[0].backup.read_text() == "groups: []\n"


def test_profiles_decide_what_prometheus_scrapes(tmp_path):
    init(tmp_path / "b", profiles=["all", "demo"])
    targets = {path.name for path in (tmp_path / "b/prometheus/targets").iterdir()}
    assert targets == {"vllm-vitals.exporter.yml", "vllm-vitals.demo.yml", "node.exporter.yml", "collector.own.yml",
                       "span-metrics.collector.yml"}  # fmt: skip
    assert env_file.read(tmp_path / "b")["COMPOSE_PROFILES"] == "all,demo"


def test_engines_are_the_exporters(tmp_path):
    init(tmp_path / "b", engines=["llama=http://10.0.0.5:8000"])
    settings = yaml.safe_load((tmp_path / "b/exporter/vitals.yaml").read_text())
    assert settings["engines"] == ["llama=http://10.0.0.5:8000"]


def test_the_image_is_built_from_this_very_source():
    first, second = archive(), archive.__wrapped__()
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        names = set(tar.getnames())
    assert {"pyproject.toml", "cli.py", "exporter/sidecar.py", "exporter/web/index.html", "compose/traffic.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "compose/secrets"))]


def test_a_wrong_profile_is_refused_with_what_is_known(command, tmp_path):
    code, _, error = command("bundle", "init", tmp_path / "b", "--profile", "tracing")
    assert code == 2
    assert "expected one of metrics, traces, logs, all, demo, vllm, found 'tracing'" in error
    assert not (tmp_path / "b").exists()


def test_check_tells_of_loose_secrets_and_open_addresses(command, folder):
    (folder / "secrets/es_elastic_password").chmod(0o644)
    env = folder / ".env"
    env.write_text(env_file.with_settings(env.read_text(), {"BIND_ADDRESS": "0.0.0.0"}))
    code, output, _ = command("bundle", "check", "--dir", folder)
    assert code == 1
    assert "es_elastic_password: others can read it (mode 644)" in output
    assert "BIND_ADDRESS=0.0.0.0" in output


def test_check_tells_what_promtool_says(command, folder):
    config = folder / "prometheus/prometheus.yml"
    config.write_text(config.read_text().replace("scrape_interval", "scrape_intervall"))
    code, output, _ = command("bundle", "check", "--dir", folder)
    assert code == 1
    assert "scrape_intervall" in output


def test_check_finds_a_fresh_bundle_sound(command, folder):
    code, output, _ = command("bundle", "check", "--dir", folder)
    assert code == 0, output
    assert "[!!]" not in output


@pytest.mark.parametrize("name", ["up", "down", "status", "logs", "upgrade", "check", "smoke"])
def test_where_there_is_no_bundle_it_says_how_to_get_one(command, tmp_path, name):
    code, _, error = command("bundle", name, "--dir", tmp_path)
    assert code == 2
    assert "vllm-vitals bundle init" in error


def test_without_docker_it_says_how_to_get_it(command, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, error = command("bundle", "up", "--dir", folder)
    assert code == 2
    assert "docs.docker.com/engine/install" in error


def test_without_compose_it_says_how_to_get_it(command, folder, monkeypatch, tmp_path):
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    code, _, error = command("bundle", "status", "--dir", folder)
    assert code == 2
    assert "docs.docker.com/compose/install" in error


def test_unhealthy_is_a_failure_at_once_and_restarting_after_a_while():
    restarting, unhealthy = Service("a", "restarting", "", 1), Service("b", "running", "unhealthy", 0)
    since: dict[str, float] = {}
    assert [*failing([restarting, unhealthy], since, 0.0)] == [unhealthy]
    assert [*failing([restarting], since, 25.0)] == [restarting]


def test_a_service_that_cannot_come_up_is_told_while_compose_still_waits_for_it(monkeypatch):
    class Waiting:
        """Compose, for minutes, at a service that ends at each start."""

        folder = Path("/bundle")

        def start(self, *_, output):
            return subprocess.Popen(["sleep", "100"], stdout=output)

        def services(self):
            return [Service("prometheus", "restarting", "", 1), Service("grafana", "created", "", 0)]

        def logs(self, service):
            return f"{service}: unknown key"

    monkeypatch.setattr(watch, "_WHILE_OTHERS_WAIT", 0.5)
    said: list[str] = []
    assert watch.start(Waiting(), 50.0, said.append) is False
    assert "    prometheus: unknown key" in said
    assert not any("not healthy after" in line for line in said)


def test_up_is_done_when_all_is_well_at_two_looks():
    healthy, done = Service("prometheus", "running", "healthy", 0), Service("secrets", "exited", "", 0)
    calm = Calm()
    assert [calm.reached([healthy, done]) for _ in range(2)] == [False, True]
    assert not Calm().reached([])


def test_a_service_that_ends_again_and_again_is_never_taken_for_done():
    starting, ended = Service("prometheus", "running", "starting", 0), Service("prometheus", "restarting", "", 1)
    between = Service("prometheus", "running", "", 0)  # its state from before it ended, its health from after
    calm = Calm()
    assert not any(calm.reached([look]) for look in (between, ended, starting, between, between, between))


def test_pages_are_told_for_what_runs():
    lines = pages({"GRAFANA_PORT": "3333"}, [Service("grafana", "running", "healthy", 0)])
    assert len(lines) == 1
    assert "http://127.0.0.1:3333/" in lines[0]
    assert "secrets/grafana_admin_password" in lines[0]


def test_the_manifests_for_kubernetes_come_with_rules_and_dashboards(command, tmp_path):
    code, out, _ = command("bundle", "kubernetes", tmp_path / "k")
    assert code == 0
    assert "kubectl apply --server-side -k" in out
    assert (tmp_path / "k/base/rules/prometheusrule.yaml").is_file()
    assert (tmp_path / "k/base/dashboards/overview.json").is_file()

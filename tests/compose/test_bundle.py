"""`bundle init` and `upgrade`: secrets, what stays, what is backed up, what is refused."""

import io
import os
import re
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml
from vllm_vitals.compose import env_file, watch
from vllm_vitals.compose.bundle import SHIPPED, exporter_url, init
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
    wanted = {"pyproject.toml", "cli/main.py", "exporter/sidecar.py", "exporter/web/index.html", "compose/traffic.py"}
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests/", "compose/secrets"))]


def test_a_wrong_profile_is_refused_with_what_is_known(command, tmp_path):
    code, _, error = command("bundle", "init", tmp_path / "b", "--profile", "tracing")
    assert code == 2
    assert "expected one of metrics, traces, logs, all, demo, vllm, found 'tracing'" in error
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000", "http://0.0.0.0:8000", "http://127.8.9.1:8000",
     "llama=http://LOCALHOST.:8000", "http://a.localhost:8000", "http://[::ffff:127.0.0.1]:8000", "http://[::]:8000",
     "localhost:8000", "http://2130706433:8000", "http://127.1:8000", "http://0x7f.1:8000", "http://0:8000"],
)  # fmt: skip
def test_an_engine_that_no_container_reaches_is_told_with_one_that_works(command, tmp_path, address):
    folder = tmp_path / "b"
    code, out, _ = command("bundle", "init", folder, "--engine", address)
    assert code == 0
    advice = "write http://host.docker.internal:8000, and let vLLM listen on more than loopback"
    assert "is the exporter's own container" in out
    assert advice in out
    code, out, _ = command("bundle", "check", "--dir", folder)
    assert (code, advice in out) == (1, True)


@pytest.mark.parametrize("address", ["http://host.docker.internal:8000", "http://10.0.0.5:8000", "http://vllm:8000"])
def test_an_engine_elsewhere_is_fine(command, tmp_path, address):
    _, out, _ = command("bundle", "init", tmp_path / "b", "--engine", address)
    assert "own container" not in out
    assert "no engine is named" not in out


@pytest.mark.parametrize(
    ("profile", "told"),
    [("metrics", True), ("all", True), ("traces,logs", False), ("demo", False), ("all,vllm", False)],
)
def test_a_bundle_without_an_engine_says_so_where_that_matters(command, tmp_path, profile, told):
    _, out, _ = command("bundle", "init", tmp_path / "b", "--profile", profile)
    assert ("no engine is named" in out) == told
    code, out, _ = command("bundle", "check", "--dir", tmp_path / "b")
    assert (code, "no engine is named" in out) == (0, told)


def test_a_missing_docker_is_a_note_at_init_and_one_line_at_up(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, out, err = command("bundle", "init", tmp_path / "b")
    assert (code, err) == (0, "")
    assert "note      docker: expected Docker Engine, found none on PATH; see https://docs.docker.com" in out
    code, out, err = command("bundle", "up", "--dir", tmp_path / "b")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_init_into_a_file_says_that_it_is_one(command, tmp_path):
    (tmp_path / "vitals").write_text("mine")
    code, _, err = command("bundle", "init", "vitals")
    said = "DIR: expected a new folder or one with a bundle, found the file vitals; name another one"
    assert (code, err) == (2, f"vllm-vitals: {said}\n")
    assert (tmp_path / "vitals").read_text() == "mine"


def test_a_readme_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    init(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_the_links_of_alerts_lead_to_the_bundles_own_page(tmp_path):
    init(tmp_path / "b", profiles=["demo"])
    rules = (tmp_path / "b/prometheus/rules/vllm.rules.yml").read_text()
    assert "runbook_url: http://127.0.0.1:9837/docs/runbooks/" in rules
    env = tmp_path / "b/.env"
    env.write_text(env_file.with_settings(env.read_text(), {"COMPOSE_PROFILES": "metrics", "EXPORTER_PORT": "9999"}))
    init(tmp_path / "b")
    for path in [*tmp_path.glob("b/prometheus/rules/*.yml"), *tmp_path.glob("b/grafana/dashboards/*.json")]:
        found = set(re.findall(r"http://[^/]+(?=/docs/runbooks)", path.read_text()))
        assert found <= {"http://127.0.0.1:9999"}, path


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, "http://127.0.0.1:9836"),
        ({"COMPOSE_PROFILES": "demo", "DEMO_PORT": "1"}, "http://127.0.0.1:1"),
        ({"COMPOSE_PROFILES": "demo,metrics"}, "http://127.0.0.1:9836"),
        ({"BIND_ADDRESS": "0.0.0.0"}, "http://127.0.0.1:9836"),
        ({"BIND_ADDRESS": "10.0.0.5", "EXPORTER_PORT": "2"}, "http://10.0.0.5:2"),
        ({"COMPOSE_FILE": "compose.yaml:compose.tls.yaml", "SITE_NAME": "gpu1"}, "https://gpu1:9836"),
        ({"EXPORTER_URL": "https://x.example/v/", "EXPORTER_PORT": "2"}, "https://x.example/v"),
    ],
)
def test_where_a_browser_reaches_the_exporter(env, url):
    assert exporter_url(env) == url


def test_every_page_that_a_file_of_the_bundle_names_is_in_the_bundle(tmp_path):
    folder = tmp_path / "b"
    init(folder, profiles=["all", "demo", "vllm"])
    for path in folder.rglob("*"):
        if not path.is_file() or path.suffix in {".gz", ".png", ".svg", ".json"}:
            continue
        text = path.read_text()
        for named in re.findall(
            r"(?<![\w/:.-])(?:docs|alerts|benchmarks|compose|tests)/[\w./-]+\.(?:md|yaml|py)\b", text
        ):
            assert path.is_relative_to(folder / "docs") or (folder / named).is_file(), f"{path}: {named}"
        if path.suffix == ".md":
            for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
                assert "://" in link or (path.parent / link).exists(), f"{path}: {link}"


def test_the_readme_names_what_is_there(tmp_path):
    folder = tmp_path / "b"
    init(folder)
    text = (folder / "README.md").read_text()
    for named in re.findall(r"(?m)^\| `([^`]+)` \|", text):
        assert (folder / named).exists(), named
    for known in ("secrets/", "exporter/vitals.yaml", "sla.yaml", ".env"):
        assert f"| `{known}` |" in text


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

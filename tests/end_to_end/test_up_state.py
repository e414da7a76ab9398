"""Where `vllm-vitals up` keeps data, and what it leaves alone."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
from support.http import get
from support.programs import VITALS
from support.up import started, url_of

REAL, DEMO, MARKER = "vllm-vitals-up", "vllm-vitals-demo", "made-by-vllm-vitals"

pytestmark = pytest.mark.waits


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and text of everything in a folder that is not ours."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
        if not path.relative_to(folder).parts[:1] or path.relative_to(folder).parts[0] not in {REAL, DEMO}
    }


def refused(*arguments: object, env=None, cwd=None) -> str:
    """Return the one line of a start that ends with exit code 2."""
    ended = subprocess.run(
        [VITALS, "up", "--listen", "127.0.0.1:0", "--host", "off", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
        cwd=cwd,
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    [line] = ended.stderr.splitlines()
    return line


def test_a_folder_of_rules_and_configurations_is_left_as_it_is(run_up, tmp_path):
    project = tmp_path / "project"
    assert subprocess.run([VITALS, "rules", "build", "--out", project / "rules"], cwd=tmp_path).returncode == 0
    (project / "rules/my.rules.yml").write_text("groups: []\n")
    (project / "prometheus.yml").write_text("# Written by vllm-vitals at each start; no, by me\n")
    (project / "alertmanager.yml").write_text("route: {receiver: me}\n")
    (project / "prometheus.pid").write_text(f"{os.getpid()}\n")
    project.chmod(0o755)
    before = contents(project)
    up = run_up("--demo", state="project")
    started(up)
    assert up.interrupt() == 0, up.output
    assert contents(project) == before
    assert stat.S_IMODE((project / DEMO).stat().st_mode) == 0o700
    assert f"data, logs    {project / DEMO}" in up.output


def test_a_folder_that_is_not_ours_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / DEMO / "rules").mkdir(parents=True)
    (tmp_path / DEMO / "rules/my.rules.yml").write_text("groups: []\n")
    (tmp_path / DEMO).chmod(0o755)
    line = refused("--demo", "--state", tmp_path)
    assert line.startswith(
        "vllm-vitals: --state: expected an empty folder or one that vllm-vitals made, found rules in "
    )
    assert "Move them, or name another folder" in line
    assert [path.name for path in (tmp_path / DEMO).rglob("*")] == ["rules", "my.rules.yml"]
    assert stat.S_IMODE((tmp_path / DEMO).stat().st_mode) == 0o755
    assert "Name " + str(tmp_path) in refused("--state", make(tmp_path / REAL / MARKER).parent), "the folder above"


def make(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def test_routes_and_rules_that_the_user_wrote_are_never_lost(run_up, tmp_path):
    ours = tmp_path / "state" / REAL
    make(ours / MARKER)
    routes = ours / "alertmanager.yml"
    routes.write_text("route: {receiver: me}\nreceivers: [{name: me}]\n")
    make(ours / "rules/my.rules.yml").write_text("groups: []\n")
    gone = ours / "rules/gone.rules.yml"
    gone.write_text(
        "# Generated from the SLA by `vllm-vitals rules build`: edit that file, not this one.\ngroups: []\n"
    )
    elsewhere = tmp_path / "elsewhere.yml"
    elsewhere.write_text("mine\n")
    (ours / "prometheus.yml").symlink_to(elsewhere)
    sla = tmp_path / "sla.yaml"
    sla.write_text(subprocess.run([VITALS, "rules", "build", "--print-default"], capture_output=True, text=True).stdout)
    before = routes.read_text()

    up = run_up("--gpus", "off", "--sla", sla)
    started(up)
    assert f"routes        {ours / 'alertmanager.sla.yml'}" in up.output
    assert up.interrupt() == 0
    up = run_up("--gpus", "off")
    started(up)
    assert f"routes        {routes}" in up.output
    assert "receiver: me" in get(f"{url_of(up, 'alertmanager')}/api/v2/status").json["config"]["original"]
    assert up.interrupt() == 0
    assert routes.read_text() == before
    assert (ours / "rules/my.rules.yml").exists()
    assert not gone.exists(), "rules of a service that the SLA no longer has"
    assert elsewhere.read_text() == "mine\n"


def test_the_demo_leaves_nothing_in_the_data_of_the_machine(run_up):
    up = run_up("--demo")
    started(up)
    assert up.interrupt() == 0
    up = run_up("--gpus", "off", "--engine", "http://127.0.0.1:9")
    started(up)
    seen = get(f"{url_of(up, 'prometheus')}/api/v1/label/model_name/values").json["data"]
    assert seen == []
    assert up.interrupt() == 0


def test_data_of_an_older_release_stays_and_its_routes_go_on(run_up, tmp_path):
    state = tmp_path / "state"
    make(state / "prometheus/wal/00000000")
    (state / "prometheus.yml").write_text("# Written by vllm-vitals at each start; changes are lost.\nglobal: {}\n")
    (state / "alertmanager.yml").write_text("route: {receiver: me}\nreceivers: [{name: me}]\n")
    before = contents(state)
    up = run_up("--gpus", "off")
    started(up)
    assert f"note          an older release's data stays in {state}, unused" in up.output
    assert "receiver: me" in get(f"{url_of(up, 'alertmanager')}/api/v2/status").json["config"]["original"]
    assert up.interrupt() == 0
    assert contents(state) == before
    again = run_up("--gpus", "off")
    started(again)
    assert "older release" not in again.output, "said once"


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("file", "it is not a folder"),
        ("file/below", "Not a directory"),
        ("/proc/x", "No such file or directory"),
        ("x" * 300, "File name too long"),
        ("loop", "it is not a folder"),
        ("~nobody-of-this-name/x", "home"),
    ],
)
def test_a_named_folder_that_cannot_be_used_is_one_line_and_exit_code_2(tmp_path, where, why):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    line = refused("--demo", "--state", where, cwd=tmp_path)
    assert line.startswith("vllm-vitals: --state: expected a folder")
    assert why.lower() in line.lower()


def test_an_empty_name_is_not_the_folder_where_a_script_runs(tmp_path):
    ended = subprocess.run([VITALS, "up", "--demo", "--state", ""], capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "--state: expected a folder, found ''" in ended.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away and mounts")
def test_a_folder_of_another_user_a_full_disk_and_a_read_only_one_are_refused(tmp_path):
    foreign = make(tmp_path / "foreign" / DEMO / MARKER).parent
    os.chown(foreign, 1, 1)
    assert f"found that {foreign} belongs to " in refused("--demo", "--state", tmp_path / "foreign")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (disk / "full").write_bytes(b"x" * 61440)
        assert "No space left on device" in refused("--demo", "--state", disk)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert "Read-only file system" in refused("--demo", "--state", disk / "new")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"XDG_STATE_HOME": "/proc/x"}, "found /proc/x"),
        ({"HOME": "/dev/null"}, "Not a directory"),
        ({"HOME": "here"}, "expected HOME to be an absolute path, found 'here'"),
    ],
)
def test_without_a_usable_default_folder_the_page_runs_and_says_why_there_is_no_prometheus(run_up, variables, why):
    clean = {name: value for name, value in os.environ.items() if name != "XDG_STATE_HOME"}
    up = run_up("--demo", state=None, env={**clean, **variables})
    started(up)
    [line] = [line for line in up.output.splitlines() if line.startswith("prometheus ")]
    assert line.startswith("prometheus    not started: expected ")
    assert why in line
    assert "--state DIR" in line
    assert "Traceback" not in up.output
    assert up.get("/metrics").status == 200
    assert up.interrupt() == 0


def test_no_folder_is_needed_where_no_prometheus_is_installed(run_up):
    up = run_up("--demo", state="/proc/x", env={**os.environ, "PATH": "/nowhere"})
    started(up)
    assert up.get("/metrics").status == 200
    assert up.interrupt() == 0


def test_the_help_names_the_default_and_what_is_touched():
    text = " ".join(subprocess.run([VITALS, "up", "--help"], capture_output=True, text=True).stdout.split())
    assert "DIR/vllm-vitals-up" in text
    assert "~/.local/state/vllm-vitals" in text

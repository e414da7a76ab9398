"""The script `./vitals`: makes .venv, heals it, and gets the CPU build of torch. Real venv and pip, a small package."""

import os
import pty
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from support.http import free_port
from support.waiting import wait_for

ROOT = Path(__file__).parents[1]
TORCH = ROOT / "tests/vllm_cpu/torch.sh"
WORDS = "its folder is"

pytestmark = pytest.mark.waits


PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "vllm-vitals"
version = "0"
"""
# An editable wheel without anything from a package index.
BACKEND = """
import os, zipfile
def build_editable(folder, settings=None, metadata=None):
    name = "vllm_vitals-0-py3-none-any.whl"
    info = "vllm_vitals-0.dist-info/"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("small.pth", os.getcwd())
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: vllm-vitals\\nVersion: 0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "entry_points.txt", "[console_scripts]\\nvllm-vitals = small:main\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
COMMAND = f"""
import os, pathlib, sys
def main():
    print("{WORDS}", pathlib.Path(__file__).parent, sys.argv[1:], os.environ["VLLM_VITALS_COMMAND"])
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with the script and a package that has our command: it prints where its code is."""
    folder = tmp_path / "check out"
    folder.mkdir()
    shutil.copy2(ROOT / "vitals", folder)
    for name, text in (("pyproject.toml", PROJECT), ("backend.py", BACKEND), ("small.py", COMMAND)):
        (folder / name).write_text(text)
    return folder


def run(folder, *arguments, cwd=None):
    command = [folder / "vitals", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=cwd, env=clean(PYTHON=sys.executable)
    )


def clean(**more):
    return {k: v for k, v in os.environ.items() if not k.startswith("VLLM_VITALS_")} | more


def works(folder, done) -> bool:
    assert done.returncode == 0, done.stderr
    assert f"{WORDS} {folder} ['version']" in done.stdout
    return True


def test_a_command_runs_in_the_folder_of_the_user_and_is_named_as_it_was_called(checkout, tmp_path):
    done = run(checkout, "version", cwd=tmp_path)
    assert works(checkout, done)
    assert done.stdout.strip().endswith(f"{checkout}/vitals")
    again = run(checkout, "version", cwd=tmp_path)
    assert works(checkout, again)
    assert again.stderr == "", "nothing is made or installed a second time"


def test_ctrl_c_while_the_environment_is_made_is_healed_by_the_next_call(checkout):
    main, terminal = pty.openpty()
    command = ["setsid", "--ctty", "--wait", checkout / "vitals", "version"]
    env = clean(PYTHON=sys.executable)
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=env)
    os.close(terminal)
    wait_for((checkout / ".venv/bin/python").exists, ".venv's Python", pause=0.001)
    os.write(main, b"\x03")
    assert process.wait(60) == 130
    said = os.read(main, 65536).decode()
    os.close(main)
    assert "stopped. Run it again" in said
    assert "Traceback" not in said
    assert not (checkout / ".venv/bin/pip").exists(), "it was interrupted before pip was there"
    done = run(checkout, "version")
    assert works(checkout, done)
    assert "making it anew" in done.stderr


def test_a_link_to_the_script_leads_to_its_checkout(checkout, tmp_path):
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin/vitals"
    link.symlink_to(checkout / "vitals")
    assert works(checkout, run(link.parent, "version"))
    assert os.listdir(link.parent) == ["vitals"]


def test_a_moved_and_a_copied_checkout_run_their_own_code(checkout, tmp_path):
    assert works(checkout, run(checkout, "version"))
    copy, moved = tmp_path / "copy", tmp_path / "moved"
    shutil.copytree(checkout, copy, symlinks=True)
    assert works(copy, run(copy, "version"))
    checkout.rename(moved)
    done = run(moved, "version")
    assert works(moved, done)
    assert "from another folder" in done.stderr


def test_an_environment_of_the_users_that_does_not_work_is_put_aside_not_deleted(checkout):
    theirs = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", theirs], check=True)
    (theirs / "notes").write_text("mine")
    assert works(checkout, run(checkout, "version"))
    (aside,) = checkout.glob(".venv.broken-*")
    assert (aside / "notes").read_text() == "mine"


# --- torch ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def indices(tmp_path):
    """Two package indices on loopback: `pypi` has a torch, `cpu` its CPU build."""
    for index, version in (("pypi", "2.13.0"), ("cpu", "2.13.0+cpu")):
        folder = tmp_path / index / "torch"
        folder.mkdir(parents=True)
        wheel = f"torch-{version}-py3-none-any.whl"
        (folder / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel.replace("+", "%2B")}">{wheel}</a>')
        with zipfile.ZipFile(folder / wheel, "w") as archive:
            info = f"torch-{version}.dist-info"
            archive.writestr("torch.py", "")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
    handler = partial(_Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin/python"


def torch(python, pypi, cpu):
    """Run the script where pip knows one index only; returns (exit code, what it said, whether it is installed)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": pypi, "TORCH_CPU_INDEX": cpu, "no_proxy": "127.0.0.1"}
    subprocess.run([python, "-m", "pip", "-q", "uninstall", "-y", "torch"], env=env, check=True, capture_output=True)
    done = subprocess.run([TORCH, python, "torch==2.13.0+cpu"], env=env, capture_output=True, text=True, timeout=120)
    found = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, "torch==2.13.0+cpu" in found.stdout


def test_pytorchs_index_is_added_where_pip_finds_no_cpu_build(python, indices):
    code, words, installed = torch(python, f"{indices}/pypi", f"{indices}/cpu")
    assert (code, installed) == (0, True), words
    assert f"trying {indices}/cpu" in words


def test_pips_own_settings_come_first(python, indices):
    code, words, installed = torch(python, f"{indices}/cpu", "http://127.0.0.1:1/never-asked")
    assert (code, installed) == (0, True), words
    assert "trying" not in words


def test_where_no_index_has_it_the_script_says_what_to_set(python, indices):
    code, words, installed = torch(python, f"{indices}/pypi", f"http://127.0.0.1:{free_port()}/cpu")
    assert (code, installed) == (1, False)
    assert "No CPU build of torch to be had" in words
    assert "PIP_EXTRA_INDEX_URL" in words
    assert "Traceback" not in words


def test_without_vllm_its_tests_are_left_out_with_the_reason_and_the_others_run():
    env = {**os.environ, "VITALS_WITHOUT_VLLM": "no torch today"}
    files = ["tests/end_to_end/test_doctor_engine_env.py", "tests/end_to_end/test_real_vllm.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "needs a real vLLM: no torch today" in done.stdout
    assert "2 passed" in done.stdout

"""The package as somebody gets it who has neither a checkout nor an extra."""

import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]


def tracked_files() -> list[PurePosixPath]:
    """Return what git tracks, and what is about to be added, as far as it is there: paths from the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    names = filter(None, listed.stdout.decode().split("\0"))
    return [PurePosixPath(name) for name in names if (ROOT / name).is_file()]


def copy_of_the_tree(folder: Path) -> Path:
    """Copy what git tracks, and what is about to be added, as it is now; returns the folder."""
    for name in tracked_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
        (folder / name).chmod((ROOT / name).stat().st_mode)
    return folder


@pytest.fixture(scope="session")
def plain_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in a fresh environment that holds our wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("plain")
    source = copy_of_the_tree(folder / "source")
    pip = [folder / "v/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _succeed(sys.executable, "-m", "venv", folder / "v")
    _succeed(*pip, "wheel", "--no-deps", "--wheel-dir", folder, source)
    _succeed(*pip, "install", *folder.glob("*.whl"))
    return folder / "v/bin/vllm-vitals"


def _succeed(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

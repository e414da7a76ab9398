"""CONTRIBUTING's map of the tree is the tree, and so is the list of packages."""

import re
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from support.plain_install import tracked_files

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
MAP = re.search(r"(?ms)^## Where things are$(.*?)^## ", PAGE)[1]
ROWS = [re.split(r" *\| *", line.strip("| ")) for line in MAP.splitlines() if line.startswith("| `")]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def modules() -> list[PurePosixPath]:
    return [path for path in tracked_files() if path.suffix == ".py" and len(path.parts) > 1]


def test_every_folder_with_python_modules_has_a_row():
    named = {span.rstrip("/") for row in ROWS for span in spans(row[0])}
    assert not {str(path.parent) for path in modules()} - named


def test_no_folder_has_two_rows():
    named = [span for row in ROWS for span in spans(row[0])]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_path_of_a_row_exists(row):
    """The first cell names folders; what the others name lies in one of them or is a path from the root."""
    rooms = spans(row[0])
    missing = [room for room in rooms if not (room.endswith("/") and (ROOT / room).is_dir())]
    for span in spans(" ".join(row[1:])):
        is_path = re.fullmatch(r"[\w./-]+(/|\.\w+)|Dockerfile", span)
        if is_path and not any((folder / span).exists() for folder in (ROOT, *(ROOT / room for room in rooms))):
            missing.append(span)
    assert not missing


def test_every_path_below_the_tables_exists():
    text = MAP[MAP.rindex("\n|") :]
    paths = re.findall(r"`([\w.]+/[\w./]+)`", text)
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_packages_of_pyproject_are_the_packages_of_the_tree():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in tracked_files() if path.name == "__init__.py" and path.parts[0] != "tests"}
    found = {".".join(("vllm_vitals", *folder.parts)) for folder in folders}
    assert listed == sorted(listed)
    assert set(listed) == found


def test_every_module_that_is_imported_lies_in_a_package():
    """A folder whose modules are imported but that lacks `__init__.py` would be missing from the wheel."""
    scripts = {"benchmarks", "docs", "tests"}  # run by their path, not part of the package
    apart = {"compose/exporter"}  # copied into an image
    folders = {path.parent for path in modules() if path.parts[0] not in scripts} - {PurePosixPath(p) for p in apart}
    assert not [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()]


def test_the_commands_of_contributing_name_files_that_exist():
    named = re.findall(r"\.venv/bin/python ((?:docs|benchmarks|tests)/\S+?\.py)", PAGE)
    assert named
    assert not [path for path in named if not (ROOT / path).is_file()]


def test_the_script_runs_every_checker_before_the_tests():
    script = (ROOT / "vitals").read_text()
    order = [script.index(f'"$venv/bin/{program}"') for program in ("ruff", "mypy", "lint-imports")]
    assert order == sorted(order)
    assert order[-1] < script.index('"$venv/bin/python" -m pytest "$@"')

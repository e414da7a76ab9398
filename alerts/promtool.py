"""Runs an SLA's generated unit tests with promtool, file by file, as many at once as there are processors."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..settings.scalars import ConfigError
from .rule_tests import test_files
from .sla import Sla

_DEADLINE: Final = 600.0
_LINES: Final = 40
# Go collects garbage whenever its heap doubles, and promtool's stays small: a third of its time. 200 MiB instead of 70.
_GARBAGE: Final = {"GOGC": "800"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What promtool said of one file.

    Attributes:
        name: of the file.
        tests: how many it holds.
        failure: promtool's words, empty when all passed.
        seconds: that it took.
    """

    name: str
    tests: int
    failure: str
    seconds: float


def promtool() -> str:
    """Return promtool's path; raises ConfigError where it is not installed."""
    found = shutil.which("promtool")
    if found is None:
        raise ConfigError(
            "promtool: expected it on PATH, found none; it comes with Prometheus (apt install prometheus)"
        )
    return found


def run_tests(sla: Sla, folder: Path, program: str | None = None) -> Iterator[Outcome]:
    """Write an SLA's tests into a folder, run them, and yield what came of each file as it ends.

    Args:
        sla: whose alerts are tested.
        folder: for promtool's files.
        program: promtool; None looks on PATH and raises ConfigError where there is none.
    """
    program = program or promtool()
    files = test_files(sla)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    tests = [name for name in files if name.endswith(".test.yml")]
    tests.sort(key=lambda name: len(files[name]), reverse=True)  # the dearest first, so that none is left at the end
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for future in as_completed([pool.submit(_run, program, folder / name) for name in tests]):
            yield future.result()


def _run(program: str, path: Path) -> Outcome:
    begun = time.monotonic()
    count = len(re.findall(r"^\s*- name: ", path.read_text(encoding="utf-8"), re.MULTILINE))
    try:
        done = subprocess.run(
            [program, "test", "rules", path.name],
            cwd=path.parent,
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
            env={**_GARBAGE, **os.environ},
        )
    except subprocess.TimeoutExpired:
        return Outcome(path.name, count, f"no answer within {_DEADLINE:g} s", _DEADLINE)
    words = "\n".join((done.stdout + done.stderr).splitlines()[:_LINES]) if done.returncode else ""
    return Outcome(path.name, count, words, time.monotonic() - begun)


def said_wrong(sla_files: dict[str, str], folder: Path) -> Iterator[str]:
    """Yield what promtool and amtool, where they are installed, say against generated files in a folder."""
    rules = [name for name in sla_files if name.endswith(".rules.yml")]
    commands = [("promtool", ["check", "rules", *rules])]
    commands += [("amtool", ["check-config", name]) for name in sla_files if name == "alertmanager.yml"]
    for program, arguments in commands:
        path = shutil.which(program)
        if path is None:
            continue
        done = subprocess.run(
            [path, *arguments], cwd=folder, capture_output=True, text=True, timeout=_DEADLINE, check=False
        )
        if done.returncode:
            yield f"{program} {' '.join(arguments)}:\n{(done.stderr or done.stdout).strip()}"

"""Programs that an `up` which was killed left behind: they hold the lock on the data that we want to use."""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

_VARIABLE: Final = "VLLM_VITALS_COMPANION_IN"
_PATIENCE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05


def environment(folder: Path) -> Mapping[str, str]:
    """Return the environment in which we start a program, so that a later `up` knows it as one of this folder."""
    return {**os.environ, _VARIABLE: str(folder)}


def end_leftovers(folder: Path) -> list[int]:
    """End what an earlier `up` started for a folder that we now hold, and return the process ids.

    Such a program carries our mark in its environment and names the folder on its command line. A process that merely
    has the id of one, or that a person started on the same data, has not; the `up` that started it is gone, since the
    folder's lock was free.
    """
    found = [process for process in psutil.process_iter() if _is_ours(process, folder)]
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while any(map(_lives, found)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for process in found:
        if _lives(process):
            with contextlib.suppress(psutil.Error):
                process.kill()
    return [process.pid for process in found]


def users_of(data: Path) -> list[int]:
    """Return the ids of processes that name this folder on their command line: two on the same data would ruin it.

    Prometheus' own lock does not help: Debian's takes none unless it is told to.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(str(data) in {argument, argument.partition("=")[2]} for argument in process.cmdline()):
                found.append(process.pid)
    return found


def _is_ours(process: psutil.Process, folder: Path) -> bool:
    try:
        if process.uids().effective != os.geteuid() or process.environ().get(_VARIABLE) != str(folder):
            return False
        return any(argument.partition("=")[2].startswith(f"{folder}/") for argument in process.cmdline())
    except (psutil.Error, OSError):  # it ended, or does not let itself be looked at
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False

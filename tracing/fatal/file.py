"""The small file that remembers what ended engines: the server dies with its engine, its counts must not.

JSON lines, one per report, appended with a single write by whichever process of a server sees it. Several processes
report one end, so the reader counts: an end once per server's life and kind. Old lives are folded into totals.
"""

import contextlib
import fcntl
import json
import os
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from .kinds import BY_NAME, KINDS

FILE: Final = "fatal.jsonl"
SAME_EVENT_SECONDS: Final = 60.0  # of a kind that an engine survives: reports closer together tell of one event
_FOLD_BYTES: Final = 32 * 1024
_READ_BYTES: Final = 4 * 1024 * 1024
_KEPT: Final = 50  # of the last reports, whose lives are not folded
_LOCK_TRIES: Final = 10
_LOCK_PAUSE: Final = 0.005  # seconds; folding takes a few ms, and a report is worth more than order


def state_dir(configured: Path | None) -> Path:
    """Return where the file lies: as configured, else in $XDG_STATE_HOME, else in /tmp."""
    if configured is not None:
        return configured
    if home := os.environ.get("XDG_STATE_HOME"):
        return Path(home) / "vllm-vitals"
    return Path(tempfile.gettempdir()) / f"vllm-vitals-{os.getuid()}"


def prepare(state: Path) -> None:
    """Make the directory, fold the file where it has grown; raises OSError for a directory that others can write."""
    with contextlib.suppress(FileExistsError):
        state.mkdir(mode=0o700, parents=True)
    status = state.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{state} is no directory")
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{state} belongs to somebody else, or others can write it")
    with contextlib.suppress(FileNotFoundError):
        if (state / FILE).lstat().st_size > _FOLD_BYTES:
            _fold(state / FILE)


def append(state: Path, report: Mapping[str, Any]) -> None:
    """Append a report; raises OSError."""
    line = json.dumps(report, separators=(",", ":")).encode() + b"\n"
    with _opened(state / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, fcntl.LOCK_SH) as file:
        os.write(file, line)


def reports(state: Path) -> list[dict[str, Any]]:
    """Return the file's lines, as far as they can be read; empty where there is no file."""
    try:
        file = os.open(state / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return []
    with os.fdopen(file, "rb") as stream:
        return list(_parsed(stream.read(_READ_BYTES)))


def counts(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how often each kind happened; all kinds are there, so that a first end is an increase."""
    number: Counter[str] = Counter({kind.name: 0 for kind in KINDS})
    begun: dict[tuple[str, str], float] = {}  # (life, kind) -> when its last counted event was reported first
    for line in lines:
        name = line["kind"]
        if "total" in line:
            number[name] += line["total"]
            continue
        event, at = (line["life"], name), line["time"]
        before = begun.get(event)
        if before is None or (not BY_NAME[name].ends_engine and at - before > SAME_EVENT_SECONDS):
            begun[event] = at
            number[name] += 1
    return dict(number)


def _parsed(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield what we wrote; a torn line is passed by."""
    for text in data.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            line = json.loads(text)
            if line["kind"] not in BY_NAME:
                continue
            if isinstance(line.get("total"), int) or (isinstance(line["life"], str) and float(line["time"]) >= 0):
                yield line


def _fold(path: Path) -> None:
    """Write the file anew with totals for all but the latest lives."""
    with _opened(path, os.O_RDONLY, fcntl.LOCK_EX) as file:
        lines = list(_parsed(os.pread(file, _READ_BYTES, 0)))
        single = [line for line in lines if "total" not in line]
        kept_lives = {line["life"] for line in single[-_KEPT:]}
        kept = [line for line in single if line["life"] in kept_lives]
        totals = counts(line for line in lines if "total" in line or line["life"] not in kept_lives)
        folded = [{"kind": name, "total": total} for name, total in totals.items() if total]
        # Of one life, later reports of an end add nothing.
        kept = _first_reports(kept)
        new = path.with_name(f"{FILE}.{os.getpid()}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as stream:
            stream.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in (*folded, *kept))
        new.replace(path)


def _first_reports(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: set[tuple[str, str]] = set()
    kept = []
    for line in lines:
        event = (line["life"], line["kind"])
        if event not in seen or not BY_NAME[line["kind"]].ends_engine:
            kept.append(line)
        seen.add(event)
    return kept


@contextmanager
def _opened(path: Path, flags: int, lock: int) -> Iterator[int]:
    """Open the file that has the name now, locked against folding where that can be had without waiting long."""
    for _ in range(_LOCK_TRIES):
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            locked = _locked(file, lock)
            if not _has_name(file, path):
                continue  # folded between open and lock
            if not locked and lock == fcntl.LOCK_EX:
                raise BlockingIOError(f"{path} is in use")
            yield file
            return
        finally:
            os.close(file)
    raise BlockingIOError(f"{path} is replaced all the time")


def _locked(file: int, lock: int) -> bool:
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(file, lock | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE)
    return False


def _has_name(file: int, path: Path) -> bool:
    try:
        there, ours = path.lstat(), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)

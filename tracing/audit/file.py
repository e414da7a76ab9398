"""One chain of audit files: locking, appending, rotation, and finding the chain's end again after a restart or a crash.

Several API server processes never share a file: who finds FILE locked takes `FILE`'s name with -1, -2, ... before the
suffix (`audit-1.jsonl`), which is a chain of its own. The lock is on `FILE.lock`, since FILE itself is renamed.
"""

import fcntl
import hashlib
import logging
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from .chain import Kind, Sealed, canonical, seal, unseal

_SLOTS: Final = 64
_TAIL_BYTES: Final = 1024 * 1024
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_log: Final = logging.getLogger("vllm_vitals")


class Tail(NamedTuple):
    """The end of a file.

    Attributes:
        last: the last record as it was sealed; None where there is none.
        torn: bytes behind the last newline, left by a crash.
        strange: whether whole lines behind `last` are not as they were sealed.
        unended: `last` has no newline behind it.
    """

    last: Sealed | None
    torn: bytes
    strange: bool
    unended: bool


def read_tail(data: bytes, key: bytes) -> Tail:
    """Return what stands at the end of a file's bytes."""
    *whole, torn = data.split(b"\n")
    if torn and (last := unseal(torn, key)) is not None:
        return Tail(last, b"", strange=False, unended=True)
    for back, line in enumerate(reversed(whole)):
        if (last := unseal(line, key)) is not None:
            return Tail(last, torn, strange=back > 0, unended=False)
    return Tail(None, torn, strange=bool(whole), unended=False)


class AuditFile:
    """Appends sealed records; every method but `close` raises OSError when the disk does not take them."""

    def __init__(
        self, path: Path, key: bytes, fsync: Literal["always", "interval", "never"], max_bytes: int, keep_files: int
    ) -> None:
        self._asked = path
        self._key = key
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._keep_files = max(1, keep_files)
        self.path = path
        self.last: Sealed | None = None
        self._lock: int | None = None
        self._file: int | None = None
        self._size = 0
        self._first_seq = -1
        self._unsynced = False

    @property
    def is_open(self) -> bool:
        """Whether records can be appended."""
        return self._file is not None

    def open(self) -> None:
        """Open or create the file and find the chain's end."""
        if self._lock is None:
            self._take_slot()
        try:
            self._open_file()
        except BaseException:
            self._close_file()
            raise

    def append(self, values: Mapping[str, Any], kind: Kind = "request") -> None:
        """Write a record behind the last one, in a new file where this one is full."""
        record = self._sealed(values, kind)
        if self._size + len(_line(record)) > self._max_bytes and record.seq > self._first_seq + 1:
            self._rotate()
            record = self._sealed(values, kind)
        self._write(_line(record))
        self.last = record
        if self._fsync == "always":
            self.sync()

    def sync(self) -> None:
        """Bring what was written to the disk."""
        if self._unsynced and self._file is not None and self._fsync != "never":
            os.fsync(self._file)
            self._unsynced = False

    def is_replaced(self) -> bool:
        """Whether somebody moved or removed the file under us."""
        if self._file is None:
            return False
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return True
        ours = os.fstat(self._file)
        return (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev)

    def close(self) -> None:
        """Close file and lock; a child process that does so leaves its parent's lock alone."""
        self._close_file()
        self.last = None  # whoever takes the lock meanwhile moves the chain's end
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def reopen(self) -> None:
        """Open the file again by its name; the chain goes on."""
        self._close_file()
        self.open()

    def _take_slot(self) -> None:
        for number in range(_SLOTS):
            name = self._asked.name if not number else f"{self._asked.stem}-{number}{self._asked.suffix}"
            path = self._asked.with_name(name)
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            except BaseException:
                os.close(lock)
                raise
            self.path, self._lock = path, lock
            return
        raise BlockingIOError(f"{_SLOTS} processes write beside {self._asked}")

    def _open_file(self) -> None:
        try:
            self._file = os.open(self.path, _FLAGS)
        except FileNotFoundError:
            self._create()
            return
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{self.path} is no regular file")
        if stat.S_IMODE(status.st_mode) != 0o600:
            os.fchmod(self._file, 0o600)
        self._size = status.st_size
        if not self._size:
            self._begin()
            return
        tail = read_tail(self._read_end(self._file, self._size), self._key)
        if tail.strange:
            _log.error("%s: the last lines are not as they were written: run vllm-vitals audit verify", self.path)
        if self.last is None:
            if tail.last is None:
                _log.error("%s: no record was sealed with this key: it is put aside, a new chain begins", self.path)
                self._close_file()
                self._shift()
                self._create()
                return
            self.last = tail.last
        self._first_seq = -1  # a file found may be rotated as soon as it is full
        if tail.unended:
            self._write(b"\n")
        elif tail.torn:
            named = {"time": now(), "torn_bytes": len(tail.torn), "torn_sha256": hashlib.sha256(tail.torn).hexdigest()}
            record = self._sealed(named, "repair")
            self._write(b"\n" + _line(record))
            self.last = record
            _log.warning("%s: a crash tore the last line; closed off by repair record %d", self.path, record.seq)

    def _create(self) -> None:
        if self.last is None:
            self.last = self._last_of_rotated()
        self._file = os.open(self.path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        self._size = 0
        self._begin()
        if self._fsync != "never":
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _begin(self) -> None:
        """Write the head that ties a file to the one before."""
        if self.last is None:
            self.last = self._last_of_rotated()
        before = {} if self.last is None else {"previous_seq": self.last.seq, "previous_hash": self.last.hash}
        record = self._sealed({"time": now(), "pid": os.getpid(), **before}, "head")
        self._write(_line(record))
        self.last = record
        self._first_seq = record.seq

    def _last_of_rotated(self) -> Sealed | None:
        """Return the chain's end in the youngest rotated file: a crash can come between two steps of a rotation."""
        for number in range(1, self._keep_files + 2):
            try:
                file = os.open(f"{self.path}.{number}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError:
                continue
            try:
                return read_tail(self._read_end(file, os.fstat(file).st_size), self._key).last
            finally:
                os.close(file)
        return None

    def _rotate(self) -> None:
        self.sync()
        self._close_file()
        self._shift()
        self._create()

    def _shift(self) -> None:
        """Rename FILE to FILE.1, FILE.1 to FILE.2 and so on; what comes behind the last one to keep is gone."""
        names = [self.path, *(Path(f"{self.path}.{number}") for number in range(1, self._keep_files + 1))]
        for source, target in reversed(list(pairwise(names))):
            if os.path.lexists(source):
                source.replace(target)

    def _sealed(self, values: Mapping[str, Any], kind: Kind) -> Sealed:
        return seal(values, kind, self.last, self._key)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            raise OSError(f"{self.path} is not open")
        try:
            _write_all(self._file, data)
        except OSError:
            try:
                os.ftruncate(self._file, self._size)  # half a record would be torn
            finally:
                self._close_file()
            raise
        self._size += len(data)
        self._unsynced = True

    def _read_end(self, file: int, size: int) -> bytes:
        begin = max(0, size - _TAIL_BYTES)
        data = os.pread(file, _TAIL_BYTES, begin)
        return data.partition(b"\n")[2] if begin else data

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _write_all(file: int, data: bytes) -> None:
    while data:
        written = os.write(file, data)  # a full disk takes a part; the next call says what is wrong
        if not written:
            raise OSError("nothing was written")
        data = data[written:]


def _line(record: Sealed) -> bytes:
    return canonical(record.values) + b"\n"


def now() -> str:
    """Return the time as RFC 3339 UTC with milliseconds."""
    return utc(datetime.now(UTC).timestamp())


def utc(seconds: float) -> str:
    """Return Unix seconds as RFC 3339 UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

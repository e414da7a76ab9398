"""Whether audit files are as they were written: what was edited, removed, re-ordered, duplicated or torn, and where.

Each record proves itself, since only the key's owner can seal it; number and previous hash prove its place. The end of
the last file proves nothing: who cuts records off there is found only by a head that was noted elsewhere (`expect`).
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

from ...settings.scalars import ConfigError
from .chain import GENESIS, Sealed, claimed_seq, unseal

What = Literal["edited", "removed", "re-ordered", "duplicated", "torn", "foreign", "unlinked", "truncated"]
_HEAD: Final = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")
_ROTATED: Final = re.compile(r"(.+)\.([0-9]+)")


class Head(NamedTuple):
    """A record's number and hash: what is noted elsewhere to find a truncated end."""

    seq: int
    hash: str

    @classmethod
    def read(cls, text: str, place: str) -> Self:
        """Return the head that `SEQ:HASH` says; raises ConfigError."""
        match = _HEAD.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"{place}: expected SEQ:HASH as `audit verify` prints it, found {text!r}")
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


class Problem(NamedTuple):
    """Something that is not as it was written; `seq` is None where a line stands that is no record of this chain."""

    file: Path
    line: int
    seq: int | None
    what: What
    detail: str

    def __str__(self) -> str:
        number = "" if self.seq is None else f"seq {self.seq}: "
        return f"{self.file}:{self.line}: {number}{self.what}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a chain of files holds; `first` and `head` are None where no record was good."""

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    records: int
    first: Head | None
    head: Head | None

    @property
    def intact(self) -> bool:
        """Whether there is a chain and nothing is wrong with it."""
        return not self.problems and self.head is not None

    @property
    def verdict(self) -> str:
        """What is to be said of the chain in a few words.

        A writer begins each file with its head record, so a file without a byte was never written to or was emptied:
        which of both, nothing here can prove, and that is not called intact.
        """
        if self.intact:
            return "intact"
        if not self.problems:
            return "EMPTY: nothing was ever written to it, or somebody emptied it"
        return f"BROKEN ({len(self.problems)} problem{'' if len(self.problems) == 1 else 's'})"


class _Broken(NamedTuple):
    """A line that is not as it was sealed."""

    file: Path
    line: int
    body: bytes
    ended: bool


@dataclass(slots=True)
class _Walk:
    """What is known on the way through the lines."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: int = 0
    first: Sealed | None = None
    top: Sealed | None = None
    broken: list[_Broken] = field(default_factory=list)
    missing: dict[int, tuple[Path, int]] = field(default_factory=dict)  # seq -> where it should have been
    early: set[int] = field(default_factory=set)  # seqs that came late


def chains(files: Iterable[Path]) -> list[list[Path]]:
    """Return files by chain, each from the oldest: FILE.2, FILE.1, FILE."""
    grouped: dict[Path, list[tuple[int, Path]]] = {}
    for file in dict.fromkeys(files):
        match = _ROTATED.fullmatch(file.name)
        base, number = (file.with_name(match[1]), int(match[2])) if match else (file, 0)
        grouped.setdefault(base, []).append((number, file))
    return [[file for _, file in sorted(group, reverse=True)] for group in grouped.values()]


def verify(files: Sequence[Path], key: bytes, expect: Head | None = None) -> Report:
    """Examine the files of one chain, the oldest first.

    Args:
        files: as `chains` orders them. The first may begin later than the chain did: rotation removes old files.
        key: that the records were sealed with.
        expect: a head noted earlier, which must still be there.

    Raises:
        OSError: a file cannot be read.
    """
    walk = _Walk()
    found: Head | None = None
    last = (files[-1], 0)
    for file, number, body, ended in _lines(files):
        last = (file, number)
        record = unseal(body, key)
        if record is None:
            walk.broken.append(_Broken(file, number, body, ended))
            continue
        if expect is not None and record.seq == expect.seq:
            found = Head(record.seq, record.hash)
        walk.records += 1
        _close_torn(walk, record)
        _place(walk, record, file, number)
    _name_broken(walk, {}, None if walk.top is None else walk.top.seq + 1)
    walk.problems += _removed(walk.missing)
    if walk.top is not None:
        detail = "the file is empty, and each begins with its head record"
        walk.problems += [Problem(file, 0, None, "truncated", detail) for file in files if file.stat().st_size == 0]
    if expect is not None and found != expect:
        walk.problems.append(_not_found(walk, expect, found, last))
    walk.problems.sort(key=lambda problem: (files.index(problem.file), problem.line))
    return Report(tuple(walk.problems), tuple(walk.notes), walk.records, _head(walk.first), _head(walk.top))


def _lines(files: Sequence[Path]) -> Iterator[tuple[Path, int, bytes, bool]]:
    for file in files:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                yield file, number, line.removesuffix(b"\n"), line.endswith(b"\n")


def _close_torn(walk: _Walk, record: Sealed) -> None:
    """Accept a torn line that the repair record behind it names."""
    if record.kind == "repair" and walk.broken:
        torn = walk.broken[-1]
        if record.values.get("torn_sha256") == hashlib.sha256(torn.body).hexdigest():
            walk.broken.pop()
            walk.notes.append(f"{torn.file}:{torn.line}: torn by a crash, closed off by repair record {record.seq}")


def _place(walk: _Walk, record: Sealed, file: Path, number: int) -> None:
    """Say whether a good record stands where it belongs."""
    top = walk.top
    if top is None:
        walk.first = walk.top = record
        begins = record.seq - len(walk.broken)
        if not walk.broken and (record.kind != "head" or (record.seq == 0 and record.prev != GENESIS)):
            problem = Problem(file, number, record.seq, "removed", "the file does not begin with its head record")
            walk.problems.append(problem)
        _name_broken(walk, dict.fromkeys(range(max(0, begins), record.seq), (file, number)), None)
        return
    if record.seq <= top.seq:
        assert walk.first is not None
        early = record.seq < walk.first.seq and record.seq not in walk.early
        if early or record.seq in walk.missing:
            walk.missing.pop(record.seq, None)
            walk.early.add(record.seq)
            problem = Problem(file, number, record.seq, "re-ordered", f"stands behind seq {top.seq}")
        else:
            problem = Problem(file, number, record.seq, "duplicated", "the record stands here once more")
        walk.problems.append(problem)
        _name_broken(walk, {}, None)
        return
    between = dict.fromkeys(range(top.seq + 1, record.seq), (file, number))
    if not between and record.prev != top.hash:
        detail = "does not follow the record before: two writers, or a restored older file"
        walk.problems.append(Problem(file, number, record.seq, "unlinked", detail))
    _name_broken(walk, between, None)
    walk.missing.update(between)
    walk.top = record


def _name_broken(walk: _Walk, between: dict[int, tuple[Path, int]], after: int | None) -> None:
    """Give broken lines the numbers that lack between their good neighbours; takes those out of `between`.

    Args:
        walk: whose broken lines are named and forgotten.
        between: the numbers that lack.
        after: the number that the first line would have at the end of all files, where nothing says what lacks.
    """
    for broken in walk.broken:
        claimed = claimed_seq(broken.body)
        seq = claimed if claimed in between else next(iter(between), after)
        if not broken.ended:
            detail = "cut off without a repair record"
            walk.problems.append(Problem(broken.file, broken.line, seq, "torn", detail))
        elif seq is None:
            detail = "no record of this chain, or one sealed with another key"
            walk.problems.append(Problem(broken.file, broken.line, None, "foreign", detail))
        else:
            walk.problems.append(Problem(broken.file, broken.line, seq, "edited", "not as it was written"))
        if seq is not None:
            between.pop(seq, None)
            after = None if after is None else after + 1
    walk.broken.clear()


def _removed(missing: dict[int, tuple[Path, int]]) -> Iterator[Problem]:
    """Return one problem for each run of missing numbers."""
    begin: int | None = None
    for seq in sorted(missing):
        begin = seq if begin is None else begin
        if seq + 1 not in missing or missing[seq + 1] != missing[seq]:
            run = "the record" if begin == seq else f"the records up to seq {seq}"
            yield Problem(*missing[seq], begin, "removed", f"{run} before this line")
            begin = None


def _not_found(walk: _Walk, expect: Head, found: Head | None, last: tuple[Path, int]) -> Problem:
    if found is not None:
        return Problem(*last, expect.seq, "truncated", f"was cut off and written anew: expected {expect}")
    if walk.top is None or walk.top.seq < expect.seq:
        ends = "there is none" if walk.top is None else f"seq {walk.top.seq} is the last"
        return Problem(*last, expect.seq, "truncated", f"expected records up to here, {ends}")
    return Problem(*last, expect.seq, "truncated", "the expected record is not in these files")


def _head(record: Sealed | None) -> Head | None:
    return None if record is None else Head(record.seq, record.hash)

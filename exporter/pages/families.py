"""Families of several servers' pages as one page: each family once, under the header that came first."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol


class FamilyLines(NamedTuple):
    """One family of one server: `header` holds its HELP, TYPE and UNIT lines, `lines` its labelled samples."""

    kind: bytes
    header: bytes
    lines: bytes


class WithFamilies(Protocol):
    """A server's page, relabelled."""

    @property
    def families(self) -> Mapping[bytes, FamilyLines]:
        """The families by name, in the page's order."""


def merge(pages: Iterable[WithFamilies], *, keep_conflicts: bool = True) -> tuple[bytes, list[int]]:
    """Return all pages as one, and for each page how many families had another type than in a page before.

    Args:
        pages: in the order in which headers win.
        keep_conflicts: whether the samples of these families stay. In text 0.0.4 they can; OpenMetrics gives samples
            other names for each type, so that Prometheus would refuse the page.
    """
    blocks: dict[bytes, list[bytes]] = {}
    kinds: dict[bytes, bytes] = {}
    conflicts = []
    for page in pages:
        conflicts.append(0)
        for name, (kind, header, lines) in page.families.items():
            block = blocks.get(name)
            if block is None:
                blocks[name], kinds[name] = [header, lines], kind
                continue
            if kinds[name] != kind:
                conflicts[-1] += 1
                if not keep_conflicts:
                    continue
            block.append(lines)
    return b"".join(part for parts in blocks.values() for part in parts), conflicts

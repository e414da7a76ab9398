"""What stays of a server's page from scrape to scrape: everything but the values.

Between two scrapes an engine changes numbers and hardly ever a name or a label. So a page that was taken apart once
leaves a skeleton: its text without the values, and per family a template of the finished lines. A page with the same
text then needs only its values checked and put in; anything else is taken apart again.
"""

import re
from collections.abc import Mapping
from itertools import accumulate
from operator import itemgetter
from typing import Final

from .families import FamilyLines

# Digits are bounded: Go refuses a number that overflows, and Prometheus then refuses the page.
VALUE: Final = rb"(?:-?[0-9]{1,30}+(?:\.[0-9]{1,30}+)?+(?:e[+-][0-9]{2})?+|[+-]Inf|NaN)"
_VALUES: Final = re.compile(rb"(?:%b )*+" % VALUE)
_BOUND_BYTES: Final = 1 << 20  # a skeleton is twice its page


class Skeleton:
    """The skeleton of one page.

    Args:
        page: a page whose sample lines all end with their value and with a newline.
        families: what was made of it.
        slices: family -> which of the page's sample lines, first and behind the last, its lines begin with, in order.
    """

    def __init__(
        self, page: bytes, families: Mapping[bytes, FamilyLines], slices: Mapping[bytes, tuple[int, int]]
    ) -> None:
        lines = page.split(b"\n")
        is_sample = [bool(line) and not line.startswith(b"#") for line in lines]
        self._lines = len(lines)
        self._samples = itemgetter(*[n for n, yes in enumerate(is_sample) if yes])
        self._comments = itemgetter(*[n for n, yes in enumerate(is_sample) if not yes])
        self._comment_text = b"".join(self._comments(lines))
        words = [line.split(b" ") for line in self._samples(lines)]
        ends = list(accumulate(map(len, words)))
        self._words = ends[-1]
        self._values = itemgetter(*[end - 1 for end in ends])
        self._names = itemgetter(*sorted(set(range(ends[-1])) - {end - 1 for end in ends}))
        self._name_text = b"".join(self._names([word for line in words for word in line]))
        self._families = [
            (name, family, *_template(family.lines, *slices.get(name, (0, 0)))) for name, family in families.items()
        ]
        self.samples = sum(family.lines.count(b"\n") for family in families.values())

    def fill(self, page: bytes) -> dict[bytes, FamilyLines] | None:
        """Return the families with the values of this page, None when it has another skeleton."""
        lines = page.split(b"\n")
        if len(lines) != self._lines or b"".join(self._comments(lines)) != self._comment_text:
            return None
        words = b" ".join(self._samples(lines)).split(b" ")
        if len(words) != self._words or b"".join(self._names(words)) != self._name_text:
            return None
        values = self._values(words)
        if _VALUES.fullmatch(b" ".join(values) + b" ") is None:
            return None
        return {
            name: FamilyLines(family.kind, family.header, template % values[first:last]) if template else family
            for name, family, template, first, last in self._families
        }


def skeleton(
    page: bytes, families: Mapping[bytes, FamilyLines], slices: Mapping[bytes, tuple[int, int]]
) -> Skeleton | None:
    """Return the page's skeleton, None where it is not worth having."""
    if len(page) > _BOUND_BYTES or sum(last - first for first, last in slices.values()) < 2:
        return None
    return Skeleton(page, families, slices)


def _template(text: bytes, first: int, last: int) -> tuple[bytes, int, int]:
    """Return the family's lines with a place for each value; empty when none of its values comes from the page."""
    if first == last:
        return b"", first, last
    lines = text.replace(b"%", b"%%").split(b"\n")  # not splitlines: a carriage return may stand in a label value
    count = last - first
    filled = [b"%b %%b" % line.rpartition(b" ")[0] for line in lines[:count]]
    return b"\n".join(filled + lines[count:]), first, last

"""Our own samples as plain data, and their text in the Prometheus exposition format 0.0.4."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..vocabulary import OURS

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Sample(NamedTuple):
    """One value.

    Attributes:
        family: a name from vocabulary.OURS.
        labels: label pairs as `label_pairs` writes them, without braces; empty for none.
        value: in the base unit that the family's name states.
    """

    family: str
    labels: str
    value: float


def label_pairs(**labels: str) -> str:
    r"""Return `a="x",b="y"` with backslash, quote and newline escaped. A trailing underscore of a name is dropped."""
    return ",".join(f'{name.rstrip("_")}="{value.translate(_ESCAPES)}"' for name, value in labels.items())


def number(value: float) -> str:
    """Return a value as Prometheus reads it: integers without exponent or fraction, else the shortest exact float."""
    if isinstance(value, int):
        return str(int(value))  # bool is an int, too
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value).replace("inf", "Inf").replace("nan", "NaN")


def render(samples: Iterable[Sample]) -> dict[str, bytes]:
    """Return the sample lines of each family, in the order of arrival; headers are the page's business."""
    lines: dict[str, list[str]] = defaultdict(list)
    for family, labels, value in samples:
        lines[family].append(f"{family}{{{labels}}} {number(value)}\n" if labels else f"{family} {number(value)}\n")
    return {family: "".join(part).encode() for family, part in lines.items()}


def header(family: str) -> bytes:
    """Return HELP and TYPE of one of our own families."""
    metric = OURS[family]
    return f"# HELP {family} {metric.help}\n# TYPE {family} {metric.kind}\n".encode()


def page(families: Iterable[Mapping[str, bytes]]) -> bytes:
    """Return several renderings as one page: each of our families once, in vocabulary order."""
    blocks: dict[str, list[bytes]] = defaultdict(list)
    for rendering in families:
        for family, lines in rendering.items():
            blocks[family].append(lines)
    return b"".join(header(family) + b"".join(blocks[family]) for family in OURS if family in blocks)

"""Our own samples as plain data, and their text in the Prometheus exposition format 0.0.4."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from ...vocabulary.ours import OURS

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Sample(NamedTuple):
    """One value.

    Attributes:
        family: a name from vocabulary.ours.OURS.
        labels: label pairs as `label_pairs` writes them, without braces; empty for none.
        value: in the base unit that the family's name states.
    """

    family: str
    labels: str
    value: float


class Rendered(NamedTuple):
    """Samples that somebody rendered already, since most of their text never changes; lines by family."""

    families: Sequence[Mapping[str, bytes]]


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


# HELP and TYPE of our own families, in vocabulary order
_HEADERS: Final = {
    name: f"# HELP {name} {metric.help}\n# TYPE {name} {metric.kind}\n".encode() for name, metric in OURS.items()
}


def page(families: Iterable[Mapping[str, bytes]]) -> bytes:
    """Return several renderings as one page: each of our families once, in vocabulary order."""
    blocks: dict[str, list[bytes]] = {}
    for rendering in families:
        for family, lines in rendering.items():
            if family in blocks:
                blocks[family].append(lines)
            else:
                blocks[family] = [_HEADERS[family], lines]
    return b"".join([part for family in _HEADERS if family in blocks for part in blocks[family]])

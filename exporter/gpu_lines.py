"""Sample lines of one GPU, with the part before the value kept between cycles."""

from collections.abc import Sequence

from .series import Sample, label_pairs, number

_MAX_PREFIXES = 4096  # MIG layouts may come and go for months


class GpuLines:
    """Puts gpu and uuid in front of the own labels of each sample."""

    def __init__(self, index: int, uuid: str) -> None:
        self.labels = label_pairs(gpu=str(index), uuid=uuid)
        self._prefixes: dict[tuple[str, str], str] = {}

    def render(self, samples: Sequence[Sample]) -> dict[str, bytes]:
        """Return the lines of each family."""
        prefixes = self._prefixes
        lines: dict[str, list[str]] = {}
        for family, labels, value in samples:
            prefix = prefixes.get((family, labels))
            if prefix is None:
                prefix = self._prefix(family, labels)
            line = f"{prefix}{number(value)}\n"
            if family in lines:
                lines[family].append(line)
            else:
                lines[family] = [line]
        return {family: "".join(part).encode() for family, part in lines.items()}

    def _prefix(self, family: str, labels: str) -> str:
        if len(self._prefixes) >= _MAX_PREFIXES:
            self._prefixes.clear()
        prefix = f"{family}{{{self.labels},{labels}}} " if labels else f"{family}{{{self.labels}}} "
        self._prefixes[family, labels] = prefix
        return prefix

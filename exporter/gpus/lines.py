"""Sample lines of one GPU, with what did not change kept from the cycle before."""

from collections.abc import Sequence

from ..pages.samples import Sample, label_pairs, number

_MAX_PREFIXES = 4096  # MIG layouts may come and go for months


class GpuLines:
    """Puts gpu and uuid in front of the own labels of each sample."""

    def __init__(self, index: int, uuid: str) -> None:
        self.labels = label_pairs(gpu=str(index), uuid=uuid)
        self._prefixes: dict[tuple[str, str], str] = {}
        self._kept: dict[str, tuple[list[Sample], bytes]] = {}

    def render(self, samples: Sequence[Sample]) -> dict[str, bytes]:
        """Return the lines of each family; most families say the same as a second before and are not written anew."""
        families: dict[str, list[Sample]] = {}
        for sample in samples:
            family = sample[0]
            if family in families:
                families[family].append(sample)
            else:
                families[family] = [sample]
        lines = {}
        for family, own in families.items():
            kept = self._kept.get(family)
            if kept is None or kept[0] != own:
                kept = self._kept[family] = (own, self._write(own))
            lines[family] = kept[1]
        return lines

    def _write(self, samples: list[Sample]) -> bytes:
        prefixes = self._prefixes
        lines = []
        for family, labels, value in samples:
            prefix = prefixes.get((family, labels)) or self._prefix(family, labels)
            lines.append(f"{prefix}{number(value)}\n")
        return "".join(lines).encode()

    def _prefix(self, family: str, labels: str) -> str:
        if len(self._prefixes) >= _MAX_PREFIXES:
            self._prefixes.clear()
        prefix = f"{family}{{{self.labels},{labels}}} " if labels else f"{family}{{{self.labels}}} "
        self._prefixes[family, labels] = prefix
        return prefix

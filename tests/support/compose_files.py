"""Compose files as data."""

from pathlib import Path

import yaml


class _Compose(yaml.SafeLoader):
    """YAML with Compose's own tags."""


def _untagged(loader: yaml.SafeLoader, node: yaml.Node) -> list | None:
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else None


_Compose.add_constructor("!reset", _untagged)
_Compose.add_constructor("!override", _untagged)


def read_compose(path: Path) -> dict:
    """Return a Compose file; what it resets is empty."""
    return yaml.load(path.read_text(), _Compose)

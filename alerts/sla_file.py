"""Reads an SLA file: what is wrong is told with its place, what cannot be watched is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..settings.scalars import ConfigError
from ..settings.typed_yaml import from_node, lines_of, read_yaml
from .refusals import refuse
from .sla import Sla

DEFAULT: Final = Path(__file__).with_name("sla.yaml")


def load(path: Path = DEFAULT) -> Sla:
    """Return an SLA whose promises can be watched; raises ConfigError with file, line, key, found and expected."""
    return load_placed(path)[0]


def load_placed(path: Path = DEFAULT) -> tuple[Sla, Callable[[str], str]]:
    """Return an SLA as load does, and what turns a key into `file:line: key`, for errors that are found later."""
    node = read_yaml(path)
    if node is None:
        raise ConfigError(f"{path}: expected the key 'services', found an empty file")
    sla: Sla = from_node(Sla, node, str(path))
    lines = lines_of(node)

    def place(key: str) -> str:
        return f"{path}:{lines.get(key, 1)}: {key}"

    refuse(sla, place)
    return sla, place

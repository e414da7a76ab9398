"""YAML with line numbers becomes typed values: dataclasses say what a file may hold, errors say where it does not.

A dataclass may say more than its fields do:
    EXCLUSIVE: pairs of keys of which one may be given;
    DISTINCT: a property that no two of a list may share;
    HIDDEN: True where a scalar in the place of the mapping may be a secret;
    from_scalar(text, place): takes text in the place of a mapping;
    refined(values, place): checks and changes the values before the instance is made.
A field's metadata may hold `least`, the lowest value.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import yaml

from .scalars import Address, ConfigError, Seconds, Secret, expected, nearest, read_scalar

_MOST_LEVELS: Final = 64  # nothing of ours needs ten; what walks a file recurses
_MOST_NODES: Final = 100_000  # with aliases counted as often as they are used: nine lines can stand for a billion


class _Loader(yaml.SafeLoader):
    """PyYAML's safe one, for files that somebody else wrote: bounded in depth, and nothing lies inside itself."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: list[yaml.Event] = []
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent) and any(
            getattr(one, "anchor", None) == event.anchor for one in self._open
        ):
            raise yaml.MarkedYAMLError(problem=f"*{event.anchor} lies inside itself", problem_mark=mark)
        if len(self._open) >= _MOST_LEVELS:
            raise yaml.MarkedYAMLError(problem=f"more than {_MOST_LEVELS} levels deep", problem_mark=mark)
        self._open.append(event)
        node = super().compose_node(parent, index)
        self._open.pop()
        if node is not None and id(node) not in self._sizes:
            size = 1 + sum(self._sizes[id(child)] for child in _children(node))
            if size > _MOST_NODES:
                raise yaml.MarkedYAMLError(problem=f"more than {_MOST_NODES} values", problem_mark=mark)
            self._sizes[id(node)] = size
        return node


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def read_yaml(path: Path) -> yaml.Node | None:
    """Return a file's root node with its line numbers, None for an empty file; raises ConfigError."""
    root: yaml.Node | None = _read(path, lambda loader: loader.get_single_node())
    return root


def read_plain_yaml(path: Path) -> Any:
    """Return a file's content as lists, dicts and scalars, None for an empty file; raises ConfigError."""
    return _read(path, lambda loader: loader.get_single_data())


def _read(path: Path, get: Callable[[_Loader], Any]) -> Any:
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        try:
            return get(loader)
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2026-99-99 is a ValueError
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from error


def from_node(kind: Any, node: yaml.Node, file: str, key: str = "") -> Any:
    """Return a YAML node as a value of a type.

    Raises:
        ConfigError: with file, line, key, found and expected.
    """
    place = f"{file}:{node.start_mark.line + 1}: {key or 'the file'}"
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null") and type(None) in get_args(kind):
        return None
    kind = without_none(kind)
    if is_empty(node) and dataclasses.is_dataclass(kind) and not hasattr(kind, "from_scalar") and kind is not Address:
        node = yaml.MappingNode(node.tag, [], node.start_mark, node.end_mark)  # all its keys are commented out
    if dataclasses.is_dataclass(kind) and kind is not Address:
        return _dataclass(typing.cast("type[Any]", kind), node, file, key)
    if get_origin(kind) is tuple:
        return _list(get_args(kind)[0], node, file, key)
    if get_origin(kind) not in {None, Literal}:
        names, values = get_args(kind)
        return _mapping(names, values, node, file, key)
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{place}: expected {expected(kind)}, found {_describe(node)}")
    return read_scalar(kind, node.value, place)


def is_empty(node: yaml.Node) -> bool:
    """Whether nothing stands behind a key: `gpus:` with all its keys commented out."""
    return isinstance(node, yaml.ScalarNode) and bool(node.tag.endswith(":null"))


def _is_section(kind: Any) -> bool:
    """Whether a type is written as a mapping or a list, so that all of it can be commented out."""
    kind = without_none(kind)
    if dataclasses.is_dataclass(kind):
        return kind is not Address
    return get_origin(kind) not in {None, Literal}


def lines_of(node: yaml.Node, key: str = "") -> dict[str, int]:
    """Return the line of each key, written as `services[0].name`, for errors that are found later."""
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            dotted = f"{key}.{name.value}" if key else str(name.value)
            lines[dotted] = name.start_mark.line + 1
            lines |= lines_of(value, dotted)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[f"{key}[{number}]"] = item.start_mark.line + 1
            lines |= lines_of(item, f"{key}[{number}]")
    return lines


def without_none(kind: Any) -> Any:
    """Return X for `X | None`, else the type as it is."""
    if get_origin(kind) in {types.UnionType, typing.Union}:
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def check_least(field: "dataclasses.Field[Any]", value: Any, place: str) -> None:
    """Raise ConfigError when a value is below its field's lowest."""
    least = field.metadata.get("least")
    if least is not None and value < least:
        unit = "s" if isinstance(value, Seconds) else ""
        raise ConfigError(f"{place}: expected at least {least:g}{unit}, found {value:g}{unit}")


def check_distinct(items: tuple[Any, ...], places: list[str]) -> None:
    """Raise ConfigError when two items of a list share what must be distinct."""
    seen: set[Any] = set()
    for item, place in zip(items, places, strict=True):
        name = getattr(type(item), "DISTINCT", None)
        if name is None:
            return
        value = getattr(item, name)
        if value in seen:
            raise ConfigError(f"{place}: expected different names, found {value!r} twice: give each its own")
        seen.add(value)


def _list(kind: Any, node: yaml.Node, file: str, key: str) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise ConfigError(f"{file}:{node.start_mark.line + 1}: {key}: expected a list, found {_describe(node)}")
    items = tuple(from_node(kind, item, file, f"{key}[{i}]") for i, item in enumerate(node.value))
    check_distinct(items, [f"{file}:{item.start_mark.line + 1}: {key}" for item in node.value])
    return items


def _mapping(names: Any, values: Any, node: yaml.Node, file: str, key: str) -> Mapping[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        found = _describe(node, hidden=isinstance(values, type) and issubclass(values, Secret))
        raise ConfigError(f"{file}:{node.start_mark.line + 1}: {key}: expected a mapping, found {found}")
    result: dict[str, Any] = {}
    for name_node, value_node in node.value:
        line = f"{file}:{name_node.start_mark.line + 1}: {key}"
        name = read_scalar(names, _key_name(name_node, line), line)
        if name in result:
            raise ConfigError(f"{line}.{name}: given twice")
        result[name] = from_node(values, value_node, file, f"{key}.{name}")
    return result


def _dataclass(kind: type[Any], node: yaml.Node, file: str, key: str) -> Any:
    place = f"{file}:{node.start_mark.line + 1}: {key or 'the file'}"
    if isinstance(node, yaml.ScalarNode) and hasattr(kind, "from_scalar"):
        return kind.from_scalar(node.value, place)
    if not isinstance(node, yaml.MappingNode):
        found = _describe(node, hidden=getattr(kind, "HIDDEN", False))
        raise ConfigError(f"{place}: expected a mapping of keys, found {found}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    given: set[str] = set()  # without a value
    for name_node, value_node in node.value:
        line = f"{file}:{name_node.start_mark.line + 1}"
        name = _key_name(name_node, f"{line}: {key or 'the file'}")
        dotted = f"{key}.{name}" if key else name
        if name not in fields:
            raise ConfigError(f"{line}: {dotted}: unknown key{nearest(name, fields)}")
        if name in values or name in given:
            raise ConfigError(f"{line}: {dotted}: given twice")
        if is_empty(value_node) and _is_section(hints[name]) and _has_default(fields[name]):
            given.add(name)
            continue
        values[name] = from_node(hints[name], value_node, file, dotted)
        check_least(fields[name], values[name], f"{file}:{value_node.start_mark.line + 1}: {dotted}")
    for one, other in getattr(kind, "EXCLUSIVE", ()):
        if values.get(one) is not None and values.get(other) is not None:
            raise ConfigError(f"{place}: expected {one} or {other}, found both")
    for name, field in fields.items():
        if name not in values and not _has_default(field):
            raise ConfigError(f"{place}: expected the key {name!r}, found none")
    if hasattr(kind, "refined"):
        values = kind.refined(values, place)
    return kind(**values)


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _key_name(node: yaml.Node, place: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{place}: expected a name as key, found {_describe(node)}")
    return str(node.value)


def _describe(node: yaml.Node, *, hidden: bool = False) -> str:
    """Return what a node is; not its text where a password may stand in the wrong place."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if is_empty(node):
        return "nothing"
    return "text" if hidden or "@" in node.value else repr(node.value)

"""Tables: one row per thing, one column per query, joined by the labels that the queries share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .fields import PLAIN, Step, data_link, override, thresholds
from .panels import ModernPanel
from .targets import PROMETHEUS, column


class Column(NamedTuple):
    """One query of a table; its result has exactly the labels that are keys of the table.

    Attributes:
        heading: above the column.
        expr: PromQL.
        unit: of the values.
        steps: colours of the cells.
        mappings: texts for values.
    """

    heading: str
    expr: str
    unit: str
    steps: Sequence[Step] = PLAIN
    mappings: Sequence[Mapping[str, Any]] = ()


def table(
    title: str,
    question: str,
    keys: Mapping[str, str],
    *columns: Column,
    links: Mapping[str, tuple[str, str]] | None = None,
    see: str = "",
    sort: str = "",
    texts: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    **more: Any,
) -> ModernPanel:
    """Return a table.

    Args:
        title: of the panel.
        question: that it answers.
        keys: label -> heading, in their order.
        columns: after the keys.
        links: heading -> (title, url) of what its cells lead to.
        see: uid of the dashboard that explains it.
        sort: heading of the column whose largest values come first.
        texts: heading -> what a key's values mean.
        more: fields of the panel.
    """
    one = len(columns) == 1
    values = {"Value" if one else f"Value #{chr(65 + index)}": each.heading for index, each in enumerate(columns)}
    organize = {
        "excludeByName": {"Time": True},
        "indexByName": _order([*keys, *values]),
        "renameByName": {**keys, **values},
    }
    overrides = [override(each.heading, _look(each)) for each in columns]
    overrides += [
        override(heading, {"links": [data_link(text, url)]}) for heading, (text, url) in (links or {}).items()
    ]
    overrides += [override(heading, {"mappings": [*meaning]}) for heading, meaning in (texts or {}).items()]
    merge: list[dict[str, Any]] = [] if one else [{"id": "merge", "options": {}}]
    targets = [column(each.expr) for each in columns]
    return _table(title, question, targets, merge, organize, overrides, see=see, sort=sort, **more)


def labels_table(
    title: str, question: str, expr: str, labels: Mapping[str, str], *, see: str = "", **more: Any
) -> ModernPanel:
    """Return a table of some of a series' labels, such as those of an info metric; its value says nothing."""
    chosen = {"id": "filterFieldsByName", "options": {"include": {"names": [*labels]}}}
    organize = {"excludeByName": {}, "indexByName": _order(labels), "renameByName": dict(labels)}
    return _table(title, question, [column(expr)], [chosen], organize, [], see=see, sort="", **more)


def _order(names: Iterable[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(names)}


def _look(one: Column) -> dict[str, Any]:
    look: dict[str, Any] = {"unit": one.unit}
    if one.mappings:
        look["mappings"] = [*one.mappings]
    if len(one.steps) > 1:
        look["thresholds"] = thresholds(one.steps)
    if len(one.steps) > 1 or one.mappings:
        look["custom.cellOptions"] = {"type": "color-text"}
    return look


def _table(
    title: str,
    question: str,
    targets: list[Any],
    first: list[dict[str, Any]],
    organize: Mapping[str, Any],
    overrides: list[dict[str, Any]],
    *,
    see: str,
    sort: str,
    **more: Any,
) -> ModernPanel:
    return ModernPanel(
        title=title, description=question, kind="table", dataSource=PROMETHEUS, targets=targets, see=see,
        options={
            "cellHeight": "sm", "showHeader": True, "sortBy": [{"displayName": sort, "desc": True}] if sort else [],
        },
        custom={"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True, "inspect": False},
        transformations=[*first, {"id": "organize", "options": organize}],
        overrides=overrides, **{"width": 24, "height": 8, **more},
    )  # fmt: skip

"""Tables: one row per thing, one column per query, joined by the labels that the queries share."""

from collections.abc import Mapping, Sequence
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
        more: fields of the panel.
    """
    one = len(columns) == 1
    values = {"Value" if one else f"Value #{chr(65 + index)}": one_.heading for index, one_ in enumerate(columns)}
    order = {name: index for index, name in enumerate([*keys, *values])}
    organize = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": {**keys, **values}}
    overrides = [override(one_.heading, _look(one_)) for one_ in columns]
    overrides += [
        override(heading, {"links": [data_link(text, url)]}) for heading, (text, url) in (links or {}).items()
    ]
    return _table(
        title, question, [column(one_.expr) for one_ in columns], organize, overrides, see=see, sort=sort,
        merge=not one, **more,
    )  # fmt: skip


def labels_table(
    title: str,
    question: str,
    expr: str,
    labels: Mapping[str, str],
    hidden: Sequence[str],
    *,
    see: str = "",
    **more: Any,
) -> ModernPanel:
    """Return a table of a series' labels, such as those of an info metric; its value says nothing."""
    organize = {
        "excludeByName": dict.fromkeys(("Time", "Value", "__name__", *hidden), True),
        "indexByName": {label: index for index, label in enumerate(labels)},
        "renameByName": dict(labels),
    }
    return _table(title, question, [column(expr)], organize, [], see=see, sort="", merge=False, **more)


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
    organize: Mapping[str, Any],
    overrides: list[dict[str, Any]],
    *,
    see: str,
    sort: str,
    merge: bool,
    **more: Any,
) -> ModernPanel:
    transformations: list[dict[str, Any]] = [{"id": "merge", "options": {}}] if merge else []
    return ModernPanel(
        title=title, description=question, kind="table", dataSource=PROMETHEUS, targets=targets, see=see,
        options={
            "cellHeight": "sm", "showHeader": True, "sortBy": [{"displayName": sort, "desc": True}] if sort else [],
        },
        custom={"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True, "inspect": False},
        transformations=[*transformations, {"id": "organize", "options": organize}],
        overrides=overrides, **{"width": 24, "height": 8, **more},
    )  # fmt: skip

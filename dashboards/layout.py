"""Rows of panels, and where in the grid of 24 columns each panel lies."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import attrs
from grafanalib import core

from .panels import ModernPanel

_COLUMNS: Final = 24


@attrs.define(slots=False, kw_only=True)
class RowBar(core.RowPanel):
    """The bar above a row; holds the row's panels while it is collapsed."""

    def to_json_data(self) -> dict[str, Any]:
        """Return the JSON."""
        return {
            "collapsed": self.collapsed,
            "gridPos": self.gridPos,
            "id": self.id,
            "panels": self.panels,
            "title": self.title,
            "type": "row",
        }


@attrs.frozen
class Row:
    """Panels that answer one question together.

    Attributes:
        title: the question, or what is shown.
        panels: from left to right.
        needs: a flag or feature without which the panels stay empty; then the row is collapsed and its title says so.
        see: uid of the dashboard that explains the row, for panels that name none.
        width: of every panel; 0 leaves it to them.
    """

    title: str
    panels: Sequence[ModernPanel]
    needs: str = ""
    see: str = ""
    width: int = 0


def place(rows: Iterable[Row]) -> Iterator[core.Panel]:
    """Yield the panels with their positions and ids; panels of a collapsed row lie in its bar."""
    top, number = 0, 1
    for row in rows:
        bar = RowBar(
            title=f"{row.title} ({row.needs})" if row.needs else row.title,
            collapsed=bool(row.needs),
            gridPos=core.GridPos(h=1, w=_COLUMNS, x=0, y=top),
            id=number,
        )
        panels, bottom = _flow(row, top + 1, number + 1)
        number += 1 + len(panels)
        if row.needs:
            bar.panels = panels
            top += 1
            yield bar
        else:
            top = bottom
            yield bar
            yield from panels


def _flow(row: Row, top: int, first: int) -> tuple[list[ModernPanel], int]:
    placed, left, height = [], 0, 0
    for number, panel in enumerate(row.panels, first):
        width = row.width or panel.width
        if left + width > _COLUMNS:
            top, left, height = top + height, 0, 0
        position = core.GridPos(h=panel.height, w=width, x=left, y=top)
        placed.append(attrs.evolve(panel, gridPos=position, id=number, see=panel.see or row.see))
        left, height = left + width, max(height, panel.height)
    return placed, top + height

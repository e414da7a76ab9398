"""The picture of a simulation: false alerts beside detection times, one row per promise. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .simulate import SIZES, Case, Load, Quality

_MARKERS: Final = "os^vD*"
_TICKS: Final = (0.5, 1, 5, 10, 30, 60, 120, 300, 600)


def plot(results: Sequence[tuple[Case, Sequence[Quality]]], load: Load, path: Path) -> None:
    """Write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  an extra
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import NullFormatter, ScalarFormatter  # noqa: PLC0415

    figure = Figure(figsize=(12, 3.2 * len(results) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Alerts under {load}")
    rows = figure.subplots(len(results), 2, squeeze=False)
    for (case, found), (left, right) in zip(results, rows, strict=True):
        names = [quality.policy for quality in found]
        colours = [f"C{number}" for number in range(len(names))]
        values = [quality.false_per_month for quality in found]
        bars = left.barh(names[::-1], values[::-1], color=colours[::-1])
        left.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        left.set_title(f"{', '.join(case.names)}: {case.objective.promise}", fontsize=9, loc="left")
        left.set_xlabel("alerts per 30 days while the promise is kept", fontsize=8)
        left.margins(x=0.15)
        for label, colour in zip(left.get_yticklabels(), colours[::-1], strict=True):
            label.set_color(colour)  # the key to the lines beside it
        for quality, colour, marker in zip(found, colours, _MARKERS, strict=False):
            known = [(size, minutes) for size in SIZES if (minutes := quality.minutes[size]) is not None]
            if known:
                right.plot(
                    [100 * size for size, _ in known],
                    [max(minutes, 0.5) for _, minutes in known],
                    marker=marker,
                    fillstyle="none",
                    color=colour,
                )
        right.set(xscale="log", yscale="log", xticks=[100 * size for size in SIZES], yticks=_TICKS)
        for axis in (right.xaxis, right.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
        right.set_xlabel("events that fail, %", fontsize=8)
        right.set_ylabel("minutes until found (median)", fontsize=8)
        right.set_title("no point: half of the failures or more were missed", fontsize=8, loc="left")
        for axes in (left, right):
            axes.tick_params(labelsize=8)
            axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, format="png", dpi=110)

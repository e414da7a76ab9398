"""Draws each dashboard as a picture from real answers to its own queries, in its own layout; not Grafana's rendering.

.venv/bin/python docs/dashboards/draw.py --prometheus http://127.0.0.1:19090 [--minutes 20] [overview ...]

stage.py beside this file runs something worth a picture.
"""

import argparse
import io
import math
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from vllm_vitals.alerts.sla_file import load
from vllm_vitals.dashboards.build import dashboards
from vllm_vitals.dashboards.queries import EVERYTHING
from vllm_vitals.docs.pictures import store
from vllm_vitals.promql.api import Prometheus, QueryError, Series

OUT: Final = Path(__file__).parent
WINDOW, STEP_POINTS = "1m", 160
UNIT_WIDTH, UNIT_HEIGHT, BAR = 0.62, 0.34, 0.34  # inches of a grid cell; of a row's bar
PAGE, PANEL, TEXT, DIM = "#111217", "#181b1f", "#d0d3da", "#8e939c"
COLOURS: Final = {
    "green": "#73bf69", "yellow": "#f2cc0c", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2",
    "purple": "#b877d9", "text": TEXT, "dark-red": "#c4162a", "super-light-blue": "#c0d8ff", "semi-dark-red": "#e02f44",
}  # fmt: skip
LINES: Final = (
    "#73bf69",
    "#f2cc0c",
    "#8ab8ff",
    "#ff780a",
    "#f2495c",
    "#5794f2",
    "#b877d9",
    "#705da0",
    "#37872d",
    "#fade2a",
)
LEGEND_ROWS: Final = 6
TABLE_ROWS: Final = 12


def main() -> None:
    """Draw the dashboards that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:19090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=20.0, help="how far back (default 20)")
    parser.add_argument("slugs", nargs="*", help="such as overview; all by default")
    options = parser.parse_args()
    made = dashboards(load())
    prometheus = Prometheus(options.prometheus)
    for slug in options.slugs or made:
        draw(made[slug], Answers(prometheus, options.minutes * 60), OUT / f"{slug}.png")


class Answers:
    """What Prometheus says to the targets of panels."""

    def __init__(self, prometheus: Prometheus, seconds: float) -> None:
        self._prometheus = prometheus
        self.end = time.time()
        self.start = self.end - seconds
        self.step = max(5.0, seconds / STEP_POINTS)

    def of(self, target: Mapping[str, Any]) -> list[Series]:
        """Return a target's series; none where it is not for Prometheus."""
        if target["datasource"]["type"] != "prometheus":
            return []
        text = target["expr"].replace("$__rate_interval", WINDOW)
        text = text.replace("$__range", f"{round(self.end - self.start)}s").replace(
            "$__interval", f"{round(self.step)}s"
        )
        for name, value in EVERYTHING.items():
            text = text.replace(f"${{{name}}}", value).replace(f"${name}", value)
        try:
            if target.get("instant"):
                return self._prometheus.instant(text, self.end)
            return self._prometheus.range(text, self.start, self.end, self.step)
        except QueryError as error:
            print(f"  {error}: {text}")
            return []


def draw(data: Mapping[str, Any], answers: Answers, path: Path) -> None:
    """Write the picture of one dashboard; collapsed rows are bars, as they are at first in Grafana."""
    panels = sorted(data["panels"], key=lambda panel: (panel["gridPos"]["y"], panel["gridPos"]["x"]))
    width = 24 * UNIT_WIDTH
    height = 0.6 + UNIT_HEIGHT * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(width, height), facecolor=PAGE)
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.3 / height, data["title"], color=TEXT, fontsize=15, weight="bold", va="center")
    span = f"last {round((answers.end - answers.start) / 60)} min, {datetime.fromtimestamp(answers.end, UTC):%H:%M} UTC"
    figure.text(0.988, 1 - 0.3 / height, span, color=DIM, fontsize=9, va="center", ha="right")
    for panel in panels:
        cell = panel["gridPos"]
        left, top = cell["x"] * UNIT_WIDTH, 0.6 + cell["y"] * UNIT_HEIGHT
        box = (
            left + 0.06,
            height - top - cell["h"] * UNIT_HEIGHT + 0.05,
            cell["w"] * UNIT_WIDTH - 0.12,
            cell["h"] * UNIT_HEIGHT - 0.1,
        )
        if panel["type"] == "row":
            sign = ">" if panel["collapsed"] else "v"
            figure.text(0.012, (box[1] + 0.12) / height, f"{sign}  {panel['title']}", color=TEXT, fontsize=10.5)
            continue
        figure.patches.append(
            Rectangle(
                (box[0] / width, box[1] / height),
                box[2] / width,
                box[3] / height,
                facecolor=PANEL,
                edgecolor="#2c3038",
                linewidth=0.6,
                transform=figure.transFigure,
                figure=figure,
                zorder=0,
            )
        )
        figure.text(
            (box[0] + 0.1) / width,
            (box[1] + box[3] - 0.2) / height,
            panel["title"],
            color=TEXT,
            fontsize=9,
        )
        Panel(panel, answers, figure, box, (width, height)).draw()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80, facecolor=PAGE)
    for written in store(Image.open(drawn), path):
        print(written, flush=True)


class Panel:
    """One panel in its box (left, bottom, width, height in inches of a page)."""

    def __init__(
        self,
        panel: Mapping[str, Any],
        answers: Answers,
        figure: Figure,
        box: tuple[float, ...],
        page: tuple[float, float],
    ) -> None:
        self.panel = panel
        self.defaults = panel["fieldConfig"]["defaults"]
        self.answers = answers
        self.figure = figure
        self.box = box
        self.page = page

    def draw(self) -> None:
        """Draw what the type asks for."""
        found = [(target, series) for target in self.panel["targets"] for series in self.answers.of(target)]
        draws = {
            "timeseries": self.lines, "stat": self.stats, "bargauge": self.bars, "table": self.table,
            "state-timeline": self.states, "status-history": self.states, "heatmap": self.heat, "nodeGraph": self.nodes,
        }  # fmt: skip
        if self.panel["type"] in draws and found:
            draws[self.panel["type"]](found)
            return
        elsewhere = {"logs": "lines from Elasticsearch", "traces": "a trace from Jaeger", "table": ""}
        text = elsewhere.get(self.panel["type"], "") if not found else ""
        self.write(0.5, 0.45, text or self.defaults.get("noValue", "No data"), color=DIM, ha="center", fontsize=10)

    def write(self, x: float, y: float, text: str, **more: Any) -> None:
        """Write at a place in the box, both from 0 to 1."""
        left, bottom, width, height = self.box
        self.figure.text(
            (left + x * width) / self.page[0], (bottom + y * height) / self.page[1], text, **{"va": "center", **more}
        )

    def axes(self, left: float = 0.55, bottom: float = 0.28, right: float = 0.12, top: float = 0.34) -> Axes:
        """Return axes in the box with margins in inches."""
        x, y, width, height = self.box
        axes = self.figure.add_axes((
            (x + left) / self.page[0], (y + bottom) / self.page[1],
            max(0.2, width - left - right) / self.page[0], max(0.2, height - bottom - top) / self.page[1],
        ))  # fmt: skip
        axes.set_facecolor(PANEL)
        axes.set_zorder(3)
        axes.tick_params(labelsize=7, colors=DIM, length=0, pad=2)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.grid(visible=True, color="#2c3038", linewidth=0.6)
        return axes

    def time_axis(self, axes: Axes) -> None:
        """Show the time of the answers."""
        start, end = self.answers.start, self.answers.end
        axes.set_xlim(start, end)
        ticks = [start + (end - start) * part / 4 for part in range(5)][1:4]
        axes.set_xticks(ticks, [f"{datetime.fromtimestamp(tick, UTC):%H:%M}" for tick in ticks])

    def unit(self, name: str = "") -> str:
        """Return the unit of a field."""
        return next(
            (
                one["value"]
                for override in self.panel["fieldConfig"]["overrides"]
                if override["matcher"]["options"] == name
                for one in override["properties"]
                if one["id"] == "unit"
            ),
            self.defaults.get("unit", "none"),
        )

    def word(self, value: float, name: str = "") -> tuple[str, str]:
        """Return what a value is called and its colour: by mappings, else by unit and thresholds."""
        maps, steps = self.defaults.get("mappings", ()), self.defaults["thresholds"]["steps"]
        for override in self.panel["fieldConfig"]["overrides"]:
            if override["matcher"]["options"] == name:
                for one in override["properties"]:
                    maps = one["value"] if one["id"] == "mappings" else maps
                    steps = one["value"]["steps"] if one["id"] == "thresholds" else steps
        for one in maps:
            known = one["options"].get(f"{value:g}") if one["type"] == "value" else None
            if known:
                return known.get("text", f"{value:g}"), COLOURS.get(known.get("color", "text"), TEXT)
        colour = "text"
        for step in steps:
            if step["value"] is None or value >= step["value"]:
                colour = step["color"]
        return in_unit(value, self.unit(name)), COLOURS.get(colour, TEXT)

    def lines(self, found: Sequence[tuple[Mapping[str, Any], Series]]) -> None:
        """Draw a time series panel, its lines as Grafana would call them."""
        named = [(legend(target, series), series) for target, series in found]
        named.sort(key=lambda pair: -max((value for _, value in pair[1].points if math.isfinite(value)), default=0))
        rows = min(len(named), LEGEND_ROWS)
        axes = self.axes(bottom=0.28 + 0.145 * rows)
        stacked = self.defaults["custom"].get("stacking", {}).get("mode", "none") == "normal"
        dashes = {
            override["matcher"]["options"] for override in self.panel["fieldConfig"]["overrides"]
            if any(one["id"] == "custom.lineStyle" for one in override["properties"])
        }  # fmt: skip
        base: dict[float, float] = {}
        for number, (name, series) in enumerate(named):
            colour = LINES[number % len(LINES)] if name not in dashes else COLOURS["red"]
            times = [at for at, _ in series.points]
            values = [value if math.isfinite(value) else math.nan for _, value in series.points]
            if stacked and name not in dashes:
                low = [base.get(at, 0.0) for at in times]
                values = [under + (0 if math.isnan(value) else value) for under, value in zip(low, values, strict=True)]
                base |= dict(zip(times, values, strict=True))
                axes.fill_between(times, low, values, color=colour, alpha=0.45, linewidth=0)
            axes.plot(
                times,
                values,
                color=colour,
                linewidth=1.1,
                linestyle="--" if name in dashes else "-",
                marker="." if len(times) == 1 else "",
            )
            if number < rows:
                last = in_unit(series.value, self.unit(name))
                text = (
                    name
                    if number < LEGEND_ROWS - 1 or len(named) <= LEGEND_ROWS
                    else f"{name}  ... and {len(named) - rows} more"
                )
                x, y, _, height = self.box
                self.figure.text(
                    (x + 0.12) / self.page[0],
                    (y + 0.06 + 0.145 * (rows - number - 0.5)) / self.page[1],
                    "—",
                    color=colour,
                    fontsize=8,
                    va="center",
                )
                self.figure.text(
                    (x + 0.3) / self.page[0],
                    (y + 0.06 + 0.145 * (rows - number - 0.5)) / self.page[1],
                    shorten(f"{text}: {last}", self.box[2] * 15),
                    color=DIM,
                    fontsize=6.5,
                    va="center",
                )
                del height
        low = self.defaults.get("min")
        high = self.defaults.get("max")
        bottom, top = axes.get_ylim()
        axes.set_ylim(
            low if low is not None else min(bottom, 0) if bottom > 0 else bottom, high if high is not None else top
        )
        ticks = [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
        if len(ticks) > 5:
            ticks = ticks[:: math.ceil(len(ticks) / 5)]
        axes.set_yticks(ticks, [in_unit(tick, self.defaults.get("unit", "none")) for tick in ticks])
        style = self.defaults["custom"].get("thresholdsStyle", {}).get("mode", "off")
        for step in self.defaults["thresholds"]["steps"][1:] if style != "off" else ():
            axes.axhline(step["value"], color=COLOURS.get(step["color"], TEXT), linewidth=0.9, linestyle="--")
        self.time_axis(axes)

    def stats(self, found: Sequence[tuple[Mapping[str, Any], Series]]) -> None:
        """Draw big numbers side by side."""
        shown = found[:6]
        for number, (target, series) in enumerate(shown):
            name = legend(target, series)
            text, colour = self.word(series.value, name)
            x = (number + 0.5) / len(shown)
            size = min(20, self.box[2] / len(shown) / max(len(text), 3) * 90)
            self.write(x, 0.45, text, color=colour, fontsize=size, ha="center", weight="bold")
            if len(found) > 1:
                self.write(x, 0.14, shorten(name, self.box[2] / len(shown) * 13), color=DIM, fontsize=6.5, ha="center")

    def bars(self, found: Sequence[tuple[Mapping[str, Any], Series]]) -> None:
        """Draw horizontal bars."""
        shown = sorted(((legend(target, series), series.value) for target, series in found), key=lambda pair: -pair[1])[
            :10
        ]
        most = self.defaults.get("max") or max((abs(value) for _, value in shown), default=1) or 1
        for number, (name, value) in enumerate(shown):
            y = 0.82 - 0.76 * (number + 0.5) / max(len(shown), 3)
            text, colour = self.word(value, name)
            self.write(0.02, y, shorten(name, self.box[2] * 6), color=DIM, fontsize=7)
            left, bottom, width, height = self.box
            thick = min(0.16, 0.5 * height / max(len(shown), 3))
            for share, shade, alpha in (
                (1.0, "#2c3038", 1.0),
                (min(1.0, abs(value) / most), colour if colour != TEXT else COLOURS["blue"], 0.8),
            ):
                self.figure.patches.append(
                    Rectangle(
                        ((left + 0.44 * width) / self.page[0], (bottom + y * height - thick / 2) / self.page[1]),
                        0.38 * width * share / self.page[0],
                        thick / self.page[1],
                        facecolor=shade,
                        alpha=alpha,
                        transform=self.figure.transFigure,
                        figure=self.figure,
                        zorder=2,
                    )
                )
            self.write(0.84, y, text, color=colour, fontsize=7.5)

    def table(self, found: Sequence[tuple[Mapping[str, Any], Series]]) -> None:
        """Draw a table: the panel's own joining and renaming, as far as its transformations are merge and organize."""
        rows: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        columns: dict[str, None] = {}
        several = len(self.panel["targets"]) > 1
        for target, series in found:
            key = tuple(sorted((name, value) for name, value in series.labels.items() if name != "__name__"))
            row = rows.setdefault(key, dict(key))
            value = f"Value #{target['refId']}" if several else "Value"
            row[value] = series.value
            columns |= dict.fromkeys((*series.labels, value))
        order: list[str] = [*columns]
        renamed: dict[str, str] = {}
        hidden = {"__name__", "Time"}
        for step in self.panel.get("transformations", ()):
            if step["id"] == "filterFieldsByName":
                order = [name for name in order if name in step["options"]["include"]["names"]]
            if step["id"] == "organize":
                options = step["options"]
                hidden |= {name for name, out in options.get("excludeByName", {}).items() if out}
                renamed |= options.get("renameByName", {})
                places = options.get("indexByName", {})
                order.sort(key=lambda name: places.get(name, 99))
        order = [name for name in order if name not in hidden]
        heads = [renamed.get(name, name) for name in order]
        cells = [[row.get(name, "") for name in order] for row in rows.values()]
        shown = [
            [
                self.word(cell, head) if isinstance(cell, float) else (str(cell), TEXT)
                for cell, head in zip(row, heads, strict=True)
            ]
            for row in cells[:TABLE_ROWS]
        ]
        widths = [max([len(head), *(len(row[column][0]) for row in shown)]) + 2 for column, head in enumerate(heads)]
        whole = max(sum(widths), 1)
        fits = self.box[2] * 14 / whole
        lines = max(len(shown) + 1, 4)
        x = 0.015
        for column, (head, width) in enumerate(zip(heads, widths, strict=True)):
            share = 0.97 * width / whole
            room = share * self.box[2] * 14 if fits < 1 else width
            self.write(x, 0.8, shorten(head, room), color=COLOURS["blue"], fontsize=7)
            for line, row in enumerate(shown):
                text, colour = row[column]
                self.write(x, 0.8 - 0.78 * (line + 1) / lines, shorten(text, room), color=colour, fontsize=7)
            x += share
        if len(cells) > TABLE_ROWS:
            self.write(0.98, 0.93, f"{len(cells)} rows", color=DIM, fontsize=7, ha="right")

    def states(self, found: Sequence[tuple[Mapping[str, Any], Series]]) -> None:
        """Draw a state timeline or a status history: a bar per series, coloured by what each value means."""
        named = [(legend(target, series), series) for target, series in found][:14]
        axes = self.axes(left=min(2.3, 0.35 * self.box[2]), bottom=0.42)
        words: dict[str, str] = {}
        for number, (name, series) in enumerate(named):
            for at, value in series.points:
                word, colour = self.word(value, name)
                colour = COLOURS["green"] if colour == TEXT else colour
                words[word] = colour
                axes.barh(
                    len(named) - number, self.answers.step, left=at, height=0.8, color=colour, alpha=0.75, linewidth=0
                )
        axes.set_yticks([len(named) - number for number in range(len(named))], [shorten(name, 24) for name, _ in named])
        axes.grid(visible=False)
        self.time_axis(axes)
        for number, (word, colour) in enumerate([*words.items()][:6] if self.defaults.get("mappings") else ()):
            self.write(0.03 + 0.16 * number, 0.2 / self.box[3], word, color=colour, fontsize=7)

    def heat(self, found: Sequence[tuple[Mapping[str, Any], Series]]) -> None:
        """Draw a heatmap of a histogram's buckets; darker is more."""
        by_bound = sorted(
            ((float(series.labels["le"]), dict(series.points)) for _, series in found), key=lambda pair: pair[0]
        )
        times = sorted({at for _, points in by_bound for at in points})
        rows, bounds = [], []
        below: dict[float, float] = {}
        for bound, points in by_bound:
            row = [max(0.0, points.get(at, 0.0) - below.get(at, 0.0)) for at in times]
            if any(value > 1e-9 for value in row):
                rows.append(row)
                bounds.append(bound)
            below = points
        if not rows or len(times) < 2:
            self.write(0.5, 0.45, self.defaults.get("noValue", "No data"), color=DIM, ha="center", fontsize=10)
            return
        axes = self.axes(left=0.65, bottom=0.3)
        axes.imshow(
            rows,
            aspect="auto",
            origin="lower",
            cmap="inferno",
            norm=PowerNorm(0.5),
            extent=(times[0], times[-1], 0, len(rows)),
            interpolation="nearest",
        )
        unit = self.panel["options"]["yAxis"].get("unit", "none")
        every = max(1, math.ceil(len(bounds) / 6))
        axes.set_yticks(
            [number + 0.5 for number in range(0, len(bounds), every)],
            ["+Inf" if math.isinf(bound) else in_unit(bound, unit) for bound in bounds[::every]],
        )
        axes.grid(visible=False)
        self.time_axis(axes)

    def nodes(self, found: Sequence[tuple[Mapping[str, Any], Series]]) -> None:
        """Draw servers above, GPUs below, and lines between them."""
        places: dict[str, tuple[float, float]] = {}
        nodes = [series for _, series in found if "source" not in series.labels]
        for kind, y in (("engine", 0.68), ("GPU", 0.25)):
            some = [series for series in nodes if series.labels.get("subtitle", "").startswith(kind)]
            for number, series in enumerate(some):
                places[series.labels["id"]] = ((number + 0.5) / len(some), y)
        left, bottom, width, height = self.box
        axes = self.figure.add_axes(
            (left / self.page[0], bottom / self.page[1], width / self.page[0], 0.9 * height / self.page[1])
        )
        axes.axis("off")
        axes.set_zorder(3)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        for _, series in found:
            ends = [places.get(series.labels.get(end, "")) for end in ("source", "target")]
            if ends[0] and ends[1]:
                axes.plot([ends[0][0], ends[1][0]], [ends[0][1], ends[1][1]], color="#4a4f58", linewidth=1, zorder=1)
        for series in nodes:
            x, y = places[series.labels["id"]]
            axes.scatter([x], [y], s=520, facecolor=PANEL, edgecolor=COLOURS["blue"], linewidth=1.5, zorder=2)
            axes.text(
                x, y, in_unit(series.value, "percentunit"), color=TEXT, fontsize=6.5, ha="center", va="center", zorder=3
            )
            axes.text(x, y - 0.13, shorten(series.labels.get("title", ""), 14), color=DIM, fontsize=6.5, ha="center")


def legend(target: Mapping[str, Any], series: Series) -> str:
    """Return what Grafana calls a series."""
    pattern = target.get("legendFormat", "")
    labels = {name: value for name, value in series.labels.items() if name != "__name__"}
    if pattern in {"", "__auto"}:
        return ", ".join(f"{name}={value}" for name, value in labels.items())
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), pattern).strip()


def in_unit(value: float, unit: str) -> str:
    """Return a value as a person reads it, by Grafana's id of the unit."""
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{value:.1%}" if abs(value) < 0.1 else f"{value:.0%}"
    if unit == "s":
        for factor, name in ((86400, "d"), (3600, "h"), (60, "min")):
            if abs(value) >= 2 * factor:
                return f"{value / factor:.3g} {name}"
        return (
            f"{value:.3g} s"
            if abs(value) >= 1 or value == 0
            else f"{value * 1000:.3g} ms"
            if abs(value) >= 1e-3
            else f"{value * 1e6:.3g} µs"
        )
    if unit in {"bytes", "binBps"}:
        for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
            if abs(value) >= 1024**power:
                return f"{value / 1024**power:.3g} {name}{'/s' if unit == 'binBps' else ''}"
        return f"{value:.3g} B{'/s' if unit == 'binBps' else ''}"
    if unit == "dateTimeFromNow":
        return f"{max(0.0, time.time() - value / 1000) / 60:.0f} min ago"
    names = {"watt": " W", "celsius": " °C", "hertz": "Hz", "reqps": " req/s", "flops": "FLOP/s", "joule": " J"}
    tail = unit.removeprefix("suffix:") if unit.startswith("suffix:") else names.get(unit, "")
    for factor, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= factor:
            return f"{value / (1e3 if letter == ' k' else factor):.3g}{letter}{tail}"
    return f"{value:.3g}{tail}" if abs(value) < 1000 else f"{value:.0f}{tail}"


def shorten(text: str, characters: float) -> str:
    """Return a text that fits."""
    return text if len(text) <= characters else text[: max(1, int(characters) - 1)] + "…"


if __name__ == "__main__":
    main()

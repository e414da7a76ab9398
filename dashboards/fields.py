"""How values look: units, colours, thresholds, mappings, links and overrides of single fields, as Grafana's JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

Step = tuple[float | None, str]

GREEN: Final = "green"
YELLOW: Final = "yellow"
ORANGE: Final = "orange"
RED: Final = "red"
GREY: Final = "text"

# Grafana's unit ids, named by what they mean.
SECONDS: Final = "s"
RATIO: Final = "percentunit"  # 0 to 1
COUNT: Final = "short"
BYTES: Final = "bytes"
BYTES_PER_SECOND: Final = "binBps"
REQUESTS_PER_SECOND: Final = "reqps"
TOKENS: Final = "suffix: tok"
TOKENS_PER_SECOND: Final = "suffix: tok/s"
PER_SECOND: Final = "suffix: /s"
WATTS: Final = "watt"
JOULES_PER_TOKEN: Final = "suffix: J/tok"  # noqa: S105  a unit
TOKENS_PER_JOULE: Final = "suffix: tok/J"
CELSIUS: Final = "celsius"
HERTZ: Final = "hertz"
TIMES: Final = "suffix: x"
CORES: Final = "suffix: cores"
FLOPS: Final = "flops"
SINCE: Final = "dateTimeFromNow"  # of milliseconds
NO_UNIT: Final = "none"

PLAIN: Final[tuple[Step, ...]] = ((None, GREY),)


def above(value: float | None, *, warn: float | None = None) -> tuple[Step, ...]:
    """Return steps that turn red at a value, yellow at `warn`; without a value nothing is judged."""
    if value is None:
        return PLAIN
    middle: tuple[Step, ...] = () if warn is None else ((warn, YELLOW),)
    return ((None, GREEN), *middle, (value, RED))


def below(value: float, *, warn: float | None = None) -> tuple[Step, ...]:
    """Return steps that are red under a value and yellow under `warn`."""
    middle: tuple[Step, ...] = () if warn is None else ((value, YELLOW),)
    return ((None, RED), *middle, (value if warn is None else warn, GREEN))


def thresholds(steps: Sequence[Step]) -> dict[str, Any]:
    """Return Grafana's thresholds; the first step's value is null."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in steps]}


def mapping(texts: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Return a value mapping: value -> (text, color)."""
    options = {
        value: {"index": index, "text": text, "color": color}
        for index, (value, (text, color)) in enumerate(texts.items())
    }
    return [{"type": "value", "options": options}]


ON_OFF: Final = mapping({"0": ("no", GREEN), "1": ("yes", RED)})
UP_DOWN: Final = mapping({"0": ("down", RED), "1": ("up", GREEN)})


def override(field: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs for a field of this name."""
    return {
        "matcher": {"id": "byName", "options": field},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def dashed(field: str) -> dict[str, Any]:
    """Return the override that draws a series as a limit: red, dashed, not filled."""
    style = {"fill": "dash", "dash": [10, 10]}
    color = {"mode": "fixed", "fixedColor": RED}
    return override(field, {"custom.lineStyle": style, "custom.fillOpacity": 0, "color": color})


def data_link(title: str, url: str) -> dict[str, Any]:
    """Return a link from a value."""
    return {"title": title, "url": url}


def to_dashboard(uid: str, **variables: str) -> str:
    """Return the path of another dashboard with the same time range, and variables as given."""
    given = "".join(f"&var-{name}={value}" for name, value in variables.items())
    return f"/d/{uid}?${{__url_time_range}}{given}"

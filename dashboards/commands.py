"""`vllm-vitals dashboards build|check|push`: each loads what it needs and says what is not installed."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ..alerts.sla import DEFAULT, load
from ..scalars import ConfigError

_HERE: Final = Path(__file__).parent
_COMMITTED: Final = _HERE / "json"
_EXTRA: Final = {"grafanalib", "attr", "attrs", "promql_parser"}

Say = Callable[[str], object]


def build(sla: Path | None, out: Path | None, for_import: Path | None, say: Say = print) -> int:
    """Write the dashboards of an SLA; returns the exit code."""
    made = _made(sla)
    from . import build as how  # noqa: PLC0415

    if for_import is not None:
        how.write(how.files({slug: how.for_import(data) for slug, data in made.items()}), for_import)
        say(f"{len(made)} dashboards in {for_import}, for Grafana's import dialog")
        if out is None:
            return 0
    folder = out or _folder_of_checkout()
    how.write(how.files(made), folder)
    say(f"{len(made)} dashboards in {folder}")
    return 0


def check(sla: Path | None, folder: Path | None, prometheus: str | None, timeout: float, say: Say = print) -> int:
    """Tell what is wrong with the dashboards and with their files; returns the exit code: 1 for any problem."""
    made = _made(sla)
    from . import build as how  # noqa: PLC0415
    from .limits import limits_of  # noqa: PLC0415
    from .lint import Context, findings  # noqa: PLC0415

    terms = load(sla or DEFAULT)
    context = Context(how.query_schema(terms), limits_of(terms))
    problems = [text for data in made.values() for text in findings(data, context)]
    if folder is not None or (sla is None and _COMMITTED.is_dir()):
        where = folder or _COMMITTED
        differences = how.drift(how.files(made), where)
        problems += differences
        if differences:
            problems.append(f"`vllm-vitals dashboards build --out {where}` writes them again")
    for text in problems:
        say(text)
    if prometheus is not None:
        problems += _against(made, prometheus, timeout, say)
    panels = sum(1 for data in made.values() for panel in how.panels_of(data) if panel["type"] != "row")
    say(f"{len(made)} dashboards, {panels} panels: {f'{len(problems)} problems' if problems else 'sound'}")
    return 1 if problems else 0


def push(
    grafana: str, token_file: Path | None, sla: Path | None, folder: str | None, timeout: float, say: Say = print
) -> int:
    """Put the dashboards into a Grafana; returns the exit code. Without an SLA of one's own needs no grafanalib."""
    from .grafana import FOLDER, Grafana, GrafanaError, make_folder  # noqa: PLC0415
    from .grafana import push as put  # noqa: PLC0415

    made = [*_made(sla).values()] if sla is not None or not _COMMITTED.is_dir() else _committed()
    there = Grafana(grafana, _token(token_file), timeout)
    uid = folder or FOLDER
    try:
        make_folder(there, uid)
        for data in made:
            say(put(there, data, uid))
    except GrafanaError as error:
        say(str(error))
        return 1
    return 0


def _against(made: Mapping[str, Mapping[str, Any]], prometheus: str, timeout: float, say: Say) -> list[str]:
    """Run every query; say which find nothing, return which fail."""
    from .empty import results  # noqa: PLC0415
    from .queries import queries  # noqa: PLC0415

    failed, found = [], Counter[str]()
    for query, series, error in results(
        (query for data in made.values() for query in queries(data)), prometheus, timeout
    ):
        place = f"{query.dashboard}: {query.panel}: {query.ref_id}"
        found["failed" if error else "empty" if not series else "with series"] += 1
        if error:
            failed.append(f"{place}: {error}")
            say(failed[-1])
        elif not series:
            say(f"{place}: no series{f', needs {query.needs}' if query.needs else ''}: {query.runnable()}")
    say(f"{prometheus}: " + ", ".join(f"{count} {what}" for what, count in sorted(found.items())))
    return failed


def _made(sla: Path | None) -> dict[str, dict[str, Any]]:
    try:
        from .build import dashboards  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise ConfigError(f"dashboards need {error.name}: pip install 'vllm-vitals[dashboards]'") from None
    return dashboards(load(sla or DEFAULT))


def _committed() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(_COMMITTED.glob("*.json"))]


def _folder_of_checkout() -> Path:
    if not (_HERE.parent / "pyproject.toml").is_file():
        raise ConfigError("--out: expected a folder, found none; only a checkout has one of its own")
    return _COMMITTED


def _token(path: Path | None) -> str:
    if path is None:
        return os.environ.get("GRAFANA_TOKEN", "").strip()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file: expected a readable file, found {path}: {error}") from None

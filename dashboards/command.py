"""The command `vllm-vitals dashboards`: parsing and printing only."""

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..settings.installation import checkout, require
from ..settings.scalars import ConfigError
from ..settings.subcommands import Commands, Run, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

_HERE: Final = Path(__file__).parent
_COMMITTED: Final = _HERE / "json"
_EXTRA: Final = {"grafanalib": "grafanalib", "attrs": "grafanalib", "promql_parser": "promql-parser"}
_EXAMPLES: Final = {
    "dashboards": """examples:
  vllm-vitals dashboards push --grafana http://127.0.0.1:3000    save them in a Grafana
  vllm-vitals dashboards COMMAND --help                          more of each command""",
    "build": """examples:
  vllm-vitals dashboards build                               in a checkout: writes dashboards/json again
  vllm-vitals dashboards build --sla sla.yaml --out grafana  with your own promises as lines and colours
  vllm-vitals dashboards build --for-import publish          asks for data sources when it is imported""",
    "check": """examples:
  vllm-vitals dashboards check
  vllm-vitals dashboards check --sla sla.yaml --out grafana          also: are the files what this SLA makes?
  vllm-vitals dashboards check --prometheus http://127.0.0.1:9090    also: which queries find nothing there?

Exit code: 0 sound, 1 not, 2 wrong input. A query that finds nothing is told, but is no fault.""",
    "push": """examples:
  vllm-vitals dashboards push --grafana http://127.0.0.1:3000 --token-file grafana.token
  GRAFANA_TOKEN=glsa_... vllm-vitals dashboards push --grafana https://grafana.example.org --sla sla.yaml

The token is one of a service account of the role Editor. What lies there under the same uid is replaced.""",
}


def add_dashboards(commands: Commands) -> None:
    """Add the command and its sub-commands to those of `vllm-vitals`."""
    parts = commands.group("dashboards", "build, check and install the Grafana dashboards", _EXAMPLES)

    def command(name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        sub = parts.add(name, run, summary)
        sub.add_argument("--sla", type=Path, metavar="FILE", help="promises and limits to draw (default: ours)")
        return sub

    build = command("build", _build, "write the dashboards as JSON that any Grafana from 10.4 on imports")
    build.add_argument("--out", type=Path, metavar="DIR", help="where to (default in a checkout: dashboards/json)")
    build.add_argument(
        "--for-import", type=Path, metavar="DIR", help="write a form that asks for its data sources there"
    )

    check = command("check", _check, "find queries that can find nothing, broken rules, and files that differ")
    check.add_argument("--out", type=Path, metavar="DIR", help="files to compare (default without --sla: ours)")
    check.add_argument("--prometheus", metavar="URL", help="run every query there and tell which find nothing")
    check.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token for it")
    check.add_argument("--timeout", type=seconds, default=10.0, metavar="TIME", help="per query (default 10s)")

    push = command("push", _push, "save the dashboards in a Grafana, in a folder of their own")
    push.add_argument("--grafana", required=True, metavar="URL", help="address of Grafana, with its sub-path")
    push.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token (default: $GRAFANA_TOKEN)")
    push.add_argument("--folder", metavar="UID", help="save in this folder (default: vllm-vitals)")
    push.add_argument("--timeout", type=seconds, default=10.0, metavar="TIME", help="per call (default 10s)")


def _build(options: argparse.Namespace) -> int:
    out = options.out
    if out is None and options.for_import is None:
        out = _folder_of_checkout(options.sla)
    made = _made(options.sla)
    from .build import files, for_import, write  # noqa: PLC0415  needs grafanalib, which _made has asked for

    written = []
    if options.for_import is not None:
        written.append((files({slug: for_import(data) for slug, data in made.items()}), options.for_import))
    if out is not None:
        written.append((files(made), out))
    for texts, folder in written:
        try:
            write(texts, folder)
        except OSError as error:
            raise ConfigError(f"expected a writable folder, found {error.filename}: {error.strerror}") from None
        print(f"{folder}: {len(texts)} dashboards")
    return 0


def _check(options: argparse.Namespace) -> int:
    made = _made(options.sla)
    from ..alerts.sla_file import DEFAULT, load  # noqa: PLC0415
    from .build import drift, files, query_schema  # noqa: PLC0415
    from .limits import limits_of  # noqa: PLC0415
    from .lint import Context, findings  # noqa: PLC0415
    from .queries import panels  # noqa: PLC0415

    sla = load(options.sla or DEFAULT)
    context = Context(query_schema(sla), limits_of(sla))
    problems = [text for data in made.values() for text in findings(data, context)]
    folder = options.out or (_COMMITTED if options.sla is None and _COMMITTED.is_dir() else None)
    if folder is not None:
        problems += [f"{text}; dashboards build" for text in drift(files(made), folder)]
    for problem in problems:
        print(problem)
    failed = _ask(options, made) if options.prometheus is not None else 0
    count = sum(1 for data in made.values() for _ in panels(data))
    wrong = len(problems) + failed
    print(f"{f'{wrong} problems' if wrong else 'sound'}: {len(made)} dashboards, {count} panels")
    return 1 if wrong else 0


def _ask(options: argparse.Namespace, made: "Mapping[str, Mapping[str, Any]]") -> int:
    """Run every query; print those that fail or find nothing, and return how many failed."""
    from ..promql.api import Prometheus  # noqa: PLC0415
    from .empty import results  # noqa: PLC0415
    from .queries import queries  # noqa: PLC0415

    prometheus = Prometheus(options.prometheus, _token(options.token_file) or None, options.timeout)
    found, reasons = Counter[str](), Counter[str]()
    for query, series, error, why in results((one for data in made.values() for one in queries(data)), prometheus):
        place = f"{query.dashboard}: {query.panel}: {query.ref_id}"
        found["failed" if error else "found something" if series else "found nothing"] += 1
        if error:
            print(f"{place}: {error}")
        elif not series:
            reasons[why.partition(":")[0]] += 1
            print(f"{place}: nothing, {why}: {query.runnable()}")
    for why, count in reasons.most_common():
        print(f"{count} find nothing: {why}")
    print(f"{options.prometheus}: of {found.total()} queries " + ", ".join(f"{n} {what}" for what, n in found.items()))
    return found["failed"]


def _push(options: argparse.Namespace) -> int:
    from .grafana import FOLDER, Grafana, GrafanaError, make_folder, push  # noqa: PLC0415

    ours = options.sla is None and _COMMITTED.is_dir()  # then grafanalib is not needed
    made = _committed() if ours else [*_made(options.sla).values()]
    token = _token(options.token_file) or os.environ.get("GRAFANA_TOKEN", "").strip()
    there = Grafana(options.grafana, token, options.timeout)
    folder = options.folder or FOLDER
    try:
        make_folder(there, folder)
        for data in made:
            print(push(there, data, folder), flush=True)
    except GrafanaError as error:
        print(error)
        return 1
    return 0


def _made(sla: Path | None) -> dict[str, dict[str, Any]]:
    from ..alerts.sla_file import DEFAULT, load  # noqa: PLC0415

    require("dashboards", "dashboards", _EXTRA)
    from .build import dashboards  # noqa: PLC0415

    return dashboards(load(sla or DEFAULT))


def _committed() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(_COMMITTED.glob("*.json"))]


def _folder_of_checkout(sla: Path | None) -> Path:
    if checkout() is None:  # what is installed is not ours to write
        raise ConfigError("--out: expected a folder (--out DIR), found none; only a checkout has one of its own")
    if sla is not None:
        raise ConfigError(
            "--out: expected a folder (--out DIR) beside --sla, found none; ours holds the default promises"
        )
    return _COMMITTED


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file: expected a readable file, found {path}: {error}") from None

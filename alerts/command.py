"""The command `vllm-vitals rules`: parsing and printing only."""

import argparse
import difflib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..settings.installation import require
from ..settings.scalars import ConfigError
from ..settings.subcommands import Commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..promql.api import Prometheus
    from .sla import Sla

_OUT: Final = Path("rules")
_EXAMPLES: Final = {
    "rules": """examples:
  vllm-vitals rules build sla.yaml --out rules       write everything that watches the promises of sla.yaml
  vllm-vitals rules test sla.yaml                    run its unit tests with promtool
  vllm-vitals rules COMMAND --help                   more of each command""",
    "build": """examples:
  vllm-vitals rules build                            the default promises, into ./rules
  vllm-vitals rules build sla.yaml --out /etc/prometheus/rules --runbooks docs/runbooks
  vllm-vitals rules build sla.yaml --prometheus http://127.0.0.1:9090

Written: one NAME.rules.yml per service and gpus.rules.yml (for rule_files), alertmanager.yml, prometheusrule.yaml.
Begin with a copy of the default: vllm-vitals rules build --print-default > sla.yaml""",
    "check": """examples:
  vllm-vitals rules check sla.yaml
  vllm-vitals rules check sla.yaml --out rules       also: are the files in ./rules what this SLA makes?
  vllm-vitals rules check sla.yaml --prometheus http://127.0.0.1:9090

Exit code: 0 sound, 1 not, 2 wrong input.""",
    "test": """examples:
  vllm-vitals rules test sla.yaml
  vllm-vitals rules test sla.yaml --keep tests       leave promtool's files there""",
    "simulate": """examples:
  vllm-vitals rules simulate --traffic "0.5 rps, diurnal"
  vllm-vitals rules simulate sla.yaml --traffic "20/h, office" --plot alerts.png --objective ttft

Traffic: a mean rate (rps, /min, /h) and a curve: flat, diurnal (80% up and down), office (weekdays 8 to 18).
A dash: half of the failures of that size or more were not found within ten hours.""",
    "explain": """examples:
  vllm-vitals rules explain                          every alert in one line
  vllm-vitals rules explain VLLMTTFTBudgetBurn sla.yaml""",
}


def add_rules(commands: Commands) -> None:
    """Add the command and its sub-commands to those of `vllm-vitals`."""
    command = commands.group("rules", "turn an SLA file into rules, alerts, their tests and routes", _EXAMPLES).add

    def takes_sla(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "sla", type=Path, nargs="?", metavar="SLA", help="the SLA file (default: the one that comes along)"
        )

    def asks_prometheus(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--prometheus",
            metavar="URL",
            help="refuse selectors that match nothing there; measure promises between buckets",
        )
        sub.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token for it")

    build = command("build", _build, "write recording rules, alerts, Alertmanager's configuration and a PrometheusRule")
    takes_sla(build)
    build.add_argument("--out", type=Path, default=_OUT, metavar="DIR", help="where to (default: ./rules)")
    build.add_argument(
        "--runbooks", type=Path, metavar="DIR", help="also write a page per alert, with this SLA's queries"
    )
    build.add_argument("--print-default", action="store_true", help="print the default SLA file and do nothing else")
    asks_prometheus(build)

    check = command("check", _check, "say whether an SLA's rules can work: names, labels, joins, windows, drift")
    takes_sla(check)
    check.add_argument("--out", type=Path, metavar="DIR", help="files to compare with what this SLA makes")
    check.add_argument("--runbooks", type=Path, metavar="DIR", help="pages to compare, too")
    asks_prometheus(check)

    test = command("test", _test, "run an SLA's generated unit tests with promtool")
    takes_sla(test)
    test.add_argument("--keep", type=Path, metavar="DIR", help="write promtool's files there and leave them")

    simulate = command(
        "simulate", _simulate, "count false alerts and time detections for a traffic, beside plain policies"
    )
    takes_sla(simulate)
    simulate.add_argument("--traffic", required=True, metavar="TEXT", help='such as "0.5 rps, diurnal"')
    simulate.add_argument(
        "--objective", action="append", metavar="NAME", help="only this one, such as ttft; again for more"
    )
    simulate.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a picture, too")
    simulate.add_argument("--seeds", type=int, default=8, metavar="N", help="months to simulate (default 8)")

    explain = command("explain", _explain, "say what an alert means, with the numbers of an SLA")
    explain.add_argument("alert", nargs="?", metavar="ALERT", help="its name; without it all are listed")
    takes_sla(explain)


def _loaded(options: argparse.Namespace) -> "tuple[Sla, Callable[[str], str]]":
    from .sla_file import DEFAULT, load_placed  # noqa: PLC0415  each command loads what it needs

    return load_placed(options.sla or DEFAULT)


def _live(options: argparse.Namespace, sla: "Sla", place: "Callable[[str], str]") -> "list[str]":
    """Ask the running Prometheus, if one is named; returns what is worth a note."""
    from ..promql.api import QueryError  # noqa: PLC0415
    from .live import bucket_notes, refuse_unmatched  # noqa: PLC0415

    prometheus = _prometheus(options)
    if prometheus is None:
        return []
    try:
        refuse_unmatched(sla, prometheus, place)
        return [*bucket_notes(sla, prometheus)]
    except QueryError as error:
        raise ConfigError(f"--prometheus: {prometheus.url} refuses a query: {error}") from None


def _prometheus(options: argparse.Namespace) -> "Prometheus | None":
    from ..promql.api import Prometheus  # noqa: PLC0415

    if options.prometheus is None:
        return None
    if options.token_file is None:
        return Prometheus(options.prometheus)
    try:
        token = options.token_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"--token-file: expected a readable file, found {options.token_file}: {error.strerror}"
        ) from None
    return Prometheus(options.prometheus, token)


def _build(options: argparse.Namespace) -> int:
    from .build import generate, write  # noqa: PLC0415
    from .refusals import notes  # noqa: PLC0415
    from .runbooks import runbooks  # noqa: PLC0415
    from .sla_file import DEFAULT  # noqa: PLC0415

    if options.print_default:
        print(DEFAULT.read_text(encoding="utf-8"), end="")
        return 0
    sla, place = _loaded(options)
    said = _live(options, sla, place)
    for files, folder in ((generate(sla), options.out), (runbooks(sla), options.runbooks)):
        if folder is not None:
            try:
                write(files, folder)
            except OSError as error:
                raise ConfigError(
                    f"--out: expected a writable folder, found {error.filename}: {error.strerror}"
                ) from None
            _print_written(files, folder)
    _print_notes([*notes(sla), *said])
    return 0


def _print_written(files: "dict[str, str]", folder: Path) -> None:
    if len(files) > 8:
        print(f"{folder}: {len(files)} pages")
        return
    for name in files:
        print(folder / name)


def _print_notes(notes: "Sequence[str]") -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _check(options: argparse.Namespace) -> int:
    from .build import drift, generate, rule_groups, write  # noqa: PLC0415
    from .check import problems_of  # noqa: PLC0415
    from .promtool import said_wrong  # noqa: PLC0415
    from .refusals import notes  # noqa: PLC0415
    from .runbooks import runbooks  # noqa: PLC0415

    require("rules check", "rules", {"promql_parser": "promql-parser"})
    sla, place = _loaded(options)
    said = _live(options, sla, place)
    files = generate(sla)
    found = [*problems_of(sla)]
    with tempfile.TemporaryDirectory(prefix="vllm-vitals-") as folder:
        write(files, Path(folder))
        found += said_wrong(files, Path(folder))
    for made, there in ((files, options.out), (runbooks(sla), options.runbooks)):
        if there is not None:
            found += [f"{there / name}: differs from what this SLA makes; rules build" for name in drift(made, there)]
    for problem in found:
        print(problem)
    _print_notes([*notes(sla), *said])
    rules = sum(len(group.rules) for groups in rule_groups(sla).values() for group in groups)
    print(f"{'sound' if not found else f'{len(found)} problems'}: {rules} rules")
    return 1 if found else 0


def _test(options: argparse.Namespace) -> int:
    from .promtool import run_tests  # noqa: PLC0415

    sla, _ = _loaded(options)
    with tempfile.TemporaryDirectory(prefix="vllm-vitals-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tests, failed = 0, 0
        print("promtool plays hours of data for each file: about a minute on two cores", file=sys.stderr, flush=True)
        for outcome in run_tests(sla, folder):
            tests += outcome.tests
            failed += bool(outcome.failure)
            mark = "FAILED" if outcome.failure else "ok"
            print(f"{mark:<7}{outcome.name:<44}{outcome.tests:>3} tests  {outcome.seconds:5.1f} s", flush=True)
            if outcome.failure:
                print(outcome.failure)
    print(f"{tests} tests, {failed} files failed")
    return 1 if failed else 0


def _simulate(options: argparse.Namespace) -> int:
    from .simulate import Load, cases, simulate, table  # noqa: PLC0415

    plots = {} if options.plot is None else {"matplotlib": "matplotlib"}
    require("rules simulate", "rules", {"numpy": "numpy", **plots})
    sla, _ = _loaded(options)
    load = Load.read(options.traffic)
    if options.seeds < 1:
        raise ConfigError(f"--seeds: expected 1 or more, found {options.seeds}")
    wanted = set(options.objective or ())
    some = [case for case in cases(sla) if not wanted or any(name.split()[1] in wanted for name in case.names)]
    if not some:
        known = ", ".join(name.split()[1] for case in cases(sla) for name in case.names)
        raise ConfigError(f"--objective: expected one of {known}, found {', '.join(sorted(wanted))}")
    results = []
    try:
        for case in some:
            print(
                f"simulating {options.seeds} months of {load} for {', '.join(case.names)}", file=sys.stderr, flush=True
            )
            found = [*simulate(sla, case, load, seeds=options.seeds)]
            print(table(case, found), end="\n\n", flush=True)
            results.append((case, found))
        if options.plot is not None:
            from .simulate_plot import plot  # noqa: PLC0415

            plot(results, load, options.plot)
            print(options.plot)
    except OSError as error:
        raise ConfigError(f"--plot: expected a writable file, found {options.plot}: {error.strerror}") from None
    return 0


def _explain(options: argparse.Namespace) -> int:
    from .alert_names import ALERTS, BY_NAME  # noqa: PLC0415
    from .explain import explain  # noqa: PLC0415

    if options.alert is None:
        width = max(len(alert.name) for alert in ALERTS)
        for alert in ALERTS:
            print(f"{alert.name:<{width}}  {alert.meaning}")
        return 0
    sla, _ = _loaded(options)
    if options.alert not in BY_NAME:
        raise ConfigError(_unknown_alert(options.alert, BY_NAME))
    print("\n\n".join(explain(options.alert, sla)))
    print(f"\n{sla.runbooks}/{options.alert}.md")
    return 0


def _unknown_alert(name: str, known: "Iterable[str]") -> str:
    near = difflib.get_close_matches(name, [*known], n=1)
    hint = f", did you mean {near[0]}?" if near else "; `vllm-vitals rules explain` lists them"
    if Path(name).is_file():
        hint = f": the alert comes before the file: vllm-vitals rules explain ALERT {name}"
    return f"ALERT: expected the name of an alert, found {name!r}{hint}"

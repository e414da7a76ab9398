"""What Prometheus pays for all rules of the default SLA, for two services of eight engines each.

    python benchmarks/rules_evaluation.py [--seconds 600]

Two Prometheis on the same targets, each with its own copy of the same past, written by promtool: three days of every
series that rules read over an hour or more, recorded ones among them, and thirty days of the budgets' counts. One
evaluates the rules, the other only scrapes; the difference of their CPU times is the rules'. The demo plays the
engines, through real exporters.
"""

import argparse
import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from measured import table, usage
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import parse
from vllm_vitals.alerts.build import generate, rule_groups
from vllm_vitals.alerts.rules import Recording
from vllm_vitals.alerts.sla import Sla
from vllm_vitals.alerts.sla_file import DEFAULT, load

from support.programs import VITALS, Exporter  # isort: skip  measured puts tests/ on the path
from support.prometheus_server import PrometheusServer  # isort: skip
from support.waiting import wait_for  # isort: skip

ENGINES = 8
STEP = 30  # seconds between the samples of the past
RAW_DAYS = 3
BUDGET_DAYS = 30
BINARIES = Path("/usr/bin")
JOBS = ("vllm-vitals", "second")


def two_services(folder: Path) -> Sla:
    """Return the default SLA with its service twice."""
    data = yaml.safe_load(DEFAULT.read_text())
    (service,) = data["services"]
    data["services"].append({**service, "name": "second", "selector": {"job": "second"}})
    data["gpus"]["selector"] = {}
    path = folder / "sla.yaml"
    path.write_text(yaml.safe_dump(data))
    return load(path)


def ranges(node: Any) -> Iterator[tuple[Any, float]]:
    """Yield the selectors of an expression, each with the seconds that it looks back."""
    kind = type(node).__name__
    if kind == "VectorSelector":
        yield node, 0.0
    elif kind == "MatrixSelector":
        yield node.vector_selector, node.range.total_seconds()
    else:
        for name in ("expr", "lhs", "rhs"):
            if (child := getattr(node, name, None)) is not None:
                yield from ranges(child)
        for argument in node.args if kind == "Call" else ():
            yield from ranges(argument)


def read_long(sla: Sla) -> tuple[set[str], set[str]]:
    """Return the names of series that rules read over an hour or more, and the bucket bounds that they ask for.

    What is read over minutes fills by itself before anything is measured.
    """
    names, bounds = set(), set()
    for groups in rule_groups(sla).values():
        for group in groups:
            for rule in group.rules:
                for selector, seconds in ranges(parse(rule.expr)):
                    if seconds >= 3600:
                        names.add(selector.name)
                    bounds |= {pair.value for pair in selector.matchers.matchers if pair.name == "le"}
    return names, bounds


def line(name: str, labels: dict[str, str]) -> str:
    pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{pairs}}}"


def write_past(path: Path, series: list[tuple[str, float]], start: int, end: int, step: int) -> None:
    """Write series as OpenMetrics; each grows by its second figure per step, or stays at it when that is negative."""
    with path.open("w") as stream:
        for head, growth in series:
            stream.writelines(
                f"{head} {growth * number if growth >= 0 else -growth:.10g} {at}\n"
                for number, at in enumerate(range(start, end, step))
            )
        stream.write("# EOF\n")


def raw_series(pages: dict[str, tuple[str, str]], names: set[str], bounds: set[str]) -> list[tuple[str, float]]:
    """Return the series that rules read, with a growth per step for counters and a level for gauges."""
    result = []
    for job, (instance, page) in pages.items():
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name not in names or sample.labels.get("le", "") not in {"", *bounds}:
                    continue
                labels = {**sample.labels, "job": job, "instance": instance}
                grows = sample.name.endswith(("_total", "_count", "_bucket"))
                result.append((line(sample.name, labels), max(sample.value, 0.0) / 3 if grows else -sample.value))
    return result


def budget_series(sla: Sla, models: set[str]) -> list[tuple[str, float]]:
    """Return the five-minute counts from which budgets are added up."""
    return [
        (line(rule.record, {**rule.labels, "model_name": model}), -1000.0 if "total" in rule.record else -2.0)
        for groups in rule_groups(sla).values()
        for group in groups
        for rule in group.rules
        if isinstance(rule, Recording) and rule.record.endswith(":count5m")
        for model in models
    ]


def part_series(sla: Sla, models: set[str], names: set[str]) -> list[tuple[str, float]]:
    """Return the recorded hours and days of which longer windows are put together."""
    return [
        (line(rule.record, {**rule.labels, "model_name": model}), -1000.0 if "total" in rule.record else -2.0)
        for groups in rule_groups(sla).values()
        for group in groups
        for rule in group.rules
        if isinstance(rule, Recording) and rule.record in names and not rule.record.endswith(":count5m")
        for model in models
    ]


def backfill(folder: Path, data: Path, name: str, series: list[tuple[str, float]], days: int, step: int) -> int:
    """Write series of the last days as blocks; returns the number of samples."""
    text = folder / f"{name}.txt"
    end = int(time.time()) // step * step - step
    write_past(text, series, end - days * 86400, end, step)
    command = [BINARIES / "promtool", "tsdb", "create-blocks-from", "openmetrics", "--max-block-duration", "162h"]
    subprocess.run([*command, text, data], check=True, stdout=subprocess.DEVNULL)
    text.unlink()
    return len(series) * days * 86400 // step


def sweep_by_query(prometheus: PrometheusServer, sla: Sla) -> tuple[int, float]:
    """Return how many expressions there are and how long asking all of them once takes, one after the other."""
    expressions = [rule.expr for groups in rule_groups(sla).values() for group in groups for rule in group.rules]
    started = time.monotonic()
    for expression in expressions:
        prometheus.query(expression)
    return len(expressions), time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="how long CPU is measured (default 600)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        sla = two_services(folder)
        started = time.monotonic()
        subprocess.run([VITALS, "rules", "build", "--out", folder / "built"], check=True, stdout=subprocess.DEVNULL)
        build_seconds = time.monotonic() - started
        rules = []
        for file, text in generate(sla).items():
            if file.endswith(".rules.yml"):
                (folder / file).write_text(text)
                rules.append(folder / file)

        pages, targets = {}, {}
        for job in JOBS:
            size = ("--engines", ENGINES, "--simulated-gpus", 8, "--base-port", 0, "--host", "off")
            demo = Exporter(*size, log=folder / f"{job}.log", command="demo")
            stack.callback(demo.stop)
            demo.ready(f"{demo.url}/healthz", seconds=60)
            address = demo.url.removeprefix("http://")
            wait_for(lambda demo=demo: "vllm:e2e_request_latency_seconds_count" in demo.page(), "pages", seconds=60)
            time.sleep(10)  # so that counters hold something to tell growth by
            targets[job], pages[job] = [address], (address, demo.page())

        names, bounds = read_long(sla)
        data = folder / "data"
        data.mkdir()
        raw = raw_series(pages, names, bounds)
        models = set(re.findall(r'model_name="([^"]+)"', pages[JOBS[0]][1]))
        started = time.monotonic()
        samples = backfill(folder, data, "raw", raw, RAW_DAYS, STEP)
        parts = part_series(sla, models, names)
        samples += backfill(folder, data, "parts", parts, RAW_DAYS, 120)
        samples += backfill(folder, data, "budgets", budget_series(sla, models), BUDGET_DAYS, 300)
        took = time.monotonic() - started
        print(f"past: {len(raw)} raw and {len(parts)} recorded series, {samples:,} samples, written in {took:.0f} s\n")

        servers = {}
        for kind, some in (("with rules", rules), ("without", [])):
            own = folder / kind.replace(" ", "-")
            shutil.copytree(data, own / "data")
            retention = "--storage.tsdb.retention.time=45d"
            server = PrometheusServer(BINARIES, own, targets, interval=15.0, rules=some, options=[retention])
            stack.callback(server.stop)
            servers[kind] = server
        for server in servers.values():
            server.wait_until_ready()
        ruled = servers["with rules"]
        wait_for(
            lambda: all(rule["lastEvaluation"][:4] > "0001" for rule in ruled.rules()), "the budgets' turn", seconds=400
        )
        before, began = {kind: usage(server.process.pid).cpu for kind, server in servers.items()}, time.monotonic()
        time.sleep(options.seconds)
        elapsed = time.monotonic() - began
        shares = {kind: (usage(server.process.pid).cpu - before[kind]) / elapsed for kind, server in servers.items()}

        times = sorted((rule["evaluationTime"], rule["name"]) for rule in ruled.rules())
        count, asked = sweep_by_query(ruled, sla)
        sick = [rule["name"] for rule in ruled.rules() if rule["health"] != "ok"]
        assert not sick, sick
        table(
            ("what", "figure"),
            [
                ("rules", count),
                ("series of the targets", ruled.query("sum(scrape_samples_scraped)")[0]["value"][1]),
                ("one sweep of all rules, sum of evaluation times", f"{sum(seconds for seconds, _ in times):.2f} s"),
                ("the same expressions over HTTP, one after the other", f"{asked:.2f} s"),
                ("a rule: median", f"{times[len(times) // 2][0] * 1e3:.2f} ms"),
                ("a rule: 99th percentile", f"{times[int(len(times) * 0.99)][0] * 1e3:.2f} ms"),
                (f"the most expensive: {times[-1][1]}", f"{times[-1][0] * 1e3:.2f} ms"),
                ("CPU with rules, of a core", f"{shares['with rules']:.4f}"),
                ("CPU without", f"{shares['without']:.4f}"),
                ("**the rules' part**", f"**{shares['with rules'] - shares['without']:.4f}**"),
                (
                    "RSS with rules and without, MiB",
                    " and ".join(f"{usage(s.process.pid).rss:.0f}" for s in servers.values()),
                ),
                ("`rules build` of the default SLA", f"{build_seconds:.2f} s"),
            ],
        )


if __name__ == "__main__":
    main()

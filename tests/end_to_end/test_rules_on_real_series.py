"""Every rule of the default SLA finds what it asks for: real Prometheus, 2.42 and 3.x, over a real vLLM's series.

The engine is a real vLLM on CPU with the plugin, under traffic; the GPUs are a fake driver's behind the real binding.
Beside the default service there are one with exact goodput (the plugin's requests page) and one whose engines
Prometheus scrapes itself. Rules stay as they are, but every group is evaluated each five seconds: those of budgets
would begin up to five minutes later.
"""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from fake_nvml.fixtures import fake_driver
from promql_parser import parse
from support.fixtures import CACHE
from support.programs import Exporter
from support.prometheus_server import PrometheusServer
from support.traced_vllm import TracedVllm
from support.waiting import wait_for
from vllm_vitals.alerts.build import generate, rule_groups
from vllm_vitals.alerts.causes import CAUSES, query_of
from vllm_vitals.alerts.rules import Alert
from vllm_vitals.alerts.sla import DEFAULT, Sla, load

VERSIONS = {"2": Path("/usr/bin"), "3": CACHE / "prometheus3/usr/bin"}

# Series that a healthy system does not have, by how their selectors begin, with the reason.
ABSENT = {
    'nvidia_gpu_xid_errors_total{job="vllm-vitals",xid!~': "an XID without a child at 0 is born with its first event",
    'vllm_vitals_nvml_up{job="vllm-vitals",reason!~': "while the driver answers, the reason is empty",
    "vllm_vitals_spot_interruption_timestamp_seconds": "there only while the cloud takes the machine away",
    'http_requests_total{job="direct",method="POST",status="5xx"': "vLLM itself has no child of 5xx before the first",
}
# Alerts that say something about this machine and not about the rules.
UNDECIDED = {
    "VLLMTTFTBudgetBurn": "two shared processors keep no promise of time",
    "VLLMTPOTBudgetBurn": "the same",
    "VLLMITLBudgetBurn": "the same",
    "VLLME2EBudgetBurn": "the same",
    "VLLMQueueBudgetBurn": "the same",
    "VLLMGoodputBudgetBurn": "the same",
}


class Watched(NamedTuple):
    """The SLA, and a Prometheus that evaluates its rules."""

    sla: Sla
    prometheus: PrometheusServer


def widened_sla(folder: Path) -> Path:
    """Write the default SLA with two more services, which differ in where their series come from."""
    data = yaml.safe_load(DEFAULT.read_text())
    (default,) = data["services"]
    data["services"] += [
        {**default, "name": "exact", "requests_page": "on"},
        {**default, "name": "direct", "selector": {"job": "direct"}, "via": "engine"},
    ]
    path = folder / "sla.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def often(text: str) -> str:
    """Return a rule file whose groups are evaluated every five seconds."""
    data = yaml.safe_load(text)
    for group in data["groups"]:
        group["interval"] = "5s"
    return yaml.safe_dump(data, sort_keys=False)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Iterator[Mapping[str, Watched]]:
    """One exporter over one engine, every Prometheus that is here beside it."""
    folder = tmp_path_factory.mktemp("rules")
    driver = fake_driver(folder)
    (folder / "vitals.yaml").write_text("tracing:\n  goodput: {ttft: 500ms, tpot: 75ms}\n")  # as the SLA says
    vllm = TracedVllm(CACHE, environment={"VLLM_VITALS_CONFIG": str(folder / "vitals.yaml")})
    programs: list[Any] = [vllm]
    stop = threading.Event()
    traffic = threading.Thread(target=lambda: keep_busy(vllm, stop))
    try:
        sla = load(widened_sla(folder))
        rules = []
        for name, text in generate(sla).items():
            if name.endswith(".rules.yml"):
                (folder / name).write_text(often(text))
                rules.append(folder / name)
        vllm.wait_until_ready()
        core = vllm.engine_core()
        worker = next(iter(core.children(recursive=True)), core)
        driver.state.processes(1, [(worker.pid, 7 * 2**30)])
        options = ("--gpus", "on", "--host", "on", "--engine", f"tiny={vllm.url}")
        exporter = Exporter(*options, log=folder / "exporter.log", env=driver.env)
        programs.append(exporter)
        exporter.ready(f"{exporter.url}/readyz", seconds=60)
        traffic.start()
        address = exporter.url.removeprefix("http://")
        result = {}
        for version, binaries in VERSIONS.items():
            if not (binaries / "prometheus").exists():
                continue
            prometheus = PrometheusServer(
                binaries,
                folder / f"prometheus{version}",
                {
                    "vllm-vitals": [address],
                    "vllm-vitals-requests": [address],
                    "direct": [vllm.url.removeprefix("http://")],
                },
                paths={"vllm-vitals-requests": "/metrics/requests"},
                interval=2.0,
                rules=rules,
            )
            programs.append(prometheus)
            result[version] = Watched(sla, prometheus)
        for one in result.values():
            one.prometheus.wait_until_ready()
            # Enough for every rule to have been evaluated on counters that moved: what is missing then, is missing.
            wait_for(
                lambda: one.prometheus.query("min(count_over_time(slo:error_budget_remaining:ratio[5m])) > 2"),  # noqa: B023
                "budgets",
                seconds=180,
                pause=1.0,
            )
        yield result
    finally:
        stop.set()
        if traffic.ident is not None:
            traffic.join(120)
        driver.state.release()
        for program in reversed(programs):
            program.stop()


def keep_busy(vllm: TracedVllm, stop: threading.Event) -> None:
    while not stop.is_set():
        vllm.traffic(2, max_tokens=8)


@pytest.fixture(params=VERSIONS)
def on(request, watched) -> Watched:
    if request.param not in watched:
        pytest.skip(f"no Prometheus {request.param} here")
    return watched[request.param]


def selectors(expression: str) -> list[str]:
    """Return every selector of an expression, without offsets: there is no past here."""
    found: list[str] = []

    def walk(node: Any) -> None:
        if type(node).__name__ == "VectorSelector":
            found.append(node.prettify().partition(" offset")[0])
        for name in ("expr", "lhs", "rhs", "vector_selector"):
            if (child := getattr(node, name, None)) is not None:
                walk(child)
        for argument in node.args if type(node).__name__ == "Call" else ():
            walk(argument)

    walk(parse(expression))
    return found


def without_series(prometheus: PrometheusServer, expressions: Mapping[str, str]) -> dict[str, str]:
    """Return the selectors that find nothing, with one expression each that holds them; listed ones are left out."""
    chosen = {selector: name for name, expression in expressions.items() for selector in selectors(expression)}
    return {
        selector: name
        for selector, name in chosen.items()
        # Over minutes: a scrape that a busy machine answers too late leaves a gap.
        if not selector.startswith(tuple(ABSENT)) and not prometheus.query(f"last_over_time({selector}[5m])")
    }


def test_every_recording_rule_has_series(on):
    rules = [rule for groups in rule_groups(on.sla).values() for group in groups for rule in group.rules]
    recorded = {
        (rule.record, rule.labels["slo"], rule.labels["service"]) for rule in rules if not isinstance(rule, Alert)
    }
    there = {
        (name, row["metric"]["slo"], row["metric"]["service"])
        for name in {rule.record for rule in rules if not isinstance(rule, Alert)}
        for row in on.prometheus.query(f"group by (slo, service) (last_over_time({name}[5m]))")
    }
    assert len(recorded) > 600
    assert not recorded - there


def test_no_rule_has_an_evaluation_error(on):
    wait_for(lambda: all(rule["lastEvaluation"][:4] > "0001" for rule in on.prometheus.rules()), "evaluations")
    sick = [rule for rule in on.prometheus.rules() if rule["health"] != "ok" or rule.get("lastError")]
    assert not sick, [(rule["group"], rule["name"], rule.get("lastError")) for rule in sick]


def test_every_selector_of_every_alert_finds_series(on):
    rules = [rule for groups in rule_groups(on.sla).values() for group in groups for rule in group.rules]
    alerts = {f"{rule.alert} {rule.labels}": rule.expr for rule in rules if isinstance(rule, Alert)}
    assert len(alerts) > 150
    assert not without_series(on.prometheus, alerts)


def test_what_is_listed_as_absent_is_asked_for_and_absent(on):
    rules = [rule for groups in rule_groups(on.sla).values() for group in groups for rule in group.rules]
    asked = {selector for rule in rules for selector in selectors(rule.expr)}
    for beginning in ABSENT:
        meant = [selector for selector in asked if selector.startswith(beginning)]
        assert meant, beginning
        assert not [selector for selector in meant if on.prometheus.query(selector)]


def test_a_healthy_system_raises_no_alert(on):
    """Not even a pending one; a scrape that came too late makes some, and they go again."""

    def quiet() -> bool:
        names = {row["metric"]["alertname"] for row in on.prometheus.query("ALERTS")}
        assert names <= UNDECIDED.keys(), names
        return True

    wait_for(quiet, "silence", seconds=60, pause=1.0)


def test_the_queries_of_runbooks_find_what_they_ask_for(on):
    queries = {
        f"{service.name}: {cause}": query_of(CAUSES[cause], on.sla, service)
        for service in on.sla.services
        if service.via == "exporter"
        for cause in CAUSES
    }
    for query in queries.values():
        on.prometheus.query(query)  # raises for what Prometheus refuses
    assert not without_series(on.prometheus, queries)

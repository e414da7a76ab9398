"""Every rule and every panel finds what it asks for: real Prometheus, 2.42 and 3.x, over a real vLLM's series.

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
from support.prometheus_server import Alertmanager, PrometheusServer
from support.traced_vllm import TracedVllm
from support.waiting import wait_for
from vllm_vitals.alerts.build import generate, rule_groups
from vllm_vitals.alerts.causes import CAUSES, query_of
from vllm_vitals.alerts.rules import Alert
from vllm_vitals.alerts.sla import Sla
from vllm_vitals.alerts.sla_file import DEFAULT, load
from vllm_vitals.dashboards.build import dashboards
from vllm_vitals.dashboards.queries import Query, other_queries, queries

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
# What dashboards ask for and a test's machine does not have, by the title of the row.
NOT_HERE = {
    "--speculative-config": "no draft model",
    "--enable-lora": "no adapter",
    "--kv-transfer-config": "no shared KV cache",
    "--kv-cache-metrics": "off",
    "VLLM_COMPUTE_NANS_IN_LOGITS=1": "off",
    "MIG mode": "the fake GPUs are whole",
    "OpenTelemetry Collector scraped": "none runs",
    "elasticsearch_exporter": "none runs",
}
# What stays empty on a healthy system, by a part of its query.
_FIRST = "a counter by reason has no child before the first failure"
EMPTY = {
    "ALERTS{": "nothing fires; test_alerts_fire has alerts",
    "increase(vllm_vitals_server_restarts_total": "the annotation marks restarts, and there are none",
    "* 2592000 /": "how long a budget lasts at a rate, which is zero",
    "vllm:mm_cache_": "a text model gets no images",
    "nvidia_gpu_matrix_stall_ratio": "Blackwell only",
    "nvidia_gpu_temperature_margin_limit_celsius": "newer than the fake GPUs",
    "nvidia_gpu_throttle_active": "the state of a moment; the seconds of it are asked for, too",
    "nvidia_gpu_fan_speed_ratio": "cooled passively",
    "nvidia_gpu_retired_pages": "older than the fake GPUs",
    "nvidia_gpu_call_failures_total": _FIRST,
    "vllm_vitals_server_request_page_failures_total": _FIRST,
    "vllm_vitals_part_failures_total": _FIRST,
    "vllm_vitals_discovery_failures_total": _FIRST,
    "vllm_vitals_http_rejected_total": _FIRST,
    "vllm_vitals_tracing_sink_failures_total": _FIRST,
    "vllm_vitals_tracing_hook_fallbacks_total": _FIRST,
    "vllm_vitals_tracing_hook_failures_total": _FIRST,
    "vllm_vitals_spot_": "no cloud",
    "prometheus_rule_evaluation_failures_total": "shown once it happens",
    "prometheus_rule_group_iterations_missed_total": "shown once it happens",
    "alertmanager_notifications": "nobody was told anything",
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
    vllm = TracedVllm(CACHE)
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
        # Shows XIDs, throttling and a lost GPU, which neither engine nor fake driver have. The rules do not select it.
        demo = Exporter("--scene", "xid", "--base-port", 0, "--host", "off", log=folder / "demo.log", command="demo")
        programs.append(demo)
        (folder / "alertmanager.yml").write_text(generate(sla)["alertmanager.yml"])
        alertmanager = Alertmanager(folder / "alertmanager.yml", folder / "alertmanager")
        programs.append(alertmanager)
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
                    "alertmanager": [alertmanager.address],
                    "demo": [demo.url.removeprefix("http://")],
                },
                paths={"vllm-vitals-requests": "/metrics/requests"},
                interval=2.0,
                rules=rules,
                alertmanager=alertmanager.address,
                itself=True,
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


def panel_queries(sla: Sla) -> list[Query]:
    """Return what the dashboards ask Prometheus, panels, annotations and variables."""
    made = dashboards(sla).values()
    return [query for data in made for query in (*queries(data), *other_queries(data)) if query.source == "prometheus"]


def test_no_panel_is_empty(on):
    """A panel without series is a mistake, but for those listed above, and what needs a flag or program is not here."""
    asked = [query for query in panel_queries(on.sla) if query.needs not in NOT_HERE and not _listed(query)]
    assert len(asked) > 320
    missing = {query.runnable(): f"{query.dashboard} / {query.panel} / {query.ref_id}" for query in asked}

    def all_seen() -> bool:
        for expression in [*missing]:
            if on.prometheus.query(expression):
                del missing[expression]
        assert not missing, missing
        return True

    # The demo's scene reports its XID after half a minute; a scrape that comes too late leaves a gap.
    wait_for(all_seen, "series of every panel", seconds=120, pause=2.0)


def _listed(query: Query) -> bool:
    return any(name in query.expression for name in EMPTY)


def test_what_panels_may_lack_is_asked_for(on):
    found = panel_queries(on.sla)
    assert {query.needs for query in found} >= NOT_HERE.keys()
    assert [name for name in EMPTY if not any(name in query.expression for query in found)] == []

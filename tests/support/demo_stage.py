"""Every scene of the demo behind real exporters, watched by one real Prometheus and one real Alertmanager.

Half an hour of the rules passes in a minute: all their durations are divided by FACTOR. Each scene is a service of one
SLA, so an alert's label `service` names the scene; those of GPUs carry it as `job`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from vllm_vitals.alerts.build import generate
from vllm_vitals.alerts.sla_file import load

from .http import get
from .programs import Exporter
from .prometheus_server import Alertmanager, PrometheusServer
from .shortened_rules import shortened_routes, shortened_rules
from .waiting import wait_for
from .webhook import Webhook

FACTOR = 30.0
SCRAPE_SECONDS = 1.0  # so the shortest window, 2m here, holds four scrapes
MOST_MISSED = 0.03  # share of evaluations; 0.02 with five times as much to do as there are processors
GROUP_SECONDS = 2.0  # no group is evaluated more often: two processors have to do for everything

# A week instead of a month: its trickle tier looks back over 84 minutes and not six hours, so it ends in this test.
SLA = """
window: 7d
scrape_interval: 30s
retention: 15d
services:
{services}
gpus:
  limits:
    temperature: at most 85 C for 5m
    memory_temperature: at most 95 C for 5m
    memory: at most 99% for 5m
    power: at most 102% for 5m
    throttle: at most 10% for 2m
receivers:
  page: {{type: webhook, url: "{webhook}/page"}}
  ticket: {{type: webhook, url: "{webhook}/ticket"}}
"""
SERVICE = """
  - name: {scene}
    selector: {{job: {scene}}}
    objectives:
      ttft: 98% under 2.5s
      tpot: 99% under 75ms
      queue: {{promise: 98% under 2s, severity: ticket}}
      goodput: 94%{more}
    limits:
      throughput: at least 1 tok/s for 7m
      queue_length: at most 20 for 2m
      kv_cache: at most 95% for 5m
      preemptions: at most 0.2/s for 2m
"""
# Where servers die. The demo answers nobody with 5xx and ends no sequence in an error: these promises are kept.
ERRORS = """
      availability: 99.9%
      engine_errors: 99.9%"""
# The sidecar's own clocks, as short as they may be.
SETTINGS = """
sample_interval: 1s
gpus: {interval: 1s, slow_interval: 2s}
health: {engine_stall: 10s}
"""


class Playing(NamedTuple):
    """How often and how fast a scene is played: fast enough to be over soon, slow enough for its shortest event."""

    times: int
    speed: float


class Stage(NamedTuple):
    """What runs: the demos by scene, and who watches them."""

    demos: Mapping[str, Exporter]
    prometheus: PrometheusServer
    alertmanager: Alertmanager
    webhook: Webhook

    def starved(self) -> str:
        """Say how far the machine fell behind, empty when it kept up: divided times are a matter of real time."""
        page = get(f"{self.prometheus.url}/metrics").text
        missed, due = (
            sum(
                float(value)
                for value in re.findall(rf"^prometheus_rule_group_iterations_{what}{{.*}} (\S+)$", page, re.MULTILINE)
            )
            for what in ("missed_total", "total")
        )
        failed = [row["metric"]["job"] for row in self.prometheus.query("avg_over_time(up[1h]) < 0.95")]
        if missed < MOST_MISSED * due and not failed:
            return ""
        return f"{missed:.0f} of {due:.0f} evaluations missed, scrapes failed for {failed or 'nobody'}"

    def is_over(self, scene: str) -> bool:
        return f"scene {scene} is over" in self.demos[scene].output


@contextmanager
def stage(folder: Path, playing: Mapping[str, Playing]) -> Iterator[Stage]:
    """Let every scene play, with everything that watches it."""
    with ExitStack() as stack:
        webhook = stack.enter_context(Webhook())
        rules, routes = _files(folder, playing, webhook)
        alertmanager = Alertmanager(routes, folder / "alertmanager")
        stack.callback(alertmanager.stop)
        alertmanager.wait_until_ready()
        (folder / "vitals.yaml").write_text(SETTINGS)
        demos = {}
        for scene, how in playing.items():
            options = ("--scene", scene, "--times", how.times, "--speed", how.speed, "--base-port", 0, "--host", "off")
            demos[scene] = Exporter(
                "--config", folder / "vitals.yaml", *options, log=folder / f"{scene}.log", command="demo"
            )
            stack.callback(demos[scene].stop)
        prometheus = PrometheusServer(
            Path("/usr/bin"),
            folder / "prometheus",
            {scene: [demo.url.removeprefix("http://")] for scene, demo in demos.items()},
            interval=SCRAPE_SECONDS,
            alertmanager=alertmanager.address,
        )
        stack.callback(prometheus.stop)
        prometheus.wait_until_ready()
        # Prometheus takes five seconds to find its first target: too long for rules whose minutes are seconds.
        wait_for(lambda: len(prometheus.query("up == 1")) == len(demos), "a scrape of every demo", seconds=90)
        prometheus.load_rules(rules)
        yield Stage(demos, prometheus, alertmanager, webhook)


def _files(folder: Path, scenes: Mapping[str, Playing], webhook: Webhook) -> tuple[list[Path], Path]:
    """Write what the SLA generates, shortened; return the rule files and Alertmanager's configuration."""
    services = "".join(
        SERVICE.format(scene=scene, more=ERRORS if scene in {"xid", "engine-crash", "steady"} else "")
        for scene in scenes
    )
    (folder / "sla.yaml").write_text(SLA.format(services=services, webhook=webhook.url))
    rules = []
    for name, text in generate(load(folder / "sla.yaml")).items():
        path = folder / name
        if name.endswith(".rules.yml"):
            path.write_text(shortened_rules(text, FACTOR, GROUP_SECONDS))
            rules.append(path)
        elif name == "alertmanager.yml":
            path.write_text(shortened_routes(text, FACTOR))
    return rules, folder / "alertmanager.yml"

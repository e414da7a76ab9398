"""A real Prometheus and a real Alertmanager of a test's own, on loopback, with their data in the test's folder."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from vllm_vitals.cli.companions import ALERTMANAGER, on_path

from .http import free_port, get
from .programs import Program
from .waiting import wait_for


class PrometheusServer(Program):
    """A Prometheus that scrapes jobs and evaluates rules.

    Args:
        binaries: folder with the program.
        folder: for its configuration, data and log.
        jobs: job -> host:port addresses.
        paths: job -> path of its pages, where it is not /metrics.
        interval: seconds between scrapes.
        rules: rule files.
        alertmanager: host:port of one.
        itself: scrape itself, too, as the job `prometheus`.
        options: more arguments.
    """

    def __init__(
        self,
        binaries: Path,
        folder: Path,
        jobs: Mapping[str, Sequence[str]],
        *,
        paths: Mapping[str, str] | None = None,
        interval: float = 1.0,
        rules: Sequence[Path] = (),
        alertmanager: str | None = None,
        itself: bool = False,
        options: Sequence[str] = (),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        milliseconds = f"{round(interval * 1000)}ms"
        managers = [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else []
        config = {
            "global": {
                "scrape_interval": milliseconds,
                "scrape_timeout": milliseconds,
                "evaluation_interval": milliseconds,
            },
            "rule_files": [str(path) for path in rules],
            "alerting": {"alertmanagers": managers},
            "scrape_configs": [
                {
                    "job_name": job,
                    "metrics_path": (paths or {}).get(job, "/metrics"),
                    "static_configs": [{"targets": list(targets)}],
                }
                for job, targets in {**jobs, **({"prometheus": [address]} if itself else {})}.items()
            ],
        }
        self._config = config
        self._path = folder / "prometheus.yml"
        self._path.write_text(yaml.safe_dump(config, sort_keys=False))
        command = [
            binaries / "prometheus",
            f"--config.file={self._path}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            *options,
        ]
        super().__init__(command, folder / "prometheus.log", cwd=folder)

    def wait_until_ready(self) -> None:
        self.ready(f"{self.url}/-/ready", seconds=60)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return an expression's series; one that Prometheus refuses is an AssertionError."""
        # POST: generated expressions outgrow a URL.
        answer = get(f"{self.url}/api/v1/query", data=urlencode({"query": expression}).encode()).json
        assert answer["status"] == "success", f"{expression}: {answer}"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def load_rules(self, rules: Sequence[Path]) -> None:
        """Let it evaluate these rules from now on."""
        self._config["rule_files"] = [str(path) for path in rules]
        self._path.write_text(yaml.safe_dump(self._config, sort_keys=False))
        self.process.send_signal(signal.SIGHUP)
        wait_for(self.rules, f"rules: {self.output[-2000:]}", seconds=60)

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its state, and its group's name as `group`."""
        groups = get(f"{self.url}/api/v1/rules").json["data"]["groups"]
        return [{"group": group["name"], **rule} for group in groups for rule in group["rules"]]


class Alertmanager(Program):
    """An Alertmanager with a configuration file."""

    def __init__(self, config: Path, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        program = on_path(ALERTMANAGER)
        assert program is not None, "Alertmanager is missing; ./vitals test installs it"
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        command = [
            program,
            f"--config.file={config}",
            f"--storage.path={folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--cluster.listen-address=",
        ]
        super().__init__(command, folder / "alertmanager.log", cwd=folder)

    def wait_until_ready(self) -> None:
        self.ready(f"{self.url}/-/ready", seconds=60)

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that it holds, each with what inhibits it."""
        found: list[dict[str, Any]] = get(f"{self.url}/api/v2/alerts").json
        return found

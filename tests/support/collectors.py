"""Real OTLP collectors between the plugin and a receiver: Rotel, and the OpenTelemetry Collector where it was built.

`tests/otelcol/build.sh` takes minutes, so the tests run without its program, too. It has the core's components only;
it gets the shipped configuration without contrib's.
"""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from vllm_vitals.compose.bundle import SHIPPED

from .fixtures import CACHE
from .http import free_port
from .programs import Program
from .waiting import wait_for

CORE = CACHE / "otelcol/otelcol-core"
KINDS = ["core", "rotel"] if CORE.exists() else ["rotel"]
CONTRIB = {"redaction", "span_metrics", "prometheus", "health_check"}
ALIASES = {"otlp_grpc": "otlp"}  # its name before 0.159, which Debian's is older than


def core_part(config: dict[str, Any]) -> dict[str, Any]:
    """Return a collector's configuration without what only contrib has."""

    def kept(name: str) -> bool:
        return name.partition("/")[0] not in CONTRIB

    def renamed(name: str) -> str:
        kind, slash, rest = name.partition("/")
        return ALIASES.get(kind, kind) + slash + rest

    parts = ("extensions", "receivers", "processors", "connectors", "exporters")
    left = {part: {renamed(n): value for n, value in config.get(part, {}).items() if kept(n)} for part in parts}
    pipelines = {}
    for name, pipeline in config["service"]["pipelines"].items():
        lists = {part: [renamed(one) for one in ones if kept(one)] for part, ones in pipeline.items()}
        if lists["receivers"] and lists["exporters"]:
            pipelines[name] = lists
    # No metrics of its own: that part reads a Prometheus exporter, which Debian's packages do not have.
    service = {"pipelines": pipelines, "telemetry": {"metrics": {"level": "none"}}}
    return {**{part: named for part, named in left.items() if named}, "service": service}


class Collector(Program):
    """A collector that passes all on to a receiver.

    Args:
        kind: one of KINDS.
        receiver: its gRPC URL.
        folder: for configuration and log.
    """

    def __init__(self, kind: str, receiver: str, folder: Path):
        self.grpc_url, self.http_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        grpc, http = self.grpc_url[7:], self.http_url[7:]
        if kind == "core":
            config = core_part(yaml.safe_load((SHIPPED / "collector/config.yaml").read_text()))
            config["receivers"]["otlp"]["protocols"] = {"grpc": {"endpoint": grpc}, "http": {"endpoint": http}}
            config["exporters"]["otlp/jaeger"]["endpoint"] = receiver[7:]
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            command = [CORE, f"--config={folder}/config.yaml"]
        else:
            command = [
                Path(str(find_spec("rotel").origin)).with_name("rotel-agent"), "start",
                "--otlp-grpc-endpoint", grpc, "--otlp-http-endpoint", http, "--otlp-exporter-endpoint", receiver,
                "--batch-timeout", "50ms",
            ]  # fmt: skip
        super().__init__(command, folder / f"{kind}.log")
        try:
            for url in (self.grpc_url, self.http_url):
                wait_for(lambda url=url: self._listens(url), f"{kind} at {url}")
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}\n{self.output[-3000:]}") from None

    def _listens(self, url: str) -> bool:
        assert self.process.poll() is None, f"ended with {self.process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5).close()
        except ConnectionRefusedError:
            return False
        return True

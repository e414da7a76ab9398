import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_engine import bundles, images
from docker_engine.bundles import Bundle
from support import container_lines
from support.compose_files import read_compose
from support.fixtures import CACHE
from vllm_vitals.compose.bundle import SHIPPED, init

WEBHOOK = "http://127.0.0.1:9999/"
SINK = """
import http.server as h
class S(h.BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.rfile.read(int(self.headers['Content-Length'])).decode(), flush=True)
        self.send_response(200)
        self.end_headers()
h.HTTPServer(('127.0.0.1', 9999), S).serve_forever()
"""


@pytest.fixture(scope="session")
def compose_file() -> dict:
    """The shipped compose.yaml as data."""
    return read_compose(SHIPPED / "compose.yaml")


@pytest.fixture(scope="session")
def fresh_bundle(tmp_path_factory) -> Path:
    """A bundle as `init` writes it, to be copied."""
    folder = tmp_path_factory.mktemp("fresh") / "bundle"
    init(folder)
    return folder


@pytest.fixture(scope="session")
def programs() -> Path:
    """Docker's programs, unpacked from Debian's packages."""
    try:
        return bundles.unpacked(CACHE)
    except bundles.NoDockerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def docker(programs: Path) -> Iterator[images.Docker]:
    """A Docker daemon of this module's own, with an image for each pin."""
    with contextlib.ExitStack() as stack:
        try:
            docker = stack.enter_context(bundles.engine(programs, CACHE))
        except bundles.NoDockerError as error:
            pytest.skip(str(error))
        yield docker


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[container_lines.Line]:
    """What the stand-in for vLLM writes."""
    return container_lines.lines(tmp_path_factory.mktemp("state") / "s")


@pytest.fixture(scope="module")
def running_bundle(docker: images.Docker, compose_file: dict, lines, tmp_path_factory) -> Iterator[Bundle]:
    """A bundle of the profiles all and demo and a stand-in for vLLM, started by the command."""
    sla = tmp_path_factory.mktemp("sla") / "sla.yaml"
    promises = (SHIPPED.parent / "alerts/sla.yaml").read_text()
    sla.write_text(
        re.sub(r"(?ms)^receivers:.*", "", promises)
        + f'receivers:\n  page: {{type: webhook, url: "{WEBHOOK}"}}\n  ticket: {{}}\n'
    )
    bundle = Bundle(docker, tmp_path_factory.mktemp("running") / "bundle")
    init(bundle.folder, profiles=["all", "demo"], sla=sla)
    (bundle.folder / "lines.json").write_text(json.dumps(lines))
    webhook = {
        "image": bundles.PINS["GRAFANA_IMAGE"],
        "entrypoint": ["/usr/local/bin/python", "-c", SINK],
        "init": True,
        "network_mode": "service:netns",
    }
    # The service vllm as it is shipped, logging options above all; what runs in it is a stand-in that writes lines.
    vllm = [
        "profiles: !override [all]",
        "build: !reset null",
        'entrypoint: !override ["/usr/local/bin/python", "-B", "/stand-in/stand_in.py", "vllm"]',
        "command: !reset null",
        "volumes: [{type: bind, source: ./lines.json, target: /lines.json, read_only: true}]",
    ]
    overlay = bundles.offline(compose_file["services"], {"webhook": webhook, "vllm": vllm})
    (bundle.folder / "compose.offline.yaml").write_text(overlay)
    bundle.set(
        COMPOSE_FILE="compose.yaml:compose.offline.yaml",
        DEMO_SCENE="xid",
        DOCKER_CONTAINERS=f"{docker.folder}/data/containers",
        VLLM_CPUS="1",  # no more than the machine has
        CONTAINER_LOG_SIZE=f"{container_lines.ROTATED_AT}",
        CONTAINER_LOG_FILES="9",
    )
    bundle.started, bundle.output = bundle.command("up", "--timeout", "5m")
    yield bundle
    docker("compose", "down", "--volumes", "--timeout", "2", check=False, cwd=bundle.folder)

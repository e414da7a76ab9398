"""Runs what the pictures show: two demos, a real vLLM with the plugin under traffic, Prometheus with the default rules.

.venv/bin/python docs/dashboards/stage.py [--port 19090]     until Ctrl-C; needs what `./vitals test` installs
"""

import argparse
import contextlib
import itertools
import signal
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.fixtures import CACHE
from support.programs import Exporter, Program
from support.traced_vllm import TracedVllm

RULES = Path(__file__).parents[2] / "alerts/rules"
CONFIG = """\
global: {{scrape_interval: 5s, scrape_timeout: 4s, evaluation_interval: 15s}}
rule_files: ["{rules}/*.rules.yml"]
scrape_configs:
  - job_name: vllm-vitals
    static_configs: [{{targets: [{targets}]}}]
  - job_name: vllm-vitals-requests
    metrics_path: /metrics/requests
    static_configs: [{{targets: [{targets}]}}]
  - job_name: prometheus
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def main() -> None:
    """Run everything until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=19090, help="of Prometheus (default 19090)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vitals-pictures-"))
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with contextlib.ExitStack() as stack:
        vllm = TracedVllm(CACHE)
        stack.callback(vllm.stop)
        exporters = [
            Exporter("--scene", scene, "--base-port", 18300 + 10 * number, log=folder / f"{scene}.log", command="demo")
            for number, scene in enumerate(("kv-pressure", "xid"))
        ]
        exporters.append(Exporter("--gpus", "off", "--engine", f"tiny={vllm.url}", log=folder / "exporter.log"))
        for exporter in exporters:
            stack.callback(exporter.stop)
        targets = ", ".join(f'"127.0.0.1:{exporter.port}"' for exporter in exporters)
        config = folder / "prometheus.yml"
        config.write_text(CONFIG.format(rules=RULES, targets=targets, port=options.port))
        prometheus = Program(
            [
                CACHE / "prometheus3/usr/bin/prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{options.port}",
                "--enable-feature=exemplar-storage",
            ],
            folder / "prometheus.log",
            cwd=folder,
        )
        stack.callback(prometheus.stop)
        prometheus.ready(f"http://127.0.0.1:{options.port}/-/ready")
        print(f"Prometheus at http://127.0.0.1:{options.port}; vLLM loads", flush=True)
        vllm.wait_until_ready()
        print("vLLM answers; traffic until Ctrl-C", flush=True)
        for number in itertools.count():
            vllm.traffic(requests=1 + number % 4, max_tokens=8 + number * 7 % 40)
            if over.wait(1.5):
                return


if __name__ == "__main__":
    main()

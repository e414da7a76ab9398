"""Stands in for a program that cannot be had here: answers its health address, refuses to start without its files."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# What the real program reads, its port, its health address, and who it is.
GRAFANA = {
    "files": [
        "/run/secrets/grafana_admin_password",
        "/run/secrets/es_grafana_password",
        "/etc/grafana/provisioning/datasources/vllm-vitals.yaml",
        "/etc/grafana/provisioning/dashboards/vllm-vitals.yaml",
        "/etc/grafana/dashboards/overview.json",
    ],
    "write": ["/var/lib/grafana", "/tmp"],
    "port": 3000,
    "health": "/api/health",
    "user": 472,
}
PROGRAMS = {"grafana": GRAFANA}


def main(name: str) -> None:
    wanted = PROGRAMS[name]
    assert os.getuid() == wanted["user"], os.getuid()
    for path in wanted["files"]:
        assert Path(path).read_bytes(), f"{path} is empty"
    for path in Path("/run/secrets").iterdir():
        assert path.stat().st_mode & 0o777 == 0o400, f"{path}: {path.stat().st_mode:o}"
    for path in wanted["write"]:
        (Path(path) / "probe").write_text("written")
    try:
        Path("/probe").write_text("written")
    except OSError:
        pass
    else:
        raise AssertionError("the root file system can be written")
    secret = Path("/run/secrets/grafana_admin_password").read_text()
    assert all(secret not in value for value in os.environ.values()), "a secret stands in the environment"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == wanted["health"] else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # a first process has no default for it
    print(f"stand-in for {name}: its files are there and can be read", flush=True)
    ThreadingHTTPServer(("0.0.0.0", wanted["port"]), Handler).serve_forever()


main(sys.argv[1])

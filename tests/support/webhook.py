"""A server that Alertmanager's webhooks reach: what was delivered, to which receiver, when."""

import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self


class Delivery(NamedTuple):
    """One alert of one notification.

    Attributes:
        at: Unix time of its arrival.
        receiver: path of the webhook, without the slash.
        notification: number of the notification; one may hold several alerts.
        status: firing or resolved.
        fingerprint: the same for one alert's firing and its resolution.
    """

    at: float
    receiver: str
    notification: int
    status: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    fingerprint: str

    @property
    def name(self) -> str:
        return self.labels["alertname"]


class Webhook:
    """Listens on loopback; a context manager.

    Attributes:
        url: of the server; a receiver's name is its path.
        deliveries: oldest first.
    """

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self._notifications = 0
        self._lock = threading.Lock()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["content-length"])))
                webhook._take(self.path.strip("/"), content)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _take(self, receiver: str, content: Mapping[str, Any]) -> None:
        with self._lock:
            self._notifications += 1
            self.deliveries += [
                Delivery(
                    time.time(),
                    receiver,
                    self._notifications,
                    alert["status"],
                    alert["labels"],
                    alert["annotations"],
                    alert["fingerprint"],
                )
                for alert in content["alerts"]
            ]

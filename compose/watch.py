"""Starting a bundle: what became of each service is told as it happens, and a failure with its last lines."""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from ..settings.invocation import as_called
from .docker import Compose, Service

_POLL_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 0.3  # until the second look at what seems to be done
_RESTARTS_ARE_FAILURE: Final = 20.0  # seconds in which a service that ends again and again may find its feet
_WHILE_OTHERS_WAIT: Final = 60.0  # the same while Compose waits for it, which it does for as long as start_period says


def start(compose: Compose, deadline: float, say: Callable[[str], None]) -> bool:
    """Start everything, wait until it is healthy, and return whether it is.

    Args:
        compose: the bundle.
        deadline: seconds, image builds and pulls included.
        say: prints a line.
    """
    began = time.monotonic()
    told: dict[str, str] = {}
    calm = Calm()
    ailing: dict[str, float] = {}
    with tempfile.TemporaryFile() as output:
        process = compose.start("up", "--detach", "--remove-orphans", "--build", output=output)
        try:
            while True:
                ended = process.poll()
                services = compose.services()
                now = time.monotonic() - began
                for service in services:
                    if told.get(service.name) != service.words and service.words != "created":
                        told[service.name] = service.words
                        say(f"{now:6.1f} s  {service.name:<23} {service.words}")
                patience = _WHILE_OTHERS_WAIT if ended is None else _RESTARTS_ARE_FAILURE
                broken = [*failing(services, ailing, now, patience)]
                if ended is not None and ended != 0:
                    output.seek(0)
                    _tell(compose, broken, output.read().decode("utf-8", "replace"), say)
                    return False
                if calm.reached(services) and ended == 0:
                    return True
                if broken and (ended == 0 or all(one.state != "running" for one in broken)):
                    _tell(compose, broken, "", say)
                    return False
                if now > deadline:
                    say(f"not healthy after {deadline:.0f} s")
                    _tell(compose, [one for one in services if not one.settled], "", say)
                    return False
                time.sleep(_POLL_SECONDS if calm.looks == 0 else _AGAIN_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


class Calm:
    """Whether all is as it shall be, at two looks in a row.

    Compose asks Docker for states and then, one by one, for healths. So a service that ends at its start again and
    again is at times seen as running and without a health: whatever has shown one before has to show one, and one look
    is not enough.
    """

    def __init__(self) -> None:
        self.looks = 0
        self._probed: set[str] = set()

    def reached(self, services: Sequence[Service]) -> bool:
        """Take a look in, and return whether this is the second good one."""
        self._probed |= {service.name for service in services if service.health}
        good = bool(services) and all(
            service.settled and (service.state == "exited" or service.health or service.name not in self._probed)
            for service in services
        )
        self.looks = self.looks + 1 if good else 0
        return self.looks >= 2


def failing(
    services: Iterable[Service], ailing: dict[str, float], now: float, patience: float = _RESTARTS_ARE_FAILURE
) -> Iterable[Service]:
    """Yield services that will not come up by themselves: unhealthy, failed, or restarting for long.

    Args:
        services: as they are.
        ailing: since when each is in trouble; kept from call to call.
        now: seconds.
        patience: seconds in which a service may find its feet.
    """
    for service in services:
        sick = service.health == "unhealthy" or service.state in {"restarting", "dead"} or not _ended_well(service)
        if not sick and service.settled:
            ailing.pop(service.name, None)
        elif sick:
            since = ailing.setdefault(service.name, now)
            if service.health == "unhealthy" or now - since >= patience:
                yield service


def _ended_well(service: Service) -> bool:
    return service.state != "exited" or service.exit_code == 0


def _tell(compose: Compose, broken: Sequence[Service], said: str, say: Callable[[str], None]) -> None:
    for line in [line.strip() for line in said.splitlines() if _is_news(line)][-8:]:
        say(f"docker compose: {line}")
    for service in broken or [one for one in compose.services() if not one.settled and one.state != "created"]:
        say(f"\n{service.name}: {service.words}. Its last lines:")
        for line in compose.logs(service.name).splitlines():
            say(f"    {line}")
        say(as_called(f"    more: vllm-vitals bundle logs --dir {compose.folder} {service.name}"))


def _is_news(line: str) -> bool:
    """Whether a line of Compose's progress says what went wrong."""
    lowered = line.lower()
    return any(
        word in lowered for word in ("error", "fail", "denied", "no such", "unhealthy", "didn't complete", "invalid")
    )


# What a person opens: (name, variable of the port, its default, service, path, who logs in).
_PAGES: Final = (
    ("Grafana", "GRAFANA_PORT", "3000", "grafana", "/", "user admin, password in secrets/grafana_admin_password"),
    ("Prometheus", "PROMETHEUS_PORT", "9090", "prometheus", "/", ""),
    ("Alertmanager", "ALERTMANAGER_PORT", "9093", "alertmanager", "/", ""),
    ("live page", "EXPORTER_PORT", "9836", "exporter", "/", ""),
    ("live page (demo)", "DEMO_PORT", "9837", "demo", "/", ""),
    ("Jaeger", "JAEGER_PORT", "16686", "jaeger", "/", ""),
    ("Kibana", "KIBANA_PORT", "5601", "kibana", "/", "user elastic, password in secrets/es_elastic_password"),
    ("vLLM", "VLLM_PORT", "8000", "vllm", "/v1/models", ""),
    ("OTLP, gRPC", "OTLP_GRPC_PORT", "4317", "collector", "", ""),
    ("OTLP, HTTP", "OTLP_HTTP_PORT", "4318", "collector", "", ""),
)


def pages(env: Mapping[str, str], services: Iterable[Service]) -> list[str]:
    """Return where a running bundle is reached and who logs in, as lines."""
    running = {service.name for service in services if service.state == "running"}
    address = env.get("BIND_ADDRESS") or "127.0.0.1"
    scheme = "https" if "proxy" in running else "http"
    lines = []
    for name, variable, default, service, path, login in _PAGES:
        if service in running:
            secure = scheme if path == "/" and service != "demo" else "http"
            url = f"{secure}://{address}:{env.get(variable) or default}{path}"
            lines.append(f"{name:<17} {url:<34} {login}".rstrip())
    return lines

"""The cloud's notice that it takes this machine back: AWS, GCP and Azure metadata services, asked in an own thread."""

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, Protocol

from ...runtime.background import Background
from ...runtime.exchange import Answer, exchange
from ...runtime.log_once import LogOnce
from ..pages.samples import Sample, label_pairs

log = logging.getLogger("vllm_vitals")

Cloud = Literal["off", "auto", "aws", "gcp", "azure"]
ENDPOINT: Final = "http://169.254.169.254"  # all three; numeric, so that no resolver is asked
_DEADLINE: Final = 1.0
_TOKEN_SECONDS: Final = 21600  # the longest that IMDSv2 gives
_TOKEN_RENEWAL: Final = 0.9
_GCP_GRACE_SECONDS: Final = 30.0  # GCP names no time; the ACPI shutdown comes within this of the notice
_AWS_ACTIONS: Final = frozenset({"terminate", "stop", "hibernate"})
_AZURE_ACTIONS: Final = frozenset({"Preempt", "Terminate"})  # the others leave or move the machine
_ROUNDS_BEFORE_REST: Final = 3
_REST_SECONDS: Final = 600.0  # outside a cloud


@dataclass(frozen=True, slots=True)
class Notice:
    """What happens and when, in Unix seconds."""

    action: str
    timestamp: float


class NotThisCloudError(Exception):
    """The service is not there, or what answers is something else."""


class Metadata(Protocol):
    """One cloud's metadata service; both methods raise OSError or NotThisCloudError."""

    def probe(self) -> None:
        """Return when this cloud's service answers."""

    def notice(self) -> Notice | None:
        """Return the notice; None while there is none."""


@dataclass(slots=True)
class Aws:
    """EC2 IMDSv2: a session token by PUT, then `spot/instance-action`, 404 while there is nothing."""

    endpoint: str = ENDPOINT
    _token: str = ""
    _renew_at: float = 0.0

    def probe(self) -> None:
        """Get a token."""
        answer = exchange(
            f"{self.endpoint}/latest/api/token",
            method="PUT",
            headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS), "Content-Length": "0"},
            deadline=_DEADLINE,
        )
        token = answer.body.decode("ascii", "replace").strip()
        if answer.status != 200 or not token.isprintable() or not token or " " in token:
            raise NotThisCloudError(f"token: status {answer.status}")
        self._token = token
        self._renew_at = time.monotonic() + _TOKEN_SECONDS * _TOKEN_RENEWAL

    def notice(self) -> Notice | None:
        """Return the action; a refused token is renewed once."""
        if not self._token or time.monotonic() > self._renew_at:
            self.probe()
        answer = self._action()
        if answer.status == 401:
            self.probe()
            answer = self._action()
        if answer.status == 404:
            return None
        told = _json(answer)
        action = told.get("action")
        try:
            at = datetime.fromisoformat(str(told["time"]))
        except (KeyError, ValueError) as error:
            raise NotThisCloudError(f"instance-action: {error!r}") from error
        return Notice(action if action in _AWS_ACTIONS else "other", _unix(at))

    def _action(self) -> Answer:
        url = f"{self.endpoint}/latest/meta-data/spot/instance-action"
        return exchange(url, headers={"X-aws-ec2-metadata-token": self._token}, deadline=_DEADLINE)


@dataclass(slots=True)
class Gcp:
    """Compute Engine: `instance/preempted` says TRUE or FALSE, without a time."""

    endpoint: str = ENDPOINT
    _seen_at: float | None = None

    def probe(self) -> None:
        """Ask for the value; any GCP machine has it."""
        self._preempted()

    def notice(self) -> Notice | None:
        """Return preempt, 30 s after it was first seen: an estimate of ours, the latest that GCP promises."""
        if not self._preempted():
            self._seen_at = None
            return None
        if self._seen_at is None:
            self._seen_at = time.time()
        return Notice("preempt", self._seen_at + _GCP_GRACE_SECONDS)

    def _preempted(self) -> bool:
        url = f"{self.endpoint}/computeMetadata/v1/instance/preempted"
        answer = exchange(url, headers={"Metadata-Flavor": "Google"}, deadline=_DEADLINE)
        if answer.headers.get("metadata-flavor") != "Google":  # a captive portal or another cloud answers, too
            raise NotThisCloudError("no Metadata-Flavor: Google")
        value = answer.body.strip().upper()
        if answer.status != 200 or value not in {b"TRUE", b"FALSE"}:
            raise NotThisCloudError(f"preempted: status {answer.status}")
        return value == b"TRUE"


@dataclass(slots=True)
class Azure:
    """Scheduled Events. The first request of a machine turns them on and may take two minutes: it fails until then."""

    endpoint: str = ENDPOINT
    _name: str | None = None
    _started: dict[str, float] = field(default_factory=dict)

    def probe(self) -> None:
        """Ask for the list of API versions, which needs nothing turned on."""
        if "apiVersions" not in _json(self._get("/metadata/versions")):
            raise NotThisCloudError("no apiVersions")

    def notice(self) -> Notice | None:
        """Return the earliest event that takes this machine; an empty NotBefore means that it has begun."""
        events = _json(self._get("/metadata/scheduledevents?api-version=2020-07-01")).get("Events")
        if not isinstance(events, list):
            raise NotThisCloudError("no Events")
        found = []
        begun = {}
        for event in events:
            if not isinstance(event, dict) or event.get("EventType") not in _AZURE_ACTIONS or not self._is_ours(event):
                continue
            told = str(event.get("NotBefore") or "")
            if told:
                with contextlib.suppress(ValueError):
                    found.append(Notice(str(event["EventType"]).lower(), _unix(parsedate_to_datetime(told))))
                    continue
            event_id = str(event.get("EventId"))
            begun[event_id] = self._started.get(event_id, time.time())
            found.append(Notice(str(event["EventType"]).lower(), begun[event_id]))
        self._started = begun
        return min(found, key=lambda notice: notice.timestamp, default=None)

    def _is_ours(self, event: Mapping[str, Any]) -> bool:
        """Return whether the event names this machine: machines of one scale set see each other's events."""
        if self._name is None:
            answer = self._get("/metadata/instance/compute/name?api-version=2021-02-01&format=text")
            self._name = answer.body.decode("utf-8", "replace").strip() if answer.status == 200 else ""
        resources = event.get("Resources")
        return not self._name or not isinstance(resources, list) or not resources or self._name in resources

    def _get(self, path: str) -> Answer:
        return exchange(f"{self.endpoint}{path}", headers={"Metadata": "true"}, deadline=_DEADLINE)


_CLOUDS: Final[Mapping[str, type[Aws | Gcp | Azure]]] = {"aws": Aws, "gcp": Gcp, "azure": Azure}


class SpotWatcher:
    """Asks the metadata service every few seconds and holds the last answer.

    Args:
        cloud: which one; auto asks each until one answers, and rests between attempts outside a cloud.
        endpoint: scheme, host and port of the service, for tests and proxies of the operator's own.
        interval: seconds between two requests; AWS gives two minutes of notice, Azure and GCP thirty seconds.
    """

    def __init__(self, cloud: Cloud = "off", endpoint: str | None = None, interval: float = 5.0) -> None:
        self._cloud = cloud
        self._endpoint = (endpoint or ENDPOINT).rstrip("/")
        self._interval = interval
        self._service: Metadata | None = None
        self._name: str = cloud
        if cloud in _CLOUDS:
            self._service = _CLOUDS[cloud](self._endpoint)
        self._rounds = 0
        self._background = Background("spot", self.poll, interval, on_error=self._failed)
        self._samples: list[Sample] = []
        self._said = LogOnce()

    def start(self) -> None:
        """Start the thread; nothing to do when off."""
        if self._cloud != "off":
            self._background.start()

    def stop(self) -> None:
        """Stop the thread, waiting two seconds at most."""
        self._background.stop()

    def samples(self) -> list[Sample]:
        """Return whether the service answers, and the notice if any; empty when off or before the first round."""
        return self._samples

    def poll(self) -> float:
        """Ask once and return the seconds until the next time; called by the thread."""
        if self._service is None and not self._find():
            self._samples = [_up("auto", is_up=False)]
            self._rounds += 1
            return self._interval if self._rounds < _ROUNDS_BEFORE_REST else _REST_SECONDS
        service, name = self._service, self._name
        if service is None:
            return self._interval
        try:
            notice = service.notice()
        except (OSError, ValueError, NotThisCloudError) as error:
            self._say("failed", f"spot: {name}'s metadata service does not answer: {error}")
            # A notice that was there stays: the service going away is part of what it announces.
            self._samples = [_up(name, is_up=False), *(s for s in self._samples if s.family.endswith("_seconds"))]
            return self._interval
        self._samples = [_up(name, is_up=True)]
        if notice is not None:
            labels = label_pairs(cloud=name, action=notice.action)
            self._say(notice.action, f"spot: {name} announces {notice.action} of this machine")
            family = "vllm_vitals_spot_interruption_timestamp_seconds"
            self._samples = [*self._samples, Sample(family, labels, notice.timestamp)]
        return self._interval

    def _find(self) -> bool:
        for name, kind in _CLOUDS.items():
            service = kind(self._endpoint)
            with contextlib.suppress(OSError, ValueError, NotThisCloudError):
                service.probe()
                self._service, self._name = service, name
                return True
        return False

    def _failed(self, error: Exception) -> None:
        self._say("poll", f"spot: {error!r}")

    def _say(self, key: str, message: str) -> None:
        if self._said.is_news(key):
            log.warning(message)


def _up(cloud: str, *, is_up: bool) -> Sample:
    return Sample("vllm_vitals_spot_up", label_pairs(cloud=cloud), int(is_up))


def _json(answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        raise NotThisCloudError(f"status {answer.status}")
    try:
        told = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise NotThisCloudError(f"not JSON: {error}") from error
    if not isinstance(told, dict):
        raise NotThisCloudError("not a JSON object")
    return told


def _unix(at: datetime) -> float:
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()

"""The SLA file: what is promised to whom, and who hears of it when it is not kept."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from ..settings.scalars import ConfigError, Seconds
from .promises import Count, Memory, PerSecond, Power, Promise, Severity, Share, Temperature, Throughput

Indicator = Literal["ttft", "tpot", "itl", "e2e", "queue", "availability", "engine_errors", "goodput"]
LATENCIES: Final[tuple[Indicator, ...]] = ("ttft", "tpot", "itl", "e2e", "queue")
# Of an exporter on the reader's own machine: who reads from elsewhere names another one.
DEFAULT_RUNBOOKS: Final = "http://127.0.0.1:9836/docs/runbooks"

_LABEL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_NOT_RE2: Final = re.compile(r"\(\?[=!<]|\\[1-9]")
_RATE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(rps|/s|/min|/h)")
_PER: Final = {"rps": 1.0, "/s": 1.0, "/min": 60.0, "/h": 3600.0}
_TIMES: Final = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]-(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)")
_TIME_ZONE: Final = re.compile(r"[A-Z][A-Za-z_]+(/[A-Za-z0-9_+-]+)+|UTC")
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class Objective:
    """A promise with what belongs to it; `ttft: 99% under 500ms` is short for one with the defaults.

    Attributes:
        promise: what is promised.
        severity: of the two fast tiers; the two slow ones never page.
        min_bad_events: so many bad events must lie in a tier's long window, or one bad request at night would page.
        hours: `business`: nobody is paged outside of business_hours.
        receiver: None is the receiver named like the severity.
        by: labels that keep their own budget; None is the service's.
    """

    promise: Promise
    severity: Severity = "page"
    min_bad_events: int = field(default=5, metadata={"least": 1})
    hours: Literal["always", "business"] = "always"
    receiver: str | None = None
    by: tuple[str, ...] | None = None

    @classmethod
    def from_scalar(cls, text: str, place: str) -> "Objective":
        """Return the objective of a bare promise."""
        return cls(Promise.from_scalar(text, place))


@dataclass(frozen=True, slots=True)
class Objectives:
    """What is promised; None is not."""

    ttft: Objective | None = None
    tpot: Objective | None = None
    itl: Objective | None = None
    e2e: Objective | None = None
    queue: Objective | None = None
    availability: Objective | None = None
    engine_errors: Objective | None = None
    goodput: Objective | None = None

    @classmethod
    def refined(cls, values: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the values; raises ConfigError for a latency without a time, and for a time elsewhere."""
        for name, objective in values.items():
            if objective is None:
                continue
            timed = objective.promise.threshold is not None
            if timed != (name in LATENCIES):
                example = "'99% under 500ms'" if name in LATENCIES else "'99.9%', without a time"
                raise ConfigError(f"{place}.{name}: expected a promise such as {example}, found {objective.promise}")
        if values.get("goodput") and not (values.get("ttft") and values.get("tpot")):
            raise ConfigError(f"{place}.goodput: expected ttft and tpot beside it, whose times it joins")
        return values

    def __iter__(self) -> Any:
        """Yield (indicator, objective) of what is promised."""
        for one in fields(self):
            if (objective := getattr(self, one.name)) is not None:
                yield one.name, objective


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Bounds of an engine's load."""

    throughput: Throughput | None = None
    queue_length: Count | None = None
    kv_cache: Share | None = None
    preemptions: PerSecond | None = None


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """Bounds of each GPU."""

    temperature: Temperature | None = None
    memory_temperature: Temperature | None = None
    memory: Memory | None = None
    power: Power | None = None
    throttle: Share | None = None
    corrected_ecc: PerSecond | None = None


@dataclass(frozen=True, slots=True)
class Events:
    """How loud each thing is that must not happen at all."""

    model_down: Severity = "page"
    server_down: Severity = "page"
    no_servers: Severity = "page"
    engine_unhealthy: Severity = "page"
    engine_stalled: Severity = "page"
    engine_restarts: Severity = "ticket"
    engine_fatal: Severity = "page"
    metrics_dark: Severity = "ticket"
    missing_bucket: Severity = "ticket"
    exporter_down: Severity = "page"
    placement_failing: Severity = "ticket"
    tracing_drops: Severity = "ticket"
    nvml_down: Severity = "ticket"
    gpu_lost: Severity = "page"
    stale_snapshot: Severity = "ticket"
    xid_fatal: Severity = "page"
    xid_application: Severity = "ticket"
    ecc_uncorrected: Severity = "page"
    remapped_rows: Severity = "ticket"
    row_remap_failure: Severity = "page"
    recovery_action: Severity = "ticket"
    spot_notice: Severity = "page"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests per second that are expected; written `0.5 rps`, `30/min` or `20/h`."""

    rps: float

    @classmethod
    def from_scalar(cls, text: str, place: str) -> "Traffic":
        """Return the rate; raises ConfigError."""
        match = _RATE.fullmatch(text.strip())
        if match is None or float(match[1]) <= 0:
            raise ConfigError(f"{place}: expected a rate such as '0.5 rps' or '30/min', found {text!r}")
        return cls(float(match[1]) / _PER[match[2]])


@dataclass(frozen=True, slots=True)
class Service:
    """Engines that keep promises together.

    Attributes:
        selector: label -> value of their series; a value that begins with ~ is a regular expression.
        via: `engine`: Prometheus scrapes vLLM itself, not our exporter.
        requests_page: the plugin's /metrics/requests is scraped, so goodput is exact.
        custom_buckets: the engines run with the flag that `rules build` prints, so each promise is a bound.
        traffic: expected, so that a guard which makes a promise blind is refused.
    """

    name: str
    selector: Mapping[str, str]
    objectives: Objectives = Objectives()
    limits: ServiceLimits = ServiceLimits()
    owner: str = ""
    by: tuple[str, ...] = ("model_name",)
    via: Literal["exporter", "engine"] = "exporter"
    requests_page: bool = False
    custom_buckets: bool = False
    traffic: Traffic | None = None

    DISTINCT = "name"

    @classmethod
    def refined(cls, values: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the values; raises ConfigError for a name or selector that Prometheus would not take."""
        if _NAME.fullmatch(values["name"]) is None:
            raise ConfigError(f"{place}.name: expected small letters, digits and dashes, found {values['name']!r}")
        if values["name"] == "gpus":
            raise ConfigError(f"{place}.name: expected another name, 'gpus' is what the alerts of GPUs are called")
        check_selector(values["selector"], f"{place}.selector")
        for label in values.get("by", ()):
            _check_label(label, f"{place}.by")
        return values


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who hears of an alert. Secrets stand in files, never here."""

    type: Literal["none", "webhook", "slack", "pagerduty", "email"] = "none"
    url: str | None = None
    url_file: Path | None = None
    channel: str | None = None
    key_file: Path | None = None
    to: str | None = None
    sender: str | None = None
    smarthost: str | None = None
    username: str | None = None
    password_file: Path | None = None

    @classmethod
    def refined(cls, values: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the values; raises ConfigError for keys that a type needs or does not know."""
        kind = values.get("type", "none")
        needed, others = _RECEIVER_KEYS[kind]
        given = {name for name, value in values.items() if name != "type" and value is not None}
        if kind == "webhook" and len(given) != 1:
            raise ConfigError(f"{place}: expected url or url_file for a webhook, found {', '.join(given) or 'none'}")
        for name in needed:
            if name not in given:
                raise ConfigError(f"{place}: expected the key {name!r} for {kind}, found none")
        if unknown := given - {*needed, *others}:
            known = ", ".join((*needed, *others)) or "nothing more"
            raise ConfigError(f"{place}.{min(unknown)}: not a key of {kind}, which takes {known}")
        return values


_RECEIVER_KEYS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "none": ((), ()),
    "webhook": ((), ("url", "url_file")),
    "slack": (("url_file", "channel"), ()),
    "pagerduty": (("key_file",), ()),
    "email": (("to", "sender", "smarthost"), ("username", "password_file")),
}


@dataclass(frozen=True, slots=True)
class BusinessHours:
    """When people work."""

    days: str = "mon-fri"
    times: str = "08:00-18:00"
    timezone: str = "UTC"

    @classmethod
    def refined(cls, values: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the values; raises ConfigError."""
        first, _, last = values.get("days", "mon-fri").partition("-")
        if first not in _DAYS or (last or first) not in _DAYS or _DAYS.index(first) > _DAYS.index(last or first):
            raise ConfigError(f"{place}.days: expected days such as mon-fri, found {values['days']!r}")
        times = values.get("times", "08:00-18:00")
        begin, _, end = times.partition("-")
        if _TIMES.fullmatch(times) is None or begin >= end:
            raise ConfigError(f"{place}.times: expected hours such as 08:00-18:00, found {times!r}")
        if not _is_time_zone(zone := values.get("timezone", "UTC")):
            raise ConfigError(f"{place}.timezone: expected a time zone such as Europe/Berlin, found {zone!r}")
        return values


def _is_time_zone(name: str) -> bool:
    """Tell whether a time zone is there; by its form on a machine that knows none (a container without tzdata)."""
    if name == "UTC":
        return True
    try:
        ZoneInfo(name)
    except (ValueError, KeyError, OSError):
        return _TIME_ZONE.fullmatch(name) is not None and not available_timezones()
    return True


@dataclass(frozen=True, slots=True)
class Gpus:
    """Which GPUs are watched, and their bounds."""

    selector: Mapping[str, str] = field(default_factory=dict)
    limits: GpuLimits = GpuLimits()

    @classmethod
    def refined(cls, values: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the values; raises ConfigError."""
        check_selector(values.get("selector", {}), f"{place}.selector")
        return values


@dataclass(frozen=True, slots=True)
class Sla:
    """The whole file.

    Attributes:
        window: over which promises are kept.
        scrape_interval: of Prometheus.
        retention: of Prometheus; the window must fit in.
        runbooks: where the pages on alerts are served, for links in alerts: an exporter serves them.
        grafana: where Grafana is, for links in alerts; None leaves them out.
    """

    services: tuple[Service, ...]
    window: Seconds = Seconds(30 * 86400)
    scrape_interval: Seconds = field(default=Seconds(15), metadata={"least": 1.0})
    retention: Seconds = Seconds(45 * 86400)
    runbooks: str = DEFAULT_RUNBOOKS
    grafana: str | None = None
    gpus: Gpus = Gpus()
    events: Events = Events()
    receivers: Mapping[str, Receiver] = field(default_factory=dict)
    business_hours: BusinessHours = BusinessHours()

    def with_exporter(self, url: str) -> Self:
        """Return it with links to the runbooks that an exporter serves, unless they lead somewhere else on purpose."""
        if self.runbooks.rstrip("/") != DEFAULT_RUNBOOKS:
            return self
        return dataclasses.replace(self, runbooks=f"{url.rstrip('/')}/docs/runbooks")

    @classmethod
    def refined(cls, values: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the values with the receivers `page` and `ticket`; raises ConfigError for one that is not there."""
        if not values["services"]:
            raise ConfigError(f"{place}: expected one service or more, found none")
        receivers = {"page": Receiver(), "ticket": Receiver(), **values.get("receivers", {})}
        for service in values["services"]:
            for indicator, objective in service.objectives:
                if objective.receiver is not None and objective.receiver not in receivers:
                    raise ConfigError(
                        f"{place}: services.{service.name}.objectives.{indicator}.receiver: expected one of "
                        f"{', '.join(receivers)}, found {objective.receiver!r}"
                    )
        return {**values, "receivers": receivers}


def check_selector(selector: Mapping[str, str], place: str) -> None:
    """Raise ConfigError where a label or a regular expression is none."""
    for label, text in selector.items():
        _check_label(label, place)
        if text.startswith("~"):
            try:
                re.compile(text[1:])
            except re.error as error:
                raise ConfigError(
                    f"{place}.{label}: expected a regular expression after ~, found {text!r}: {error}"
                ) from None
            if _NOT_RE2.search(text):
                raise ConfigError(
                    f"{place}.{label}: expected RE2, without lookaround and backreferences, found {text!r}"
                )


def _check_label(label: str, place: str) -> None:
    if _LABEL.fullmatch(label) is None or label.startswith("__"):
        raise ConfigError(f"{place}: expected a label name, found {label!r}")

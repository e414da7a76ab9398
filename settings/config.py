"""Settings: vitals.yaml, environment variables and flags become one typed value, or an error a person can act on.

Precedence: flag, then `VLLM_VITALS_*` variable, then vitals.yaml, then the default that stands here. An error names the
place (file and line, variable or flag), the key, what was found and what was expected.
"""

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from .invocation import COMMAND_VARIABLE
from .scalars import Address, ConfigError, Port, Ratio, Seconds, Url, read_scalar
from .tracing import CONFIG_VARIABLE, TRACING_VARIABLES, TracingSettings
from .typed_yaml import check_distinct, check_least, from_node, read_yaml, without_none


def _at_least(least: float, default: float) -> Any:
    return field(default=Seconds(default), metadata={"least": least})


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """User and where its password stands."""

    EXCLUSIVE: ClassVar = (("password_file", "password_env"),)
    HIDDEN: ClassVar = True

    username: str
    password_file: Path | None = None
    password_env: str | None = None


@dataclass(frozen=True, slots=True)
class Tls:
    """How to check an engine's certificate and what to show of ours."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One inference server."""

    EXCLUSIVE: ClassVar = (
        ("bearer_token_file", "bearer_token_env"),
        ("basic_auth", "bearer_token_file"),
        ("basic_auth", "bearer_token_env"),
    )
    DISTINCT: ClassVar = "server"  # two servers of one name would make the same series

    url: str
    name: str = ""
    metrics_path: str = ""
    bearer_token_file: Path | None = None
    bearer_token_env: str | None = None
    basic_auth: BasicAuth | None = None
    tls: Tls | None = None
    gpus: tuple[str, ...] = ()

    @property
    def server(self) -> str:
        """Value of the `server` label."""
        return self.name or urlsplit(self.url).netloc

    @classmethod
    def from_scalar(cls, text: str, place: str) -> Self:
        """Return an engine given as URL or NAME=URL."""
        name, separator, url = text.partition("=")
        if not separator or "/" in name:  # an equals sign of the URL's own query
            name, url = "", text
        return cls(url=_engine_url(url.strip(), place), name=name.strip())

    @classmethod
    def refined(cls, values: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the keys of a mapping with a normal URL; raises ConfigError for what does not go together."""
        url = _engine_url(values["url"], f"{place}.url")
        if values.get("tls") is not None and url.startswith("http:"):
            raise ConfigError(f"{place}: expected an https address beside tls, found {url!r}")
        return {**values, "url": url}


@dataclass(frozen=True, slots=True)
class DnsDiscovery:
    """Servers behind a name; SRV records bring their port, A and AAAA need one."""

    name: str
    type: Literal["A", "AAAA", "SRV"] = "A"
    port: Port = Port(8000)
    scheme: Literal["http", "https"] = "http"
    nameserver: Address | None = None


@dataclass(frozen=True, slots=True)
class Discovery:
    """Servers that come and go."""

    files: tuple[str, ...] = ()
    dns: tuple[DnsDiscovery, ...] = ()
    refresh: Seconds = _at_least(1.0, 30)


GpuFamily = Literal[
    "utilization", "encoder", "memory", "bar1", "power", "energy", "temperature", "fan", "clocks", "throttle", "gpm",
    "pcie", "nvlink", "ecc", "remapped_rows", "xid", "recovery", "processes", "mig",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """What is read from NVML and how often."""

    enabled: bool = True
    interval: Seconds = _at_least(0.1, 1)  # faster polling disturbs the workload
    slow_interval: Seconds = _at_least(1.0, 10)
    families: Mapping[GpuFamily, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """Where to look for what runs on which GPU."""

    procfs: Path = Path("/proc")
    pod_resources_socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Metrics of the machine; `auto` is off where a node_exporter answers."""

    mode: Literal["auto", "on", "off"] = "auto"
    node_exporter_url: str = "http://127.0.0.1:9100/metrics"


@dataclass(frozen=True, slots=True)
class SpotSettings:
    """Watch the cloud's metadata service for an interruption notice."""

    cloud: Literal["off", "auto", "aws", "gcp", "azure"] = "off"
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """Limits of the verdicts on /health/gpu and /health/engine."""

    gpu_memory_ratio: Ratio = Ratio(0.98)
    gpu_temperature_celsius: float = 90.0
    engine_stall: Seconds = _at_least(10.0, 300)  # one long prefill moves no counter for minutes


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that vitals.yaml can say."""

    listen: Address = Address("127.0.0.1", 9836)
    web_config_file: Path | None = None
    sla: Path | None = None  # promises that the live page judges by
    runbooks: Path | None = None  # a folder that `rules build --runbooks` wrote; else those of the default promises
    engines: tuple[EngineSettings, ...] = ()
    discovery: Discovery = Discovery()
    raw_names: bool = False
    scrape_timeout: Seconds = _at_least(0.1, 5)
    sample_interval: Seconds = _at_least(0.5, 5)
    max_page_bytes: int = 32 * 1024 * 1024
    gpus: GpuSettings = field(default_factory=GpuSettings)
    placement: PlacementSettings = PlacementSettings()
    host: HostSettings = HostSettings()
    spot: SpotSettings = SpotSettings()
    health: HealthSettings = HealthSettings()
    alertmanager_url: Url | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    tracing: TracingSettings = TracingSettings()


class Option(typing.NamedTuple):
    """A setting that flags and variables reach, too; `key` is its path in vitals.yaml."""

    flag: str
    key: str
    metavar: str
    help: str

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "VLLM_VITALS_" + self.flag.removeprefix("--").upper().replace("-", "_").replace(".", "_")


OPTIONS: Final = (
    Option("--engine", "engines", "[NAME=]URL", "an inference server; repeat it, or separate several by commas in the variable"),
    Option("--listen", "listen", "HOST:PORT", "address of the exporter (default 127.0.0.1:9836)"),
    Option("--web.config.file", "web_config_file", "FILE", "TLS and basic auth, in the format of Prometheus' exporter-toolkit"),
    Option("--sla", "sla", "FILE", "promises that the live page judges by, and that `up` watches (default: none; up and demo: those of `rules build`)"),
    Option("--runbooks", "runbooks", "DIR", "pages of `rules build --runbooks`, served at /docs/runbooks/ (default: those of the default promises)"),
    Option("--raw-names", "raw_names", "", "also keep renamed families under the names the engine uses"),
    Option("--scrape-timeout", "scrape_timeout", "TIME", "deadline for engines when the scraper sends none (default 5s)"),
    Option("--sample-interval", "sample_interval", "TIME", "how often the live page and health look at the engines (default 5s)"),
    Option("--gpu-interval", "gpus.interval", "TIME", "how often each GPU is read (default 1s)"),
    Option("--gpus", "gpus.enabled", "on|off", "read GPUs through NVML (default on)"),
    Option("--host", "host.mode", "auto|on|off", "metrics of the machine; auto is off where node_exporter runs (default auto)"),
    Option("--spot", "spot.cloud", "CLOUD", "watch for a spot interruption: off, auto, aws, gcp or azure (default off)"),
    Option("--alertmanager", "alertmanager_url", "URL", "show the alerts of this Alertmanager on the live page"),
    Option("--log-level", "log_level", "LEVEL", "debug, info, warning or error (default info)"),
)  # fmt: skip


def load(path: Path | None, flags: Mapping[str, Sequence[str]], environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings.

    Args:
        path: vitals.yaml, or None for no file.
        flags: option flag -> values given on the command line.
        environ: environment variables.

    Raises:
        ConfigError: a value is wrong, a key is unknown or the file cannot be read.
    """
    settings = _from_file(path) if path is not None else Settings()
    for option in OPTIONS:
        given = flags.get(option.flag)
        place = option.flag
        if not given and (text := environ.get(option.variable)):
            place = option.variable
            given = [part for part in text.split(",") if part.strip()] if option.flag == "--engine" else [text]
        if given:
            settings = _override(settings, option.key, given, place)
    return settings


def load_tracing(environ: Mapping[str, str] = os.environ) -> TracingSettings:
    """Return the plugin's settings: VLLM_VITALS_CONFIG names the file; raises ConfigError.

    The other variables of this page are the exporter's: a wrong one there is no reason to trace nothing.
    """
    path = environ.get(CONFIG_VARIABLE)
    settings = _from_file(Path(path)) if path else Settings()
    for variable, key in TRACING_VARIABLES.items():
        if text := environ.get(variable):
            settings = _override(settings, f"tracing.{key}", [text], variable)
    return settings.tracing


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence per variable that looks like a misspelt one of ours.

    Not an error: Kubernetes makes variables such as VLLM_VITALS_SERVICE_HOST for a service of that name.
    """
    known = [*(option.variable for option in OPTIONS), *TRACING_VARIABLES, CONFIG_VARIABLE, COMMAND_VARIABLE]
    found = [name for name in environ if name.startswith("VLLM_VITALS_") and name not in known]
    near = [(name, difflib.get_close_matches(name, known, n=1, cutoff=0.85)) for name in found]
    return [f"{name} is not known, did you mean {match[0]}?" for name, match in near if match]


def _from_file(path: Path) -> Settings:
    root = read_yaml(path)
    if root is None:
        return Settings()
    result = from_node(Settings, root, str(path))
    assert isinstance(result, Settings)
    return result


def _engine_url(text: str, place: str) -> str:
    expected = "expected an address such as http://127.0.0.1:8000"
    found = _without_secrets(text)
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        port = url.port
        host = (url.hostname or "").encode("idna").decode()
    except ValueError:  # a port beyond 65535, an IPv6 address that is none, an empty or overlong part of the name
        raise ConfigError(f"{place}: {expected}, found {found!r}") from None
    if url.username is not None or url.password is not None:
        raise ConfigError(
            f"{place}: {expected} without user and password (they belong into basic_auth with a password_file), "
            f"found {found!r}"
        )
    if url.scheme not in {"http", "https"} or not host or port == 0:
        raise ConfigError(f"{place}: {expected}, found {found!r}")
    if url.query or url.fragment:
        raise ConfigError(f"{place}: {expected} without a query (it belongs into metrics_path), found {found!r}")
    authority = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{authority}{f':{port}' if port else ''}{url.path.rstrip('/')}"


def _without_secrets(text: str) -> str:
    """Return an address as an error may show it: without user, password and query."""
    shown = re.sub(r"^([a-zA-Z][a-zA-Z0-9+.-]*://)?.*@", r"\1...@", text)
    return re.sub(r"\?.*", "?...", shown)


def _override(settings: Settings, key: str, given: Sequence[str], place: str) -> Settings:
    if key == "engines":
        engines = tuple(EngineSettings.from_scalar(text, place) for text in given)
        check_distinct(engines, [place] * len(engines))
        return dataclasses.replace(settings, engines=engines)
    head, _, rest = key.partition(".")
    part: Any = getattr(settings, head) if rest else settings
    name = rest or head
    value = read_scalar(without_none(typing.get_type_hints(type(part))[name]), given[-1], place)
    check_least(next(field for field in dataclasses.fields(part) if field.name == name), value, place)
    changed: Any = dataclasses.replace(part, **{name: value})
    if rest:
        outer: Any = {head: changed}
        return dataclasses.replace(settings, **outer)
    assert isinstance(changed, Settings)
    return changed

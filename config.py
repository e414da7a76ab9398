"""Settings: vitals.yaml, environment variables and flags become one typed value, or an error a person can act on.

Precedence: flag, then `VLLM_VITALS_*` variable, then vitals.yaml, then the default that stands here. An error names the
place (file and line, variable or flag), the key, what was found and what was expected.
"""

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin
from urllib.parse import urlsplit

import yaml


class ConfigError(Exception):
    """A setting is wrong; the text says where, what was found and what was expected."""


class Seconds(float):
    """A duration; written as `500ms`, `15s`, `5m`, `1h` or a plain number of seconds."""


class Ratio(float):
    """A share from 0 to 1; written as `0.98` or `98%`."""


class Port(int):
    """A TCP port."""


class Secret(str):
    """Text that never shows itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Hide the text from logs and tracebacks."""
        return "Secret(...)"


class BcryptHash(Secret):
    """A password's bcrypt hash, as htpasswd writes it."""

    __slots__ = ()


class HeaderValue(str):
    """Text that may stand in an HTTP header."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """User and where its password stands."""

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
    refresh: Seconds = Seconds(30)


GpuFamily = Literal[
    "utilization", "encoder", "memory", "bar1", "power", "energy", "temperature", "fan", "clocks", "throttle", "gpm",
    "pcie", "nvlink", "ecc", "remapped_rows", "xid", "recovery", "processes", "mig",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """What is read from NVML and how often."""

    enabled: bool = True
    interval: Seconds = Seconds(1)
    slow_interval: Seconds = Seconds(10)
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
    engine_stall: Seconds = Seconds(300)  # one long prefill moves no counter for minutes


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that vitals.yaml can say."""

    listen: Address = Address("127.0.0.1", 9836)
    web_config_file: Path | None = None
    engines: tuple[EngineSettings, ...] = ()
    discovery: Discovery = Discovery()
    raw_names: bool = False
    scrape_timeout: Seconds = Seconds(5)
    sample_interval: Seconds = Seconds(5)
    max_page_bytes: int = 32 * 1024 * 1024
    gpus: GpuSettings = field(default_factory=GpuSettings)
    placement: PlacementSettings = PlacementSettings()
    host: HostSettings = HostSettings()
    spot: SpotSettings = SpotSettings()
    health: HealthSettings = HealthSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


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
    Option("--raw-names", "raw_names", "", "also keep renamed families under the names the engine uses"),
    Option("--scrape-timeout", "scrape_timeout", "TIME", "deadline for engines when the scraper sends none (default 5s)"),
    Option("--sample-interval", "sample_interval", "TIME", "how often the live page and health look at the engines (default 5s)"),
    Option("--gpu-interval", "gpus.interval", "TIME", "how often each GPU is read (default 1s)"),
    Option("--gpus", "gpus.enabled", "on|off", "read GPUs through NVML (default on)"),
    Option("--host", "host.mode", "auto|on|off", "metrics of the machine; auto is off where node_exporter runs (default auto)"),
    Option("--spot", "spot.cloud", "CLOUD", "watch for a spot interruption: off, auto, aws, gcp or azure (default off)"),
    Option("--log-level", "log_level", "LEVEL", "debug, info, warning or error (default info)"),
)  # fmt: skip

_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?")
_BCRYPT_HASH: Final = re.compile(r"\$2[abxy]\$[0-3][0-9]\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_BOOLEANS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_MINIMA: Final = {
    "gpus.interval": 0.1,  # faster polling disturbs the workload
    "gpus.slow_interval": 1.0,
    "sample_interval": 0.5,
    "scrape_timeout": 0.1,
    "discovery.refresh": 1.0,
    "health.engine_stall": 10.0,
}
_SINGLE_CHOICE: Final = (("bearer_token_file", "bearer_token_env"), ("basic_auth", "bearer_token_file"), ("basic_auth", "bearer_token_env"), ("password_file", "password_env"))  # fmt: skip


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


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence per variable that looks like a misspelt one of ours.

    Not an error: Kubernetes makes variables such as VLLM_VITALS_SERVICE_HOST for a service of that name.
    """
    known = [option.variable for option in OPTIONS]
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


def read_yaml(path: Path) -> yaml.Node | None:
    """Return a file's root node with its line numbers, None for an empty file; raises ConfigError."""
    try:
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from error


def from_node(kind: Any, node: yaml.Node, file: str, key: str = "") -> Any:
    """Return a YAML node as a value of a type; also what the web config file is read with.

    Raises:
        ConfigError: with file, line, key, found and expected.
    """
    place = f"{file}:{node.start_mark.line + 1}"
    origin = get_origin(kind)
    if origin in {types.UnionType, typing.Union}:
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return None
        kind = next(part for part in get_args(kind) if part is not type(None))
        origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) and kind is not Address:
        return _dataclass_from_node(typing.cast("type[Any]", kind), node, file, key)
    if origin is tuple:
        if not isinstance(node, yaml.SequenceNode):
            raise ConfigError(f"{place}: {key}: expected a list, found {_describe(node)}")
        items = tuple(from_node(get_args(kind)[0], item, file, f"{key}[{i}]") for i, item in enumerate(node.value))
        if get_args(kind)[0] is EngineSettings:
            _distinct(items, [f"{file}:{item.start_mark.line + 1}: {key}" for item in node.value])
        return items
    if origin is not None and origin is not Literal:  # Mapping[str, X]
        if not isinstance(node, yaml.MappingNode):
            found = "text" if isinstance(node, yaml.ScalarNode) else "a list"  # never the text: it may be a password
            raise ConfigError(f"{place}: {key}: expected a mapping, found {found}")
        names, values = get_args(kind)
        result: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = f"{file}:{name_node.start_mark.line + 1}: {key}"
            name = from_text(names, _key_name(name_node, line), line)
            if name in result:
                raise ConfigError(f"{line}.{name}: given twice")
            result[name] = from_node(values, value_node, file, f"{key}.{name}")
        return result
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{place}: {key}: expected {_expected(kind)}, found {_describe(node)}")
    return _at_least(key, from_text(kind, node.value, f"{place}: {key}"), f"{place}: {key}")


def _dataclass_from_node(kind: type[Any], node: yaml.Node, file: str, key: str) -> Any:
    place = f"{file}:{node.start_mark.line + 1}"
    if kind is EngineSettings and isinstance(node, yaml.ScalarNode):
        return engine_from_text(node.value, f"{place}: {key}")
    if not isinstance(node, yaml.MappingNode):
        # a scalar in the place of user and password is one of them
        found = "text" if kind is BasicAuth and isinstance(node, yaml.ScalarNode) else _describe(node)
        raise ConfigError(f"{place}: {key or 'the file'}: expected a mapping of keys, found {found}")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name_node, value_node in node.value:
        line = f"{file}:{name_node.start_mark.line + 1}"
        name = _key_name(name_node, f"{line}: {key or 'the file'}")
        dotted = f"{key}.{name}" if key else name
        if name not in hints:
            raise ConfigError(f"{line}: {dotted}: unknown key{_nearest(name, hints)}")
        if name in values:
            raise ConfigError(f"{line}: {dotted}: given twice")
        values[name] = from_node(hints[name], value_node, file, dotted)
    for one, other in _SINGLE_CHOICE:
        if values.get(one) is not None and values.get(other) is not None:
            raise ConfigError(f"{place}: {key}: expected {one} or {other}, found both")
    required = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    missing = required - values.keys()
    if missing:
        raise ConfigError(f"{place}: {key}: expected the key {min(missing)!r}, found none")
    if kind is EngineSettings:
        values["url"] = _engine_url(values["url"], f"{place}: {key}.url")
        if values.get("tls") is not None and values["url"].startswith("http:"):
            raise ConfigError(f"{place}: {key}: expected an https address beside tls, found {values['url']!r}")
    return kind(**values)


def _key_name(node: yaml.Node, place: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{place}: expected a name as key, found {_describe(node)}")
    return str(node.value)


def _at_least(key: str, value: Any, place: str) -> Any:
    low = _MINIMA.get(key)
    if low is not None and value < low:
        raise ConfigError(f"{place}: expected at least {low:g}s, found {value:g}s")
    return value


def _distinct(engines: Sequence[EngineSettings], places: Sequence[str]) -> None:
    """Refuse two servers of one name: their series would be the same."""
    seen: set[str] = set()
    for engine, place in zip(engines, places, strict=True):
        if engine.server in seen:
            raise ConfigError(f"{place}: expected different names, found {engine.server!r} twice; name them: NAME=URL")
        seen.add(engine.server)


def from_text(kind: Any, text: str, place: str) -> Any:
    """Return a scalar's text as a value of a type; `place` opens the error."""
    reader = _READERS.get(kind)
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        # YAML 1.1 reads off as false; we look at the text, so `spot: off` means what it says.
        if text in choices:
            return text
        raise ConfigError(f"{place}: expected {' or '.join(choices)}, found {text!r}{_nearest(text, choices)}")
    assert reader is not None, f"no reader for {kind}"
    try:
        return reader(text)
    except ValueError:
        found = "something else" if isinstance(kind, type) and issubclass(kind, Secret) else repr(text)
        raise ConfigError(f"{place}: expected {_expected(kind)}, found {found}") from None


def engine_from_text(text: str, place: str) -> EngineSettings:
    """Return an engine given as URL or NAME=URL."""
    name, separator, url = text.partition("=")
    if not separator or "/" in name:  # an equals sign of the URL's own query
        name, url = "", text
    return EngineSettings(url=_engine_url(url.strip(), place), name=name.strip())


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
    head, _, rest = key.partition(".")
    if key == "engines":
        engines = tuple(engine_from_text(text, place) for text in given)
        _distinct(engines, [place] * len(engines))
        return dataclasses.replace(settings, engines=engines)
    if rest:
        part = getattr(settings, head)
        hint = typing.get_type_hints(type(part))[rest]
        part = dataclasses.replace(part, **{rest: _at_least(key, from_text(hint, given[-1], place), place)})
        return dataclasses.replace(settings, **{head: part})
    hint = typing.get_type_hints(Settings)[head]
    if get_origin(hint) is types.UnionType:
        hint = next(part for part in get_args(hint) if part is not type(None))
    return dataclasses.replace(settings, **{head: _at_least(key, from_text(hint, given[-1], place), place)})


def _read_duration(text: str) -> Seconds:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError
    return Seconds(float(match[1]) * _UNITS[match[2]])


def _read_ratio(text: str) -> Ratio:
    value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value <= 1:
        raise ValueError
    return Ratio(value)


def _read_port(text: str) -> Port:
    port = Port(text)
    if not 0 < port < 65536:
        raise ValueError
    return port


def _read_address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:  # a bare port would listen on all interfaces
        raise ValueError
    host.encode("idna")  # raises a ValueError for what can be no name
    return Address(host.strip("[]") or "0.0.0.0", int(port))


def _read_boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError from None


def _read_whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _read_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _read_bcrypt_hash(text: str) -> BcryptHash:
    if _BCRYPT_HASH.fullmatch(text) is None:
        raise ValueError
    return BcryptHash(text)


def _read_header_value(text: str) -> HeaderValue:
    if not (text and text.isascii() and text.isprintable()):
        raise ValueError
    return HeaderValue(text)


def _read_filled(text: str) -> str:
    if not text:
        raise ValueError
    return text


_READERS: Final[Mapping[Any, Callable[[str], Any]]] = {
    str: _read_filled,
    int: _read_whole,
    float: _read_number,
    bool: _read_boolean,
    Path: lambda text: Path(_read_filled(text)).expanduser(),
    Seconds: _read_duration,
    Ratio: _read_ratio,
    Port: _read_port,
    Address: _read_address,
    Secret: Secret,
    BcryptHash: _read_bcrypt_hash,
    HeaderValue: _read_header_value,
}
_EXPECTATIONS: Final[Mapping[Any, str]] = {
    str: "text",
    int: "a whole number, 0 or more",
    float: "a number",
    bool: "on or off",
    Path: "a path",
    Seconds: "a duration such as 500ms, 15s or 5m",
    Ratio: "a share such as 0.98 or 98%",
    Port: "a port from 1 to 65535",
    Address: "HOST:PORT such as 127.0.0.1:9836",
    BcryptHash: "a bcrypt hash (htpasswd -nBC 10 '')",
    HeaderValue: "one line of printable ASCII",
}


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(str(choice) for choice in get_args(kind))
    return _EXPECTATIONS.get(kind, "a value")


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else f"{node.value!r}"


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f", did you mean {match[0]!r}?" if match else f"; known keys: {', '.join(known)}"

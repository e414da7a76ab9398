"""Settings of the vLLM plugin: the `tracing` part of vitals.yaml, and the variables that reach into vLLM's process.

Apart from config.py because the plugin runs in another process, with a file that VLLM_VITALS_CONFIG names.
OpenTelemetry's own OTEL_* variables say where spans go.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

from .scalars import ConfigError, HeaderValue, Ratio, Seconds, read_scalar

KeepWhat = Literal["errors", "aborted", "preempted", "ttft", "e2e"]
_KEEP: Final = re.compile(r"(ttft|e2e)\s*>\s*(\S+)")


@dataclass(frozen=True, slots=True)
class Keep:
    """Requests whose spans are kept at finish: `errors`, `aborted`, `preempted`, `ttft > 2s` or `e2e > 30s`."""

    what: KeepWhat
    over: Seconds | None = None

    @classmethod
    def from_scalar(cls, text: str, place: str) -> Self:
        """Return the rule that a text says; raises ConfigError."""
        if (match := _KEEP.fullmatch(text.strip())) is not None:
            return cls(match[1], read_scalar(Seconds, match[2], place))  # type: ignore[arg-type]
        if text.strip() in {"errors", "aborted", "preempted"}:
            return cls(text.strip())  # type: ignore[arg-type]
        raise ConfigError(f"{place}: expected errors, aborted, preempted, 'ttft > 2s' or 'e2e > 30s', found {text!r}")


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Which requests' spans are kept; OTEL_TRACES_SAMPLER decides first where `keep` is empty."""

    incoming: Literal["continue", "restart", "ignore"] = "continue"
    forced_per_second: float = 100.0
    keep: tuple[Keep, ...] = ()
    rest: Ratio = Ratio(0.01)


@dataclass(frozen=True, slots=True)
class GpuFactSettings:
    """Where to ask for the engine's GPUs."""

    exporter_url: str | None = None
    interval: Seconds = field(default=Seconds(5), metadata={"least": 1.0})


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """What is hashed before it is written anywhere; the key makes hashes useless to others."""

    hash_key_file: Path | None = None
    hash_headers: tuple[HeaderValue, ...] = ()


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """The audit log; off without a file."""

    file: Path | None = None
    key_file: Path | None = None
    fsync: Literal["always", "interval", "never"] = "interval"
    max_bytes: int = 64 * 1024 * 1024
    keep_files: int = 10

    @classmethod
    def refined(cls, values: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the values; raises ConfigError for a log without a key."""
        if values.get("file") is not None and values.get("key_file") is None:
            raise ConfigError(
                f"{place}: expected the key 'key_file' beside file (openssl rand -hex 32 > FILE), found none"
            )
        return values


@dataclass(frozen=True, slots=True)
class GoodputSettings:
    """Targets that a good request meets together, by default those of alerts/sla.yaml; None leaves one out."""

    ttft: Seconds | None = Seconds(0.5)
    tpot: Seconds | None = Seconds(0.075)


@dataclass(frozen=True, slots=True)
class RequestLogSettings:
    """One JSON line per request."""

    enabled: bool = True
    names: Literal["ecs", "flat"] = "ecs"


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Everything that the `tracing` part of vitals.yaml can say."""

    enabled: bool = True
    export: Literal["thread", "process"] = "thread"
    queue_size: int = field(default=4096, metadata={"least": 16})
    body_bytes: int = 64 * 1024
    only_traces: bool = False
    capture_content: bool = False
    state_dir: Path | None = None
    sampling: SamplingSettings = SamplingSettings()
    request_log: RequestLogSettings = RequestLogSettings()
    privacy: PrivacySettings = PrivacySettings()
    audit: AuditSettings = AuditSettings()
    goodput: GoodputSettings = GoodputSettings()
    gpu_facts: GpuFactSettings = GpuFactSettings()

    @classmethod
    def refined(cls, values: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the values; raises ConfigError where what is not sampled is to be forgotten and looked at, too."""
        if values.get("only_traces"):
            if "audit" in values and values["audit"].file is not None:
                raise ConfigError(f"{place}: expected no audit.file beside only_traces, found one")
            if "sampling" in values and values["sampling"].keep:
                raise ConfigError(f"{place}: expected no sampling.keep beside only_traces, found rules")
        return values


# Variables that win over the file, since a container's environment is easier to change than its files.
TRACING_VARIABLES: Final = {
    "VLLM_VITALS_TRACING": "enabled",
    "VLLM_VITALS_TRACING_EXPORT": "export",
    "VLLM_VITALS_CAPTURE_CONTENT": "capture_content",
    "VLLM_VITALS_STATE_DIR": "state_dir",
}
CONFIG_VARIABLE: Final = "VLLM_VITALS_CONFIG"

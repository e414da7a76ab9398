"""What /api/vitals tells, as rows: engines, GPUs, what is wrong with them, and what there is to say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..promises.alerts import Source
from ..promises.verdict import Level
from ..promises.watch import PromiseRow
from .health import Status, Symptom

NoteCode = Literal["symptom", "unreadable", "throttle", "xid", "stale", "queue", "preemption"]
History = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Note:
    """One thing to say; `at` is the Unix time of an event, None where it is about now."""

    level: Level
    words: str
    at: float | None = None
    code: NoteCode = "symptom"


@dataclass(frozen=True, slots=True)
class XidRow:
    """One XID code of a GPU: how often it came, and when last (Unix time)."""

    xid: int
    count: float | None
    last_timestamp_seconds: float
    meaning: str
    critical: bool


@dataclass(frozen=True, slots=True)
class PlacedGpu:
    """A GPU of an engine, and how we know that it is one."""

    gpu: str
    uuid: str
    source: str


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One server; None stands for what is not known. Seconds, ratios, and rates per second over the page's window."""

    server: str
    url: str
    origin: str
    kind: str
    up: bool
    reason: str
    status: Status
    reasons: Sequence[str]
    symptoms: Sequence[Symptom]
    level: Level
    state: str
    models: Sequence[str]
    engines: Sequence[str]
    restarts: int
    past: str
    running: float | None
    waiting: float | None
    kv_cache_ratio: float | None
    prefix_hit_ratio: float | None
    preemptions_per_second: float | None
    finished_per_second: float | None
    prompt_tokens_per_second: float | None
    generation_tokens_per_second: float | None
    ttft_seconds: Mapping[str, float | None]
    tpot_seconds: Mapping[str, float | None]
    gpus: Sequence[PlacedGpu]
    gpu_indices: str
    gpu_source: str
    joules_per_output_token: float | None
    history: History
    notes: Sequence[Note] = ()


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One GPU; None stands for what is not known."""

    gpu: str
    uuid: str
    name: str
    up: bool
    reason: str
    status: Status
    reasons: Sequence[str]
    symptoms: Sequence[Symptom]
    servers: Sequence[str]
    age_seconds: float | None
    utilization_ratio: float | None
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    power_watts: float | None
    power_limit_watts: float | None
    temperature_celsius: float | None
    memory_temperature_celsius: float | None
    sm_active_ratio: float | None
    dram_active_ratio: float | None
    throttle: Sequence[str]
    xid: Sequence[XidRow]
    history: History
    level: Level = "ok"
    notes: Sequence[Note] = ()


@dataclass(frozen=True, slots=True)
class AlertRow:
    """One alert; `since` is Unix time."""

    name: str
    severity: str
    state: str
    since: float | None
    labels: Mapping[str, str]
    summary: str
    description: str
    runbook_url: str
    level: Level


@dataclass(frozen=True, slots=True)
class AlertRows:
    """The alerts, what fires first; `total` counts those that are left out, too."""

    sources: Sequence[Source] = ()
    total: int = 0
    rows: Sequence[AlertRow] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """One line of the list at the top: who it is about, with the server or the GPU to lead to."""

    kind: Literal["engine", "GPU", "promise", "alert"]
    level: Level
    server: str
    uuid: str
    who: str
    words: str


@dataclass(frozen=True, slots=True)
class Headline:
    """The verdict on everything."""

    level: Level
    words: str
    totals: str
    problems: Sequence[Problem]


@dataclass(frozen=True, slots=True)
class Vitals:
    """The whole answer; `time` is Unix time."""

    time: float
    version: str
    interval_seconds: float
    scene: str
    messages: Sequence[str]
    verdict: Headline
    sla: str
    promises: Sequence[PromiseRow]
    alerts: AlertRows
    gpu_models: str
    engines: Sequence[EngineRow]
    gpus: Sequence[GpuRow]


def plain(row: Any, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return a row less some fields, as json.dumps asks for it; for the rows inside it asks again."""
    return {field.name: getattr(row, field.name) for field in fields(row) if field.name not in leave_out}

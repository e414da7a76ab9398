"""Verdicts on GPUs and engines: values in, what is wrong out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from ...settings.config import HealthSettings
from ...vocabulary.reasons import FETCH
from ...vocabulary.xids import XIDS
from ..engines.engine import Engine, Fetched
from ..gpus.types import GpuSnapshot

Status = Literal["ok", "warning", "critical"]
_ORDER: Final[tuple[Status, ...]] = ("ok", "warning", "critical")

XID_WINDOW_SECONDS: Final = 900.0  # a critical XID weighs this long when nothing else says that the GPU is ill

RECOVERY_ACTIONS: Final = (
    "none",
    "GPU reset",
    "node reboot",
    "drain P2P",
    "drain and reset",
    "recover IMEX domain",
    "bus reset",
    "system reboot",
)


SymptomCode = Literal[
    "unreadable", "memory", "temperature", "recovery", "xid", "row_remap_failure", "row_remap_pending",  # of a GPU
    "down", "dead", "stalled",  # of a server
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that is wrong.

    Attributes:
        text: in words, as /health tells it.
        value, limit: what was read, and what is allowed, where there is such a number; of an XID its code.
        detail: of a server that is down, why, without the code.
    """

    code: SymptomCode
    level: Literal["warning", "critical"]
    text: str
    value: float | None = None
    limit: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, the critical first; nothing when ok."""

    symptoms: tuple[Symptom, ...] = ()

    @property
    def status(self) -> Status:
        """The worst of it."""
        return max((symptom.level for symptom in self.symptoms), key=_ORDER.index, default="ok")

    @property
    def reasons(self) -> tuple[str, ...]:
        """All of it in words."""
        return tuple(symptom.text for symptom in self.symptoms)

    @property
    def ok(self) -> bool:
        """Whether a probe should answer 200."""
        return self.status != "critical"


def gpu_verdict(gpu: GpuSnapshot, limits: HealthSettings, now: float) -> Verdict:
    """Return the verdict on a GPU; `now` is Unix time, since XID events carry it."""
    found: list[Symptom] = []
    reading = gpu.reading
    if not gpu.up:
        found.append(Symptom("unreadable", "critical", f"not readable: {gpu.reason}"))
    used, most = reading.memory_ratio, limits.gpu_memory_ratio
    if used is not None and used > most:
        found.append(Symptom("memory", "critical", f"memory {used:.1%} used, limit {most:.0%}", used, most))
    temperature, hottest = reading.temperature_celsius, limits.gpu_temperature_celsius
    if temperature is not None and temperature > hottest:
        text = f"temperature {temperature:.0f} C, limit {hottest:.0f} C"
        found.append(Symptom("temperature", "critical", text, temperature, hottest))
    action = reading.recovery_action
    if action:
        name = RECOVERY_ACTIONS[int(action)] if action < len(RECOVERY_ACTIONS) else "unknown"
        found.append(Symptom("recovery", "critical", f"the driver asks for: {name}", action))
    for code, _, at in sorted(reading.xids):
        known = XIDS.get(code)
        if at is not None and now - at < XID_WINDOW_SECONDS:
            text = f"XID {code}" + (f": {known.meaning}" if known else "")
            found.append(Symptom("xid", "critical" if known and known.critical else "warning", text, code))
    if reading.row_remap_failure:
        found.append(Symptom("row_remap_failure", "critical", "row remapping failed"))
    if reading.row_remap_pending:
        found.append(Symptom("row_remap_pending", "warning", "row remapping waits for a GPU reset"))
    return Verdict(tuple(sorted(found, key=lambda symptom: symptom.level)))  # stable, and critical comes first


def engine_verdict(engine: Engine, fetched: Fetched, limits: HealthSettings) -> Verdict:
    """Return the verdict on a server: unreachable, dead behind its page, or without progress."""
    if fetched.page is None:
        why = FETCH[fetched.reason or "internal"]
        detail = why.meaning + (f": {fetched.detail}" if why.open and fetched.detail else "")
        return Verdict((Symptom("down", "critical", f"down ({why.code}): {detail}", detail=detail),))
    if engine.healthy is False:
        text = "its page answers, but its own /health says that the engine is dead"
        return Verdict((Symptom("dead", "critical", text),))
    if is_stalled(engine, limits):
        seconds = engine.ring.stalled_seconds()
        text = f"no progress for {seconds:.0f} s although requests are there"
        return Verdict((Symptom("stalled", "critical", text, seconds, limits.engine_stall),))
    return Verdict()


def is_stalled(engine: Engine, limits: HealthSettings) -> bool:
    """Tell whether there has been work but no progress for longer than allowed."""
    return engine.ring.stalled_seconds() >= limits.engine_stall


def worst(verdicts: Iterable[Verdict]) -> Status:
    """Return the worst status, ok for none."""
    return max((verdict.status for verdict in verdicts), key=_ORDER.index, default="ok")

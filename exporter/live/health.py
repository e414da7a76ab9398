"""Verdicts on GPUs and engines: values in, a status and reasons in words out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from ...settings.config import HealthSettings
from ...vocabulary.reasons import FETCH
from ...vocabulary.xids import XIDS
from ..engines.engine import Engine, Fetched
from ..gpus.types import GpuSnapshot
from ..gpus.xids import LAST as XID_LAST

Status = Literal["ok", "warning", "critical"]

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


@dataclass(frozen=True, slots=True)
class Verdict:
    """A status with its reasons; no reasons when ok."""

    status: Status
    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a probe should answer 200."""
        return self.status != "critical"


def gpu_verdict(gpu: GpuSnapshot, limits: HealthSettings, now: float) -> Verdict:
    """Return the verdict on a GPU; `now` is Unix time, since XID events carry it."""
    critical: list[str] = []
    warning: list[str] = []
    value = gpu.values
    if not gpu.up:
        critical.append(f"not readable: {gpu.reason}")
    used, total = value.get(("nvidia_gpu_memory_used_bytes", "")), value.get(("nvidia_gpu_memory_total_bytes", ""))
    if used is not None and total and used / total > limits.gpu_memory_ratio:
        critical.append(f"memory {used / total:.1%} used, limit {limits.gpu_memory_ratio:.0%}")
    temperature = value.get(("nvidia_gpu_temperature_celsius", 'sensor="gpu"'))
    if temperature is not None and temperature > limits.gpu_temperature_celsius:
        critical.append(f"temperature {temperature:.0f} C, limit {limits.gpu_temperature_celsius:.0f} C")
    action = value.get(("nvidia_gpu_recovery_action", ""))
    if action:
        name = RECOVERY_ACTIONS[int(action)] if action < len(RECOVERY_ACTIONS) else "unknown"
        critical.append(f"the driver asks for: {name}")
    for code, at in sorted(last_xids(gpu).items()):
        known = XIDS.get(code)
        if now - at < XID_WINDOW_SECONDS:
            text = f"XID {code}" + (f": {known.meaning}" if known else "")
            (critical if known and known.critical else warning).append(text)
    if value.get(("nvidia_gpu_row_remap_failure", "")):
        critical.append("row remapping failed")
    if value.get(("nvidia_gpu_row_remap_pending", "")):
        warning.append("row remapping waits for a GPU reset")
    return _verdict(critical, warning)


def engine_verdict(engine: Engine, fetched: Fetched, limits: HealthSettings) -> Verdict:
    """Return the verdict on a server: unreachable, dead behind its page, or without progress."""
    if fetched.page is None:
        why = FETCH[fetched.reason or "internal"]
        detail = f": {fetched.detail}" if why.open and fetched.detail else ""
        return Verdict("critical", (f"down ({why.code}): {why.meaning}{detail}",))
    if engine.healthy is False:
        return Verdict("critical", ("its page answers, but its own /health says that the engine is dead",))
    if is_stalled(engine, limits):
        return Verdict(
            "critical", (f"no progress for {engine.ring.stalled_seconds():.0f} s although requests are there",)
        )
    return Verdict("ok")


def is_stalled(engine: Engine, limits: HealthSettings) -> bool:
    """Tell whether there has been work but no progress for longer than allowed."""
    return engine.ring.stalled_seconds() >= limits.engine_stall


def last_xids(gpu: GpuSnapshot) -> dict[int, float]:
    """Return XID code -> Unix time of its last event on this GPU."""
    codes = {labels: at for (family, labels), at in gpu.values.items() if family == XID_LAST}
    return {int(code): at for labels, at in codes.items() if (code := labels.split('"')[1]).isdigit()}


def worst(verdicts: Iterable[Verdict]) -> Status:
    """Return the worst status, ok for none."""
    order: tuple[Status, ...] = ("ok", "warning", "critical")
    return max((verdict.status for verdict in verdicts), key=order.index, default="ok")


def _verdict(critical: list[str], warning: list[str]) -> Verdict:
    status: Status = "critical" if critical else "warning" if warning else "ok"
    return Verdict(status, (*critical, *warning))

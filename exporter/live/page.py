"""The JSON behind the live page: what GPUs and engines do now, and their last ten minutes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from ... import __version__
from ...settings.config import HealthSettings
from ...settings.invocation import as_called
from ...vocabulary.reasons import GpusCode
from ...vocabulary.xids import XIDS
from ..engines.engine import Engine
from ..engines.history import ReadingRing, Track
from ..gpus.types import GpuSnapshot
from ..placement.rules import Placed
from ..promises.alerts import Alerts
from ..promises.watch import PromiseRow
from .health import Verdict, engine_verdict, gpu_verdict
from .rows import EngineRow, GpuRow, PlacedGpu, Vitals, XidRow
from .wording import (
    alert_rows,
    engine_notes,
    engine_past,
    engine_state,
    gpu_level,
    gpu_models,
    gpu_notes,
    index_ranges,
    messages,
    promise_place,
    throttles,
    verdict,
)

_QUANTILES: Final = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


def vitals(
    engines: Sequence[Engine],
    gpus: Sequence[GpuSnapshot],
    gpu_tracks: Mapping[str, Mapping[str, Track]],
    energy: Mapping[str, "EnergyWindow"],
    placed: Sequence[Placed],
    limits: HealthSettings,
    *,
    gpu_reason: GpusCode | Literal[""],
    interval: float,
    promises: Sequence[PromiseRow] = (),
    sla: str = "",
    alerts: Alerts,
    scene: str = "",
) -> Vitals:
    """Return the whole answer of /api/vitals; None stands for what is not known."""
    now = time.time()
    servers_of = {gpu.uuid: sorted({row.server for row in placed if row.uuid == gpu.uuid}) for gpu in gpus}
    engine_rows = [_engine(engine, placed, energy, servers_of, limits, interval) for engine in engines]
    gpu_rows = [
        _gpu(gpu, gpu_tracks.get(gpu.uuid, {}), servers_of[gpu.uuid], gpu_verdict(gpu, limits, now), now)
        for gpu in gpus
    ]
    told = alert_rows(alerts)
    return Vitals(
        time=round(now, 3),
        version=__version__,
        interval_seconds=interval,
        scene=scene,
        messages=[as_called(sentence) for sentence in messages(gpu_reason, engines=len(engines))],
        verdict=verdict(engine_rows, gpu_rows, promises, told),
        sla=sla,
        promises=[replace(row, place=promise_place(row)) for row in promises],
        alerts=told,
        gpu_models=gpu_models(gpu.name for gpu in gpus),
        engines=engine_rows,
        gpus=gpu_rows,
    )


class EnergyWindow:
    """Energy counter readings of one GPU over the window of the page."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []

    def add(self, at: float, joules: float | None, span: float) -> None:
        """Take a reading; one that fell (driver reload) or is missing empties the window."""
        if joules is None or (self._points and joules < self._points[-1][1]):
            self._points.clear()
        if joules is not None:
            self._points.append((at, joules))
            while len(self._points) > 2 and self._points[1][0] <= at - span:
                self._points.pop(0)

    def watts(self) -> float | None:
        """Return joules per second over the window, None with fewer than two readings."""
        if len(self._points) < 2:
            return None
        (t0, e0), (t1, e1) = self._points[0], self._points[-1]
        return (e1 - e0) / (t1 - t0) if t1 > t0 else None


def joules_per_output_token(ring: ReadingRing, watts: Sequence[float | None]) -> float | None:
    """Return energy over generated tokens in the window: mean power of all its GPUs over the token rate.

    None when a GPU's energy is not known or nothing was generated: a part of the energy would be a wrong number.
    """
    tokens = ring.rate(lambda reading: reading.generation_tokens)
    known = [value for value in watts if value is not None]
    if not tokens or tokens <= 0 or not known or len(known) < len(watts):
        return None
    return sum(known) / tokens


def _engine(
    engine: Engine,
    placed: Sequence[Placed],
    energy: Mapping[str, EnergyWindow],
    servers_of: Mapping[str, Sequence[str]],
    limits: HealthSettings,
    interval: float,
) -> EngineRow:
    ring = engine.ring
    last = ring.last
    known = ring.known
    pairs = known.pairs if known else ()
    rows = [row for row in placed if row.server == engine.server]
    uuids = list(dict.fromkeys(row.uuid for row in rows if row.uuid))
    # A GPU that two servers share has one energy counter: what one of them used of it is not known.
    alone = all(len(servers_of.get(uuid, ())) == 1 for uuid in uuids)
    watts = [energy[uuid].watts() if uuid in energy else None for uuid in uuids] if alone else []
    queries = ring.increase(lambda reading: reading.prefix_queries)
    hits = ring.increase(lambda reading: reading.prefix_hits)
    judged = engine_verdict(engine, engine.latest, limits)
    level, state = engine_state(up=engine.latest.page is not None, reason=engine.latest.reason, judged=judged)
    gpus = list({row.uuid: PlacedGpu(row.gpu, row.uuid, row.source) for row in rows if row.uuid}.values())
    row = EngineRow(
        server=engine.server,
        url=engine.settings.url,
        origin=engine.origin,
        kind=known.kind if known else "unknown",
        up=engine.latest.page is not None,
        reason=engine.latest.reason,
        status=judged.status,
        reasons=judged.reasons,
        symptoms=judged.symptoms,
        level=level,
        state=state,
        models=sorted({model for _, model in pairs if model}),
        engines=sorted({index for index, _ in pairs}),
        restarts=ring.restarts,
        past=engine_past(len({index for index, _ in pairs}), ring.restarts),
        running=last.running if last else None,
        waiting=last.waiting if last else None,
        kv_cache_ratio=last.kv_cache_ratio if last else None,
        prefix_hit_ratio=hits[0] / queries[0] if queries and hits and queries[0] > 0 else None,
        preemptions_per_second=ring.rate(lambda reading: reading.preemptions),
        finished_per_second=ring.rate(lambda reading: reading.finished),
        prompt_tokens_per_second=ring.rate(lambda reading: reading.prompt_tokens),
        generation_tokens_per_second=ring.rate(lambda reading: reading.generation_tokens),
        ttft_seconds={name: ring.quantile(q, lambda reading: reading.ttft) for name, q in _QUANTILES},
        tpot_seconds={name: ring.quantile(q, lambda reading: reading.tpot) for name, q in _QUANTILES},
        gpus=gpus,
        gpu_indices=index_ranges(int(one.gpu) for one in gpus if one.gpu.isdigit()),
        gpu_source=rows[0].source if rows else "unknown",
        joules_per_output_token=joules_per_output_token(ring, watts),
        history={name: track.points() for name, track in engine.tracks.items()},
    )
    return replace(row, notes=engine_notes(row, interval))


def _gpu(gpu: GpuSnapshot, tracks: Mapping[str, Track], servers: Sequence[str], judged: Verdict, now: float) -> GpuRow:
    reading = gpu.reading
    row = GpuRow(
        gpu=str(gpu.index),
        uuid=gpu.uuid,
        name=gpu.name,
        up=gpu.up,
        reason=gpu.reason,
        status=judged.status,
        reasons=judged.reasons,
        symptoms=judged.symptoms,
        servers=servers,
        age_seconds=round(time.monotonic() - gpu.taken_at, 1) if gpu.taken_at else None,
        utilization_ratio=reading.utilization_ratio,
        memory_used_bytes=reading.memory_used_bytes,
        memory_total_bytes=reading.memory_total_bytes,
        power_watts=reading.power_watts,
        power_limit_watts=reading.power_limit_watts,
        temperature_celsius=reading.temperature_celsius,
        memory_temperature_celsius=reading.memory_temperature_celsius,
        sm_active_ratio=reading.sm_active_ratio,
        dram_active_ratio=reading.dram_active_ratio,
        throttle=throttles(reading.throttles),
        xid=[
            XidRow(
                xid=code,
                count=count,
                last_timestamp_seconds=at,
                meaning=XIDS[code].meaning if code in XIDS else "",
                critical=code in XIDS and XIDS[code].critical,
            )
            for code, count, at in sorted(reading.xids)
            if at is not None
        ],
        history={name: track.points() for name, track in tracks.items()},
    )
    notes = gpu_notes(row, now)
    return replace(row, level=gpu_level(notes), notes=notes)

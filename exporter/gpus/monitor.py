"""The GPU monitor: one thread per GPU, a supervisor that opens the driver again, and what both put on the page."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Event, Thread
from time import monotonic
from typing import Final, Literal

from ...runtime.log_once import LogOnce
from ...vocabulary.reasons import DriverCode, GpuCode, driver_code, gpu_code
from ...vocabulary.xids import meaning
from ..pages.samples import Rendered, Sample, label_pairs, render
from .groups import FAMILY_GROUPS, FamilyGroup, families_of
from .reading import NOTHING, reading_of
from .types import GPU_REASONS, SOURCE_REASONS, GpuDevice, GpuError, GpuProcess, GpuSnapshot, GpuSource, XidEvent
from .worker import GpuRecord, GpuWorker
from .xids import XidCounts

__all__ = [
    "FAMILY_GROUPS",
    "GPU_REASONS",
    "SOURCE_REASONS",
    "FamilyGroup",
    "GpuDevice",
    "GpuError",
    "GpuMonitor",
    "GpuProcess",
    "GpuSnapshot",
    "GpuSource",
    "XidEvent",
]

# Only a fresh nvmlInit helps here; "starting" is a GPU that did not answer while the driver was opened and now does.
_REOPEN: Final = frozenset({"lost", "reset_required", "driver_reload", "version_mismatch", "no_driver", "starting"})
_OPEN_HANG_SECONDS = 10.0  # the first nvmlInit without persistence mode takes seconds
_CLOSE_SECONDS = 5.0
_TICK_SECONDS = 1.0
_EVENT_SECONDS = 4.0
# One after another, not spread over the interval: with warm caches the background takes a third less CPU.
_STAGGER_SECONDS = 0.002
_HEALTHY_SECONDS = 60.0  # after so long without a wish to open again, the backoff starts over
_HUNG_PATIENCE_SECONDS = 60.0  # opening again may block on a GPU that hangs: spare healthy GPUs, but not forever
_log = logging.getLogger("vllm_vitals")


class GpuMonitor:
    """Collects in the background; every public method returns at once and never raises.

    Args:
        source: NVML, or a simulation.
        interval: seconds between two cycles of a GPU.
        slow_interval: seconds between two readings of the slow families.
        families_off: names from FAMILY_GROUPS that leave the page; the source is told, and makes no call for them.
        hang_seconds: a cycle that runs longer than this (and than three intervals) takes its GPU down.
        backoff: first and longest pause in seconds before the driver is opened again.
    """

    def __init__(
        self,
        source: GpuSource,
        interval: float = 1.0,
        slow_interval: float = 10.0,
        families_off: frozenset[str] = frozenset(),
        *,
        hang_seconds: float = 5.0,
        backoff: tuple[float, float] = (1.0, 60.0),
    ) -> None:
        self._source = source
        source.switch_off(families_off)
        self._interval = interval
        self._slow_interval = slow_interval
        self._off = families_of(families_off)
        self._xids_on = "xid" not in families_off
        self._hang_after = max(3 * interval, hang_seconds)
        self._backoff = backoff
        self._records: list[GpuRecord] = []
        self._reason: DriverCode | Literal[""] = "starting"
        self._opening_since: float | None = None
        self._versions: Mapping[str, str] = {}
        self._count = 0
        self._openings = 0
        self._wish_since: float | None = None
        self._stopping = Event()
        self._wake = Event()
        self._generation = Event()  # set: the event thread of the current opening ends
        self._closer: Thread | None = None
        self._event_thread: Thread | None = None
        self._thread = Thread(target=self._supervise, name="gpus", daemon=True)

    # --- What others call --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the supervisor, which opens the driver; a driver that hangs does not hold the caller."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Stop collecting; what hangs in the driver is left behind as daemon threads."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def snapshots(self) -> tuple[GpuSnapshot, ...]:
        """Return every GPU that was ever seen, in index order."""
        now = monotonic()
        return tuple(self._with_reading(record, self._view(record, now)) for record in self._records)

    def reason(self) -> DriverCode | Literal[""]:
        """Return why the driver is not open (one of SOURCE_REASONS); empty when it is."""
        since = self._opening_since
        if since is not None and monotonic() - since > _OPEN_HANG_SECONDS:
            return "hang"
        return self._reason

    def samples(self) -> Rendered:
        """Return everything for the page, as of now."""
        return Rendered(self.lines(monotonic()))

    def lines(self, now: float) -> list[Mapping[str, bytes]]:
        """Return everything for the page; `now` is time.monotonic()."""
        page: list[Mapping[str, bytes]] = [self._own_lines()]
        for record in self._records:
            snapshot = self._view(record, now)
            state = [Sample("nvidia_gpu_up", f'reason="{snapshot.reason}"', int(snapshot.up))]
            if snapshot.taken_at:
                age = round(max(0.0, now - snapshot.taken_at), 3)
                state.append(Sample("nvidia_gpu_snapshot_age_seconds", "", age))
            # who the GPU is stays on the page while it is down: alerts join the name from there
            samples = snapshot.samples or record.identity
            page += [record.text.render(state), record.failure_lines, record.text.render(samples)]
            if record.xids:
                page.append(record.xids.lines)
        return page

    # --- Views -------------------------------------------------------------------------------------------------------

    def _own_lines(self) -> dict[str, bytes]:
        reason = self.reason()
        samples = [
            Sample("vllm_vitals_nvml_up", label_pairs(reason=reason), int(not reason)),
            Sample("vllm_vitals_nvml_restarts_total", "", max(0, self._openings - 1)),
        ]
        if not reason:
            samples.append(Sample("vllm_vitals_gpus", "", self._count))
            samples.append(Sample("vllm_vitals_nvml_info", label_pairs(**self._versions), 1))
        return render(samples)

    def _view(self, record: GpuRecord, now: float) -> GpuSnapshot:
        """Return the snapshot as of now: a thread inside the driver cannot say itself that it hangs."""
        snapshot = record.snapshot
        reason: GpuCode
        if self._hangs(record, now):
            reason = "hang"
        elif snapshot.up and now - snapshot.taken_at > self._hang_after + self._interval:
            reason = self._gpu_reason()
        else:
            return snapshot
        return replace(snapshot, up=False, reason=reason, samples=(), reading=NOTHING)

    def _hangs(self, record: GpuRecord, now: float) -> bool:
        started = record.worker.cycle_started if record.worker else None
        return started is not None and now - started > self._hang_after

    def _gpu_reason(self) -> GpuCode:
        return gpu_code(self.reason())

    @staticmethod
    def _with_reading(record: GpuRecord, snapshot: GpuSnapshot) -> GpuSnapshot:
        xids = record.xids.counts if record.xids is not None else ()
        return replace(snapshot, reading=reading_of(snapshot.samples, xids))

    # --- The supervisor ----------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        first, longest = self._backoff
        failed, short_lived = first, first  # pauses: between attempts to open, and before an open driver is given up
        while not self._stopping.is_set():
            try:
                devices = self._open()
                if not devices:
                    self._stopping.wait(failed)
                    failed = min(2 * failed, longest)
                    continue
                failed = first
                self._openings += 1
                healthy = self._serve(devices, short_lived)
                short_lived = first if healthy else min(2 * short_lived, longest)
                self._close()
            except Exception:  # nothing but this thread could bring the GPUs back
                _log.exception("supervising the GPUs failed")
                self._not_open("failed", "see above")
                self._stopping.wait(longest)
        self._generation.set()

    def _open(self) -> Sequence[GpuDevice]:
        self._wish_since = None
        self._opening_since = monotonic()
        try:
            devices = self._source.open()
            self._versions = dict(self._source.versions())
        except GpuError as error:
            self._not_open(error.reason, str(error))
            return ()
        except Exception:
            _log.exception("opening the GPU driver failed")
            self._not_open("failed", "see above")
            return ()
        finally:
            self._opening_since = None
        self._reason = ""
        return devices

    def _not_open(self, reason: str, detail: str) -> None:
        if reason != self._reason:
            _log.warning("GPUs cannot be read: %s", detail)
        self._reason = driver_code(reason)
        for record in self._records:
            record.down(self._gpu_reason())

    def _serve(self, devices: Sequence[GpuDevice], pause: float) -> bool:
        """Run the threads of one opening until NVML has to be opened again; return whether it was healthy long."""
        opened_at = monotonic()
        self._wake.clear()
        self._generation = Event()
        self._count = len(devices)
        for record, device in self._match(devices):
            self._start_worker(record, device)
        if self._xids_on:
            self._event_thread = Thread(
                target=self._follow_events, args=(self._generation,), name="gpu-events", daemon=True
            )
            self._event_thread.start()
        while not self._stopping.is_set():
            now = monotonic()
            self._tick(now)
            timeout = _TICK_SECONDS
            wished = self._wish_since
            if wished is not None:
                due = self._due(wished, opened_at, pause, now)
                if now >= due:
                    break
                timeout = min(timeout, due - now)
            self._wake.wait(timeout)
            self._wake.clear()
        return (self._wish_since or monotonic()) - opened_at > _HEALTHY_SECONDS

    def _due(self, wished: float, opened_at: float, pause: float, now: float) -> float:
        due = wished + (self._backoff[0] if wished - opened_at > _HEALTHY_SECONDS else pause)
        if any(self._hangs(record, now) for record in self._records) and self._any_up(now):
            due = max(due, wished + _HUNG_PATIENCE_SECONDS)
        return due

    def _any_up(self, now: float) -> bool:
        return any(self._view(record, now).up for record in self._records)

    def _match(self, devices: Sequence[GpuDevice]) -> list[tuple[GpuRecord, GpuDevice]]:
        """Pair each device with its record by UUID; a device that could not even say its UUID goes by its index."""
        known = {record.snapshot.uuid: record for record in self._records}
        named = {device.uuid for device in devices if device.uuid}
        missing = {record.snapshot.index: record for uuid, record in known.items() if uuid not in named}
        pairs = []
        for device in devices:
            record = known.get(device.uuid) if device.uuid else missing.get(device.index)
            if record is None or (record.snapshot.uuid == "" and device.uuid):
                record = GpuRecord(device)
            elif device.index != record.snapshot.index:
                record.move(device.index)
            pairs.append((record, device))
        paired = [record for record, _ in pairs]
        for record in self._records:  # gone from the bus: stays on the page as lost, but a nameless one got its name
            if record not in paired and record.snapshot.uuid:
                record.down("lost")
                record.worker = record.worker if self._alive(record.worker) else None
                paired.append(record)
                self._wish("lost")
        for record, device in pairs:
            if self._xids_on and record.xids is None and device.reports_xid:
                record.xids = XidCounts(record.text.labels)
        self._records = sorted(paired, key=lambda record: record.snapshot.index)
        return pairs

    @staticmethod
    def _alive(worker: GpuWorker | None) -> bool:
        return worker is not None and worker.thread.is_alive()

    def _start_worker(self, record: GpuRecord, device: GpuDevice) -> None:
        if self._alive(record.worker):  # still inside the driver: one stuck thread per GPU is enough
            record.waiting = device
            return
        record.waiting = None
        place = self._records.index(record)
        record.worker = GpuWorker(
            record,
            device,
            interval=self._interval,
            slow_interval=self._slow_interval,
            phase=place * min(_STAGGER_SECONDS, self._interval / len(self._records)),
            families_off=self._off,
            on_error=self._wish,
        )
        record.worker.start()

    def _wish(self, reason: str) -> None:
        if reason in _REOPEN and self._wish_since is None:
            self._wish_since = monotonic()
            self._wake.set()

    def _tick(self, now: float) -> None:
        for record in self._records:
            worker = record.worker
            if worker is not None and self._hangs(record, now) and not worker.hang_counted:
                worker.hang_counted = True
                record.count_failure("hang")
                _log.warning("GPU %d (%s) hangs in the driver", record.snapshot.index, record.snapshot.uuid)
            if record.waiting is not None and not self._alive(worker):
                self._start_worker(record, record.waiting)

    def _follow_events(self, ended: Event) -> None:
        said = LogOnce()
        while not ended.is_set():
            started = monotonic()
            events: Sequence[XidEvent] = ()
            try:
                events = self._source.events(_EVENT_SECONDS)
            except GpuError as error:
                self._wish(error.reason)
            except Exception:
                if said.is_news("events"):
                    _log.exception("waiting for XID events failed")
            self._count_events(events)
            if not events:  # a source without events answers at once
                ended.wait(max(0.0, _EVENT_SECONDS - (monotonic() - started)))

    def _count_events(self, events: Sequence[XidEvent]) -> None:
        records = {record.snapshot.uuid: record for record in self._records}
        for event in events:
            record = records.get(event.uuid)
            if record is not None and record.xids is not None and record.xids.add(event):
                index, said = record.snapshot.index, meaning(event.code)
                _log.warning("GPU %d (%s): XID %d, %s", index, event.uuid, event.code, said)

    def _close(self) -> None:
        """Let the threads end and close the source; neither a GPU nor a close that hangs holds this up for long."""
        self._generation.set()
        for record in self._records:
            record.waiting = None
            if record.worker is not None:
                record.worker.retire()
        now = monotonic()
        threads = [record.worker.thread for record in self._records if record.worker and not self._hangs(record, now)]
        if self._event_thread is not None:
            threads.append(self._event_thread)
        deadline = now + (2 * _EVENT_SECONDS if self._stopping.is_set() else self._hang_after)
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
        if self._closer is None or not self._closer.is_alive():
            self._closer = Thread(target=self._close_source, name="gpus-close", daemon=True)
            self._closer.start()
            self._closer.join(_CLOSE_SECONDS)

    def _close_source(self) -> None:
        try:
            self._source.close()
        except Exception:
            _log.exception("closing the GPU driver failed")

"""One GPU's thread: reads it at its own pace and leaves what it read as an immutable snapshot."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock, Thread
from time import monotonic
from typing import Final

from ...runtime.log_once import LogOnce
from ...vocabulary.reasons import GpuCode, gpu_code
from ..pages.samples import Sample
from .lines import GpuLines
from .reading import NOTHING
from .types import GPU_REASONS, GpuDevice, GpuError, GpuProcess, GpuSnapshot
from .xids import XidCounts

INFO: Final = "nvidia_gpu_info"
_FAILURES = "nvidia_gpu_collect_failures_total"
_DURATION = "nvidia_gpu_collect_duration_seconds"
_PROCESSES = "nvidia_gpu_processes"
_MIG_INFO = "nvidia_gpu_mig_info"
_PROCESS_SECONDS = 5.0  # placement follows new engines within this time
_LONGEST_PAUSE = 60.0
_MIG_UUID = re.compile(r'mig_uuid="([^"]*)"')
_log = logging.getLogger("vllm_vitals")


class GpuRecord:
    """What stays of one GPU while NVML is opened again and again."""

    def __init__(self, device: GpuDevice) -> None:
        self.text = GpuLines(device.index, device.uuid)
        self.snapshot = GpuSnapshot(
            device.index, device.uuid, device.name, device.pci_bus_id, 0.0, False, "starting", (), NOTHING, (), ()
        )
        self.worker: GpuWorker | None = None
        self.waiting: GpuDevice | None = None  # to be read as soon as the old thread came out of the driver
        self.identity: Sequence[Sample] = ()
        self.xids: XidCounts | None = None
        self.said = LogOnce()  # why it cannot be read: one line per change, not per attempt
        # every reason from the start, so that increase() sees the first failure
        self._failures = {reason: 0 for reason in GPU_REASONS if reason != "starting"}
        self.failure_lines = self._render_failures()

    def count_failure(self, reason: GpuCode) -> None:
        """Count one failed cycle, or one hang."""
        if reason in self._failures:
            self._failures[reason] += 1
            self.failure_lines = self._render_failures()

    def move(self, index: int) -> None:
        """Take the index that the driver gives this GPU now."""
        self.snapshot = replace(self.snapshot, index=index)
        self.text = GpuLines(index, self.snapshot.uuid)
        self.failure_lines = self._render_failures()
        if self.xids is not None:
            self.xids.move(self.text.labels)

    def down(self, reason: GpuCode) -> None:
        """Take the values off the page."""
        self.snapshot = replace(self.snapshot, up=False, reason=reason, samples=(), reading=NOTHING)

    def _render_failures(self) -> dict[str, bytes]:
        return self.text.render([Sample(_FAILURES, f'reason="{name}"', n) for name, n in self._failures.items()])


class GpuWorker:
    """Reads one device until it is retired. A call that hangs in the driver holds this thread only."""

    def __init__(
        self,
        record: GpuRecord,
        device: GpuDevice,
        *,
        interval: float,
        slow_interval: float,
        phase: float,
        families_off: frozenset[str],
        on_error: Callable[[str], None],
    ) -> None:
        self.cycle_started: float | None = None
        self.hang_counted = False
        self._record = record
        self._device = device
        self._interval = interval
        self._slow_interval = slow_interval
        self._phase = phase
        self._off = families_off
        self._on_error = on_error
        self._retired = False
        self._bell = Lock()  # an Event would make a lock and a condition at every wait
        self._bell.acquire()
        self._slow_due = 0.0
        self._processes_due = 0.0
        self._failed = 0
        self._fast_families: set[str] = set()
        self._fast_count = 0
        self._slow_samples: list[Sample] = []
        self._process_samples: list[Sample] = []
        self._processes: tuple[GpuProcess, ...] = record.snapshot.processes
        self._mig_uuids: tuple[str, ...] = record.snapshot.mig_uuids
        self.thread = Thread(target=self._run, name=f"gpu-{device.index}", daemon=True)

    def start(self) -> None:
        """Start the thread; the first cycle begins at once."""
        self.thread.start()

    def retire(self) -> None:
        """Let the thread end after its cycle; what it still brings is thrown away."""
        if not self._retired:
            self._retired = True
            self._bell.release()

    def _run(self) -> None:
        due = monotonic() + self._phase  # GPUs take turns, so that their threads do not fight for the interpreter
        first = True
        while not self._retired:
            self.cycle_started = monotonic()
            self.hang_counted = False
            try:
                self._cycle(self.cycle_started)
                self._failed = 0
                self._record.said.forget("reason")
            except GpuError as error:
                self._fail(gpu_code(error.reason))
            except Exception:
                if not self._failed:
                    _log.exception("GPU %d: collecting failed", self._device.index)
                self._fail("failed")
            self.cycle_started = None
            now = monotonic()
            if first and self._phase:
                first = False
            else:
                due += self._interval
            if due <= now:  # overran: skip what was missed instead of catching up
                due += self._interval * (1 + (now - due) // self._interval)
            pause = due - now
            if self._failed > 1:
                pause = max(pause, min(_LONGEST_PAUSE, self._interval * 2 ** min(self._failed - 1, 10)))
            self._bell.acquire(timeout=pause)

    def _cycle(self, now: float) -> None:
        slow = now >= self._slow_due
        samples = self._device.read(slow)
        if now >= self._processes_due and _PROCESSES not in self._off:
            self._read_processes()
            self._processes_due = now + _PROCESS_SECONDS
        if self._off:
            samples = [sample for sample in samples if sample.family not in self._off]
        merged = self._merge(samples, slow=slow)
        if slow:
            self._slow_due = now + self._slow_interval
            self._record.identity = [sample for sample in merged if sample[0] == INFO] or self._record.identity
        done = monotonic()
        merged.append(Sample(_DURATION, "", round(done - now, 6)))
        if self._retired:
            return
        old = self._record.snapshot
        # Neither rendered nor read out here: a page is asked for every 15 s, a cycle comes every second.
        self._record.snapshot = GpuSnapshot(
            old.index,
            old.uuid,
            old.name,
            old.pci_bus_id,
            done,
            True,
            "",
            merged,
            NOTHING,
            self._processes,
            self._mig_uuids,
        )

    def _merge(self, samples: Sequence[Sample], *, slow: bool) -> list[Sample]:
        """Return the samples with the slow families of the last slow cycle and the processes filled in.

        Slow are the families that come in slow cycles and in no other; a fast family that stops coming is gone at once.
        """
        if slow:
            fast = self._fast_families
            self._slow_samples = [sample for sample in samples if sample[0] not in fast]
            self._mig_uuids = tuple(
                found[1] for family, labels, _ in samples if family == _MIG_INFO and (found := _MIG_UUID.search(labels))
            )
            return [*samples, *self._process_samples]
        if len(samples) != self._fast_count:  # a new family changes the count
            self._fast_count = len(samples)
            self._fast_families |= {sample[0] for sample in samples}
            self._slow_samples = [sample for sample in self._slow_samples if sample[0] not in self._fast_families]
        return [*self._slow_samples, *samples, *self._process_samples]

    def _read_processes(self) -> None:
        try:
            self._processes = tuple(self._device.processes())
        except GpuError as error:
            if error.reason not in ("no_permission", "unsupported", "failed"):
                raise
            self._processes, self._process_samples = (), []
        else:
            self._process_samples = [Sample(_PROCESSES, "", len(self._processes))]

    def _fail(self, reason: GpuCode) -> None:
        self._failed += 1
        self._slow_due = self._processes_due = 0.0
        if self._retired:
            return
        if self._record.said.is_news("reason", reason):
            _log.warning("GPU %d (%s) cannot be read: %s", self._device.index, self._device.uuid, reason)
        self._record.count_failure(reason)
        self._record.down(reason)
        self._on_error(reason)

"""Counts of one GPU's XID events by code."""

from threading import Lock
from typing import Final

from ...vocabulary.xids import CRITICAL_XIDS
from ..pages.samples import Sample, label_pairs, render
from .reading import XidCount
from .types import XidEvent

_TOTAL: Final = "nvidia_gpu_xid_errors_total"
_LAST: Final = "nvidia_gpu_xid_last_timestamp_seconds"
_MAX_CODES = 64  # the driver knows fewer than 180 codes; a broken one must not fill the page
_OTHER = "other"


class XidCounts:
    """Critical codes exist at 0 from the start, so that `increase()` sees their first event."""

    def __init__(self, gpu_labels: str) -> None:
        self._gpu_labels = gpu_labels
        self._counts = {str(code): 0 for code in sorted(CRITICAL_XIDS)}
        self._last: dict[str, float] = {}
        self._lock = Lock()
        self._changed()

    def add(self, event: XidEvent) -> bool:
        """Count one event; return whether it is the first of its code."""
        with self._lock:
            code = str(event.code)
            if code not in self._counts and len(self._counts) >= _MAX_CODES:
                code = _OTHER
            self._counts[code] = self._counts.get(code, 0) + 1
            self._last[code] = event.timestamp
            self._changed()
            return self._counts[code] == 1

    def move(self, gpu_labels: str) -> None:
        """Write other labels from now on."""
        with self._lock:
            self._gpu_labels = gpu_labels
            self._changed()

    def _changed(self) -> None:
        own = [Sample(_TOTAL, label_pairs(xid=code), count) for code, count in self._counts.items()]
        own += [Sample(_LAST, label_pairs(xid=code), at) for code, at in self._last.items()]
        self.counts = tuple(
            XidCount(int(code), count, self._last.get(code)) for code, count in self._counts.items() if code != _OTHER
        )
        self.lines = render(Sample(family, f"{self._gpu_labels},{labels}", value) for family, labels, value in own)

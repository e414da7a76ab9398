"""What the plugin counts of its own work; read by metrics and by the log line of each minute."""

import threading
from collections import Counter
from typing import Final

SPANS_EMITTED: Final = "spans_emitted"  # accepted by the collector
SPANS_DROPPED: Final = "spans_dropped"  # queue full, or given up after retries
SPANS_FAILED: Final = "spans_failed"  # refused by the collector
EXPORT_FAILURES: Final = "export_failures"  # calls to the collector that failed
REQUESTS_DROPPED: Final = "requests_dropped"  # the queue between event loop and drain thread was full
SINK_FAILURES: Final = "sink_failures"
HOOK_FAILURES: Final = "hook_failures"  # a hook raised and was passed by
HOOK_FALLBACKS: Final = "hook_fallbacks"  # a hook does not fit this vLLM, so less is known
FORCED_SAMPLING_REFUSED: Final = "forced_sampling_refused"  # callers' sampled flags above the cap
AUDIT_FAILURES: Final = "audit_failures"


class Counters:
    """Counts by kind and detail; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str, number: int = 1, detail: str = "") -> None:
        """Count; `detail` is a word from a small fixed set, such as a hook's or sink's name."""
        with self._lock:
            self._counts[kind, detail] += number

    def total(self, kind: str) -> int:
        """Return the count of a kind over all details."""
        with self._lock:
            return sum(number for (name, _), number in self._counts.items() if name == kind)

    def snapshot(self) -> dict[tuple[str, str], int]:
        """Return all counts by (kind, detail)."""
        with self._lock:
            return dict(self._counts)

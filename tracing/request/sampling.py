"""Which requests' spans are kept: a decision when the request comes, and one when all is known of it."""

import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from ...settings.scalars import ConfigError
from ...settings.tracing import Keep, SamplingSettings
from .phases import time_to_first_token
from .records import Outcome, SequenceRecord
from .trace_context import Incoming, new_trace_id

_ERRORS: Final[frozenset[Outcome]] = frozenset({"client_error", "server_error", "rejected"})
_ABORTED: Final[frozenset[Outcome]] = frozenset({"aborted", "disconnected"})
_TRACEPARENT_LENGTH: Final = 55  # of version 00
_DASH: Final = ord("-")
_UNSAMPLED: Final = (ord("0"), ord("2"))  # last digit of the flags: none, or Level 2's word that the id is random
_LOW_BITS: Final = (1 << 64) - 1


class Head(NamedTuple):
    """The decision when the request comes.

    Attributes:
        trace_id: the caller's, or a new one.
        parent_span_id: the caller's span when its trace goes on, else 0.
        sampled: as far as can be said now.
        forced: the caller asked for it, and that was granted.
        link: (trace_id, span_id) of the caller when the trace was restarted.
    """

    trace_id: int
    parent_span_id: int
    sampled: bool
    forced: bool
    link: tuple[int, int] | None


def in_ratio(trace_id: int, ratio: float) -> bool:
    """Return whether a trace belongs to a share: OpenTelemetry's TraceIdRatioBased, on the lower 64 bits."""
    return (trace_id & _LOW_BITS) < _bound(ratio)


def _bound(ratio: float) -> int:
    return round(ratio * (1 << 64))


class Sampler:
    """OTEL_TRACES_SAMPLER's decision, the policy for callers' contexts, and the finish-time rule.

    Args:
        settings: of the `tracing.sampling` part.
        environ: for OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG, by OpenTelemetry's specification.
        clock: seconds, for the cap on forced traces.

    Attributes:
        heeds_callers: callers' contexts mean something.
        refused: callers' sampled flags above the cap.

    Raises:
        ConfigError: a variable names no sampler.
    """

    def __init__(
        self, settings: SamplingSettings, environ: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        name = environ.get("OTEL_TRACES_SAMPLER", "").strip() or "parentbased_always_on"
        self._parent_based = name.startswith("parentbased_")
        self._ratio = _ratio(name.removeprefix("parentbased_"), name, environ.get("OTEL_TRACES_SAMPLER_ARG", ""))
        self._bound = _bound(self._ratio)
        self._settings = settings
        self.heeds_callers = settings.incoming != "ignore"
        self._follows = self._parent_based and self.heeds_callers
        self._keep = settings.keep
        self._clock = clock
        self._allowance = settings.forced_per_second
        self._allowed_at = clock()
        self.refused = 0

    def says_no(self, traceparent: bytes) -> bool:
        """Return whether a caller's header alone says that nothing is kept, at a fraction of the cost of reading it."""
        return (
            self._follows
            and len(traceparent) == _TRACEPARENT_LENGTH
            and traceparent[54] in _UNSAMPLED
            and traceparent[52] == _DASH
        )

    def unasked(self) -> Head | None:
        """Decide when a request comes that no caller traces; None where nothing is kept."""
        trace_id = new_trace_id()
        return Head(trace_id, 0, True, False, None) if trace_id & _LOW_BITS < self._bound else None

    def begin(self, incoming: Incoming | None) -> Head:
        """Decide when a request comes; runs on the event loop."""
        policy = self._settings.incoming
        if incoming is None or policy == "ignore":
            trace_id = new_trace_id()
            return Head(trace_id, 0, in_ratio(trace_id, self._ratio), False, None)
        if policy == "restart":
            trace_id, parent, link = new_trace_id(), 0, (incoming.trace_id, incoming.span_id)
        else:
            trace_id, parent, link = incoming.trace_id, incoming.span_id, None
        if not self._parent_based:
            return Head(trace_id, parent, in_ratio(trace_id, self._ratio), False, link)
        forced = incoming.sampled and self._allows()
        sampled = forced or (incoming.sampled and in_ratio(trace_id, self._ratio))  # above the cap: as if unasked
        return Head(trace_id, parent, sampled, forced, link)

    def finish(
        self, head: Head, outcome: Outcome, e2e: float, sequences: tuple[SequenceRecord, ...]
    ) -> tuple[bool, str]:
        """Decide when all is known; returns whether to keep the spans, and why.

        Args:
            head: the first decision.
            outcome: of the request.
            e2e: seconds.
            sequences: of the request.
        """
        if head.forced:
            return True, "parent"
        if not self._keep:
            return head.sampled, "ratio" if head.sampled else ""
        for rule in self._keep:
            if _applies(rule, outcome, e2e, sequences):
                return True, rule.what
        if (head.parent_span_id or head.link) and not head.sampled:
            return False, ""  # the caller said no, and nothing happened that outweighs it
        return (True, "ratio") if in_ratio(head.trace_id, self._settings.rest) else (False, "")

    def _allows(self) -> bool:
        cap = self._settings.forced_per_second
        now = self._clock()
        self._allowance = min(max(cap, 1.0), self._allowance + (now - self._allowed_at) * cap)
        self._allowed_at = now
        if self._allowance < 1 or cap <= 0:
            self.refused += 1
            return False
        self._allowance -= 1
        return True


def _applies(rule: Keep, outcome: Outcome, e2e: float, sequences: tuple[SequenceRecord, ...]) -> bool:
    if rule.what == "errors":
        return outcome in _ERRORS or any(s.finish_reason == "error" for s in sequences)
    if rule.what == "aborted":
        return outcome in _ABORTED
    if rule.what == "preempted":
        return any(s.preemptions for s in sequences)
    assert rule.over is not None
    if rule.what == "e2e":
        return e2e > rule.over
    return any((seconds := time_to_first_token(s)) is not None and seconds > rule.over for s in sequences)


def _ratio(kind: str, name: str, argument: str) -> float:
    if kind == "always_on":
        return 1.0
    if kind == "always_off":
        return 0.0
    if kind == "traceidratio":
        try:
            ratio = float(argument or "1")
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            raise ConfigError(f"OTEL_TRACES_SAMPLER_ARG: expected a share from 0 to 1, found {argument!r}")
        return ratio
    raise ConfigError(
        "OTEL_TRACES_SAMPLER: expected always_on, always_off, traceidratio, parentbased_always_on, "
        f"parentbased_always_off or parentbased_traceidratio, found {name!r}"
    )

"""The phases of a sequence, from its timestamps: pure arithmetic that spans, log lines and histograms share."""

from typing import Final, NamedTuple

from .records import SequenceRecord

INGRESS: Final = "vllm.ingress"
QUEUE: Final = "vllm.queue"
PREFILL: Final = "vllm.prefill"
DECODE: Final = "vllm.decode"
PREEMPTED: Final = "vllm.preempted"
KV_TRANSFER: Final = "vllm.kv_transfer"
EGRESS: Final = "vllm.egress"


class Phase(NamedTuple):
    """A stretch of time of one sequence; begin and end in Unix seconds."""

    name: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """The phase's length."""
        return self.end - self.begin


def end_of(sequence: SequenceRecord) -> float:
    """Return where the sequence's span ends: at its last token; where it did not complete, when it was given up."""
    complete = sequence.last_token is not None and not sequence.error_type and sequence.finish_reason != "abort"
    end = sequence.last_token if complete and sequence.last_token is not None else sequence.finished
    return max(end, sequence.arrival)


_latest: tuple[SequenceRecord, tuple[Phase, ...]] | None = None  # line, histograms and spans ask one after the other


def phases(sequence: SequenceRecord) -> tuple[Phase, ...]:
    """Return ingress, queue, prefill and decode as far as they were reached, one behind the other.

    They begin at arrival and end where the sequence ends, so their lengths sum to its own. A phase that a sequence did
    not leave ends with it. Before the first token vLLM tells nothing, so a sequence that never got there has none.
    Clocks of two processes can disagree by some microseconds: a begin never lies before the previous one.
    """
    global _latest  # noqa: PLW0603
    latest = _latest
    if latest is not None and latest[0] is sequence:
        return latest[1]
    result = _phases(sequence)
    _latest = (sequence, result)
    return result


def _phases(sequence: SequenceRecord) -> tuple[Phase, ...]:
    if sequence.queued is None or sequence.scheduled is None or sequence.first_token is None:
        return ()
    begin, end = sequence.arrival, end_of(sequence)
    result: list[Phase] = []
    for name, mark in ((INGRESS, sequence.queued), (QUEUE, sequence.scheduled), (PREFILL, sequence.first_token)):
        then = begin if mark < begin else min(mark, end)
        result.append(Phase(name, begin, then))
        begin = then
    if sequence.output_tokens > 1 or begin < end:  # one token: nothing was decoded
        result.append(Phase(DECODE, begin, end))
    return tuple(result)


def time_to_first_token(sequence: SequenceRecord) -> float | None:
    """Return seconds from arrival to the first token."""
    return None if sequence.first_token is None else max(0.0, sequence.first_token - sequence.arrival)


def time_per_output_token(sequence: SequenceRecord) -> float | None:
    """Return seconds per token after the first: decode time / (output tokens - 1), as vLLM and OpenTelemetry do."""
    if sequence.first_token is None or sequence.last_token is None or sequence.output_tokens < 2:
        return None
    return max(0.0, sequence.last_token - sequence.first_token) / (sequence.output_tokens - 1)


def preempted_seconds(sequence: SequenceRecord) -> float:
    """Return the time that the sequence lay preempted."""
    return sum(resumed - preempted for preempted, resumed in sequence.preemptions)

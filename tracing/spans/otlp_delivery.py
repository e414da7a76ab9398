"""What came of one call to a collector: the words that HTTP and gRPC senders answer in."""

from typing import Literal, NamedTuple, Protocol


class Delivery(NamedTuple):
    """The end of one call.

    Attributes:
        end: `accepted`; `retry` where the specification allows another try; `refused` where it does not.
        rejected: spans that an accepting collector did not take.
        retry_after: seconds that the collector asks us to wait, None when it does not say.
        reason: for people, without secrets.
    """

    end: Literal["accepted", "retry", "refused"]
    rejected: int = 0
    retry_after: float | None = None
    reason: str = ""


class Sender(Protocol):
    """Sends requests one after the other, from one thread."""

    def send(self, data: bytes, timeout: float) -> Delivery:
        """Send an encoded ExportTraceServiceRequest; returns within about the timeout, in seconds."""

    def cut(self) -> None:
        """End the call that is under way; from any thread."""

    def close(self) -> None:
        """Let go of connections."""

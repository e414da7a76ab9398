"""The contract between the drain thread and what reports requests."""

from typing import Protocol

from .request.records import RequestRecord


class Sink(Protocol):
    """Takes finished requests on the drain thread; a sink that raises is counted, logged once and called again."""

    name: str

    def take(self, request: RequestRecord) -> None:
        """Report a request; must not wait for a network or a lock that somebody holds for long."""

    def idle(self) -> None:
        """Do what is due; called at least once a second."""

    def close(self, deadline: float) -> None:
        """Bring out what is left before a `time.monotonic()` deadline."""

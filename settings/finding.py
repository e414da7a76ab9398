"""One thing that a doctor looked at."""

from typing import Final, Literal, NamedTuple

Status = Literal["ok", "note", "problem"]
_MARKS: Final = {"ok": "[ok]", "note": "[--]", "problem": "[!!]"}


class Finding(NamedTuple):
    """One thing looked at; `advice` says what to do next."""

    status: Status
    what: str
    found: str
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is broken; a note is fine."""
        return self.status != "problem"

    @property
    def mark(self) -> str:
        """The mark in front of the line."""
        return _MARKS[self.status]

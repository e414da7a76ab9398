"""What was said already: one log line per change, not one per attempt."""

from collections.abc import Hashable
from typing import Final

_MOST_SUBJECTS: Final = 100  # a log line with a counter in it must not fill the memory


class LogOnce:
    """Remembers what was said of each subject; any thread may ask, at worst a line is written twice."""

    def __init__(self) -> None:
        self._said: dict[Hashable, Hashable] = {}

    def is_news(self, subject: Hashable, state: Hashable = True) -> bool:
        """Tell whether this is the first time, or another state than last time; the caller then says it.

        Args:
            subject: what the line is about, or the line itself. Of the hundred and first nothing is news.
            state: what it says of the subject, such as a reason.
        """
        if subject not in self._said and len(self._said) >= _MOST_SUBJECTS:
            return False
        if self._said.get(subject) == state:
            return False
        self._said[subject] = state
        return True

    def forget(self, subject: Hashable) -> bool:
        """Take it that all is well: the next trouble is news again. Tells whether there was trouble."""
        return self._said.pop(subject, None) is not None

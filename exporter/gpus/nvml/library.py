"""The loaded NVML library as plain functions, for calls that are made every second.

pynvml's own wrappers build structs and raise exceptions in every call; with prepared arguments a call costs a third.
"""

from collections.abc import Callable
from typing import Any


class NvmlLibrary:
    """Hands out functions that return NVML's code."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def function(self, *names: str) -> Callable[..., int] | None:
        """Return the first of these symbols that the library has.

        Indexing makes an own function object, so that nothing here can change how pynvml calls the same symbol.
        """
        for name in names:
            try:
                function: Callable[..., int] = self._library[name]
            except AttributeError:
                continue
            return function
        return None

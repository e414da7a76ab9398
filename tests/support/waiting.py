"""Waiting for conditions, never for time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = 20.0, pause: float = 0.05) -> T:
    """Return the first true value of a condition; it may raise OSError or AssertionError until it is ready."""
    deadline = time.monotonic() + seconds
    problem: Exception | None = None
    while True:
        try:
            if value := condition():
                return value
        except (OSError, AssertionError, KeyError, IndexError) as error:
            problem = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds:.0f} s: {problem!r}")
        time.sleep(pause)

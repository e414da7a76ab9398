"""Lines for whoever started us, on a terminal or pipe that may be gone by now."""

import contextlib
import os
import sys
from typing import TextIO


def say(line: str) -> None:
    """Print a line at once. A terminal that is gone is no reason to stop watching, nor to stop in disorder."""
    try:
        print(line, flush=True)
    except OSError:
        _silence(sys.stdout)


def settle() -> None:
    """Flush what was printed; what cannot be is dropped, so that Python's own flush at the end does not fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _silence(stream)


def _silence(stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # no file behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

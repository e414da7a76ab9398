"""Standard output and standard error at their end: a reader that has gone is no fault, words that are lost are one.

Python says neither well: a pipe whose reader has gone ends in "Exception ignored ..." and exit code 120 when the
interpreter flushes what is left, and a full disk looks like an OSError of whatever file was being written.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Final, TextIO

READER_GONE: Final = 141  # 128 + SIGPIPE, as any program in a shell's pipeline ends
_FAILED: Final = 1


class OutputError(Exception):
    """Standard output takes nothing any more; no OSError, so that nobody blames another file for it."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"standard output: cannot be written: {cause.strerror}")
        self.cause = cause

    @property
    def exit_code(self) -> int:
        """141 where the reader has gone, as after `| head`; 1 where what we say is lost (a full disk)."""
        return READER_GONE if self.cause.errno == errno.EPIPE else _FAILED


def with_standard_output(run: Callable[[], int]) -> int:
    """Run a command, bring out all that it printed, and return its exit code.

    A reader of standard output that has gone ends it quietly with 141. Anything else that keeps words from standard
    output is said on standard error, with exit code 1. Whether standard error is read changes nothing.
    """
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Guarded(out), _Unheard(err)
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except OutputError as error:
        if error.exit_code != READER_GONE:
            print(f"vllm-vitals: {error}", file=sys.stderr)
        _leave(out)
        return error.exit_code
    finally:
        sys.stdout, sys.stderr = out, err
        try:
            if err is not None:  # None: started with `2>&-`
                err.flush()
        except OSError:
            _leave(err)


def say(line: str) -> None:
    """Print a line at once, for what runs until it is told to stop.

    A terminal or a reader that is gone is no reason to stop watching, nor to stop in disorder: from then on nothing is
    printed. A disk that is full is said once on standard error.
    """
    try:
        print(line, flush=True)
    except OutputError as error:
        if error.cause.errno not in {errno.EPIPE, errno.EIO}:  # the latter: a terminal that was closed
            print(f"vllm-vitals: {error}", file=sys.stderr)
        _leave(sys.stdout)


class _Stream(io.TextIOBase):
    """What both have in common; the stream is None where the descriptor was closed before the start."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):  # a name that the character set of the terminal lacks is no crash
            stream.reconfigure(errors="backslashreplace")

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()


class _Guarded(_Stream):
    """Standard output, whose errors are OutputError."""

    def write(self, text: str, /) -> int:
        if self._stream is None:
            raise OutputError(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputError(error) from error

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            raise OutputError(error) from error


class _Unheard(_Stream):
    """Standard error, which has no errors: nobody is left to tell."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.flush()


def _leave(stream: TextIO | None) -> None:
    """Let what is left in a stream go nowhere: the interpreter flushes it once more as it ends, and would complain."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor, as in tests
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

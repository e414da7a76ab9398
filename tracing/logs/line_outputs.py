"""Where our log lines go in this process, in words that the child of `export: process` can follow.

The child writes a line itself where it comes out as the parent would have written it: by our formatter, to the standard
output or error that both share. Where somebody configured logging in another way (files, other formats, handlers of
their own), the child hands its records back.
"""

import logging
import multiprocessing
import os
import sys
from typing import Any, Final, NamedTuple

from .context import IdFilter
from .formatter import VitalsJsonFormatter

_OURS: Final = "vllm_vitals"
_STANDARD: Final = {1: "stdout", 2: "stderr"}


class Output(NamedTuple):
    """A handler: 1 or 2 for standard output or error, its level, and its formatter's arguments."""

    descriptor: int
    level: int
    arguments: dict[str, Any]


class Outputs(NamedTuple):
    """Where the lines of a logger go.

    Attributes:
        level: from which on there are any.
        direct: handlers that another process can have, too; None where there are others.
        process: number and name of the process whose lines they are.
    """

    level: int
    direct: tuple[Output, ...] | None
    process: tuple[int, str]


def outputs_of(name: str) -> Outputs:
    """Return where the lines of a logger go now."""
    logger = logging.getLogger(name)
    level = max(logger.getEffectiveLevel(), logging.root.manager.disable + 1)
    found: list[Output | None] = [None] if logger.filters or logger.disabled else []
    at: logging.Logger | None = logger
    while at is not None:
        found += [_output(handler) for handler in at.handlers if not getattr(handler, "only_watches", False)]
        at = at.parent if at.propagate else None
    direct = [output for output in found if output is not None]
    process = (os.getpid(), multiprocessing.current_process().name)
    return Outputs(level, tuple(direct) if direct and len(direct) == len(found) else None, process)


def follow(outputs: Outputs, otherwise: logging.Handler) -> None:
    """Have this process's lines of ours go where another one's do, all of them to a handler where that cannot be."""
    handlers = [_handler(output) for output in outputs.direct or ()] or [otherwise]
    pid, name = outputs.process

    def as_the_others(record: logging.LogRecord) -> bool:
        record.process, record.processName = pid, name
        return True

    for handler in handlers:
        handler.filters[:] = [as_the_others]
    logger = logging.getLogger(_OURS)
    logger.handlers[:] = handlers
    logger.propagate = False
    logger.setLevel(outputs.level)


def _output(handler: logging.Handler) -> Output | None:
    """Return what makes a handler, None for one that cannot be made elsewhere."""
    formatter = handler.formatter
    if type(handler) is not logging.StreamHandler or type(formatter) is not VitalsJsonFormatter:
        return None
    if any(type(each) is not IdFilter for each in handler.filters):
        return None
    try:
        descriptor = handler.stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return Output(descriptor, handler.level, formatter.arguments) if descriptor in _STANDARD else None


def _handler(output: Output) -> logging.Handler:
    handler = logging.StreamHandler(getattr(sys, _STANDARD[output.descriptor]))
    handler.setLevel(output.level)
    handler.setFormatter(VitalsJsonFormatter(**output.arguments))
    return handler

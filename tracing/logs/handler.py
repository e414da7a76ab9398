"""The handler that our own loggers get where nobody configured logging for them: JSON lines on stdout."""

import logging
import sys

from ..fatal.watch import has_output
from .context import IdFilter
from .formatter import Names, VitalsJsonFormatter

_OURS = "vllm_vitals"


def install_default_handler(names: Names = "ecs") -> bool:
    """Send our loggers' lines of INFO and above to stdout unless a handler takes them; returns whether one was added.

    vLLM configures its own logger only. Where root has a handler, its level WARNING was not meant for our lines.
    """
    logger = logging.getLogger(_OURS)
    if logger.level == logging.NOTSET and not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    if has_output(logger):
        return False
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(VitalsJsonFormatter(names=names))
    handler.addFilter(IdFilter())
    logger.addHandler(handler)
    logger.propagate = False
    return True

"""vLLM's entry point of old: a function that vLLM calls in every one of its processes, perhaps more than once."""

import logging
import os
from typing import Final

_log: Final = logging.getLogger("vllm_vitals.tracing")
_STAT_LOGGERS_SINCE: Final = (0, 11, 1)


def register() -> None:
    """Watch the log for what ends engines; on vLLM 0.10.2 to 0.11.0 put the hooks on, too."""
    try:
        from . import start, switches  # noqa: PLC0415  a failed import must not reach vLLM

        if switches.switched_off(os.environ):
            return
        start.watch_for_fatal_errors()
        if start.vllm_version() < _STAT_LOGGERS_SINCE:
            start.at_first_request()
    except Exception:
        _log.exception("tracing stays off: it could not be started")

"""vLLM's entry point, one class: vLLM makes one in each API server, after its tracer and before the first request.

The class is a stat logger because that is where vLLM lets us in (group `vllm.stat_logger_plugins`, 0.11.1 and newer),
and because its presence keeps statistics on, without which vLLM's tracing ends the server.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from vllm.v1.metrics.loggers import AggregateStatLoggerBase  # the group exists since this class does

from . import start

_log: Final = logging.getLogger("vllm_vitals.tracing")


def _nothing(*_: Any, **__: Any) -> None:
    """Stand in for methods of a base class that a later vLLM may add."""


# A class with an abstract method left open cannot be made, and vLLM would not start.
_open: dict[str, Callable[..., None]] = dict.fromkeys(
    getattr(AggregateStatLoggerBase, "__abstractmethods__", ()), _nothing
)


class VitalsStatLogger(type("_Base", (AggregateStatLoggerBase,), _open)):  # type: ignore[misc]
    """Starts the plugin; later tells which engine a step came from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._live: Any = None
        try:
            config = args[0] if args else kwargs["vllm_config"]
            indexes = args[1] if len(args) > 1 else kwargs.get("engine_indexes", [0])
            self._live = start.in_api_server(config, [*indexes])
        except Exception:
            _log.exception("tracing stays off: it could not be started")

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Note the engine's index on the statistics of a step, where the sequences that finished in it find it."""
        live = self._live
        if live is None:
            return
        try:
            iteration = kwargs["iteration_stats"] if "iteration_stats" in kwargs else args[1]
            engine_index = kwargs["engine_idx"] if "engine_idx" in kwargs else args[-1] if len(args) > 2 else 0
            if iteration is not None:
                for timeline in getattr(iteration, "vllm_vitals", ()):
                    timeline.engine_index = engine_index
                if live.by_request_id is not None and not live.waits_for_native:
                    start.unhooked(live, iteration, engine_index)
        except Exception as error:
            live.hook_failed("StatLogger.record", error)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

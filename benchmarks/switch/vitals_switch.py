"""A vLLM plugin for benchmarks: switches tracing off and on inside a running API server, ours and vLLM's own.

It obeys lines `off` and `on` from the FIFO that VITALS_SWITCH names and says by a file beside it what it did last. So
one process is compared with itself: two servers differ by some percent for reasons of their own.
"""

import os
import threading
from pathlib import Path


def register() -> None:
    """Run in every process of vLLM; only an API server makes an OutputProcessor."""
    from vllm.v1.engine.output_processor import OutputProcessor  # noqa: PLC0415  of the environment that we are put in

    original = OutputProcessor.__init__

    def init(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        OutputProcessor.__init__ = original
        threading.Thread(target=obey, args=(self,), name="switch", daemon=True).start()

    OutputProcessor.__init__ = init


def obey(processor) -> None:
    """Do what the FIFO says; every line arrives while no request is under way."""
    fifo = Path(os.environ["VITALS_SWITCH"])
    live = None
    while True:
        for line in fifo.read_text().split():
            if hasattr(processor, "had_tracing") or processor.tracing_enabled:
                processor.had_tracing = True
                processor.tracing_enabled = line == "on"
            live = switch_plugin(live, on=line == "on")
            fifo.with_suffix(".done").write_text(line)


def switch_plugin(live, *, on: bool):
    """Put our plugin on or take it off; returns it, None where there is none."""
    try:
        from vllm_vitals.tracing import plugin  # noqa: PLC0415
        from vllm_vitals.tracing.hooks import vllm_methods as hooks  # noqa: PLC0415
        from vllm_vitals.tracing.report import runtime  # noqa: PLC0415
    except ImportError:
        return None
    live = live or runtime.running
    if live is not None:
        kind = plugin.VitalsStatLogger
        kind.vitals_record = getattr(kind, "vitals_record", kind.record)
        hooks.remove()
        if on:
            hooks.install(live)
        runtime.running = live if on else None
        kind.record = kind.vitals_record if on else nothing
    return live


def nothing(*_args, **_kwargs) -> None:
    """Stand in for what is switched off."""

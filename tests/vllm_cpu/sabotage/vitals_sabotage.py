"""A vLLM plugin for tests: makes one method of vLLM look different, and one of our hooks fail on every call."""

import sys


def register() -> None:
    """Run in every process of vLLM; only an API server has the modules that matter."""
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm_vitals.tracing.timeline import Timeline

    original = OutputProcessor.abort_requests

    def abort_requests(self, whichever, internal=False):
        return original(self, whichever, internal)

    def finish(self, *_args, **_kwargs):
        raise RuntimeError("sabotage")

    OutputProcessor.abort_requests = abort_requests
    Timeline.finish = finish
    print("sabotaged", file=sys.stderr)

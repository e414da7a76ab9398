"""A vLLM plugin for tests: what VITALS_SABOTAGE names is made to look different, or to fail on every call."""

import os
import sys


def register() -> None:
    """Run in every process of vLLM; only an API server uses what is changed."""
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm_vitals.tracing.timeline import Timeline

    wanted = os.environ.get("VITALS_SABOTAGE", "").split(",")
    original_abort, original_add = OutputProcessor.abort_requests, OutputProcessor.add_request

    def abort_requests(self, whichever, internal=False):
        return original_abort(self, whichever, internal)

    def add_request(self, the_request, prompt, parent_req=None, request_index=0, queue=None):
        return original_add(self, the_request, prompt, parent_req, request_index, queue)

    def finish(self, *_args, **_kwargs):
        raise RuntimeError("sabotage")

    if "abort_requests" in wanted:
        OutputProcessor.abort_requests = abort_requests
    if "add_request" in wanted:
        OutputProcessor.add_request = add_request
    if "finish" in wanted:
        Timeline.finish = finish
    print("sabotaged", *wanted, file=sys.stderr)

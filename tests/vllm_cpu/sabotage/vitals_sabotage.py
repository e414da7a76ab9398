"""A vLLM plugin for tests: what VITALS_SABOTAGE names looks different, fails on every call, or stands still.

`hold`: while the file VITALS_HOLD exists, the engine makes no step as soon as a request has three tokens.
"""

import os
import sys
import time
from pathlib import Path


def register() -> None:
    """Run in every process of vLLM; only an API server uses what is changed."""
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm_vitals.tracing.request.in_flight import Timeline

    wanted = os.environ.get("VITALS_SABOTAGE", "").split(",")
    original_abort, original_add = OutputProcessor.abort_requests, OutputProcessor.add_request

    def abort_requests(self, whichever, internal=False):
        return original_abort(self, whichever, internal)

    def add_request(self, the_request, prompt, parent_req=None, request_index=0, queue=None):
        return original_add(self, the_request, prompt, parent_req, request_index, queue)

    def finish(self, *_args, **_kwargs):
        raise RuntimeError("sabotage")

    if "hold" in wanted:
        _hold(Path(os.environ["VITALS_HOLD"]))
    if "abort_requests" in wanted:
        OutputProcessor.abort_requests = abort_requests
    if "add_request" in wanted:
        OutputProcessor.add_request = add_request
    if "finish" in wanted:
        Timeline.finish = finish
    print("sabotaged", *wanted, file=sys.stderr)


def _hold(file: Path) -> None:
    from vllm.v1.engine.core import EngineCore

    def held(step):
        def step_or_wait(self):
            while file.exists() and any(request.num_output_tokens >= 3 for request in self.scheduler.requests.values()):
                time.sleep(0.01)
            return step(self)

        return step_or_wait

    EngineCore.step = held(EngineCore.step)
    EngineCore.step_with_batch_queue = held(EngineCore.step_with_batch_queue)

"""A real vLLM with the plugin in its environment, installed there by pip."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .vllm_server import VllmServer

MIDDLEWARE = "vllm_vitals.tracing.middleware.Vitals"
REPOSITORY = Path(__file__).parents[2]


ENVIRONMENT = REPOSITORY / ".venv/vllm"  # vLLM's, with the plugin; `./vitals test` makes it


class TracedVllm(VllmServer):
    """`vllm serve` as an operator starts it with the plugin installed.

    Args:
        cache: where vLLM and the model are.
        arguments: more flags.
        environment: more variables.
        middleware: give the flag that the doctor prints.
    """

    def __init__(
        self, cache: Path, *arguments: str, environment: Mapping[str, str] | None = None, middleware: bool = True
    ):
        flags = ("--middleware", MIDDLEWARE) if middleware else ()
        super().__init__(cache, *flags, *arguments, vllm=ENVIRONMENT / "bin/vllm", environment=environment)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON lines of the output."""
        for line in self.output.splitlines():
            if line.startswith("{"):
                yield json.loads(line)

    def request_lines(self) -> list[dict[str, Any]]:
        """Return the one line of each request."""
        return [line for line in self.lines() if line.get("log.logger") == "vllm_vitals.request"]

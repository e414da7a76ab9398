"""`vllm-vitals up` as tests run it: with real companions, and on a terminal where signals matter."""

import contextlib
import os
import pty
import re
import select
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from .http import free_port
from .programs import VITALS, Exporter
from .waiting import wait_for


def url_of(up: Any, name: str) -> str:
    """Return the URL that `up` printed for a companion."""
    return re.search(rf"^{name} +(http://\S+)/\r?$", up.output, re.MULTILINE)[1]


def started(up: Any) -> None:
    """Wait until `up` has started everything."""
    wait_for(lambda: "Ctrl-C stops" in up.output, "the end of the start", seconds=60)


def companions(up: Any) -> dict[str, psutil.Process]:
    """Return the companions of `up` that run, by name."""
    children = psutil.Process(up.process.pid).children()
    return {"prometheus" if child.name() == "prometheus" else "alertmanager": child for child in children}


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
        self._master, slave = pty.openpty()
        self.port = free_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_VITALS_")}

        def lead() -> None:
            os.setsid()
            os.close(os.open(os.ttyname(0), os.O_RDWR))  # the first terminal that a session's leader opens is its own
            if before is not None:
                before()

        command = [str(each) for each in (VITALS, *arguments, "--listen", f"127.0.0.1:{self.port}")]
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=log.parent,
            preexec_fn=lead,  # noqa: PLW1509  our reader's thread starts later
        )
        os.close(slave)
        self._log = log
        log.touch()
        self._open = True
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def close(self) -> None:
        """Close the window: a program in the foreground gets SIGHUP, and whatever it writes fails."""
        if self._open:
            self._open = False
            self._reader.join()
            os.close(self._master)

    def stop(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.terminate()
            self.process.wait(30)
        self.process.kill()
        self.process.wait(10)
        self.close()

    def _read(self) -> None:
        with self._log.open("ab", buffering=0) as log, contextlib.suppress(OSError):
            while self._open:  # never blocked in read: closing would not be seen on the other side
                if select.select([self._master], [], [], 0.05)[0]:
                    log.write(os.read(self._master, 4096))


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Start a command on a terminal of its own."""
    opened: list[Terminal] = []

    def run(*arguments: object, before: Callable[[], None] | None = None) -> Terminal:
        opened.append(Terminal(*arguments, log=tmp_path / f"terminal{len(opened)}.log", before=before))
        return opened[-1]

    yield run
    for each in opened:
        each.stop()
    end_companions_of(tmp_path)

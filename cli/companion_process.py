"""One program beside the sidecar: started, watched, started again when it dies, and stopped."""

import asyncio
import contextlib
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from ..runtime.exchange import exchange

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.2
_PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new start; then we give up
_SETTLED_SECONDS: Final = 60.0  # who ran as long has all its starts again
_LOG_TAIL_BYTES: Final = 16 * 1024
_LONGEST_WORDS: Final = 300
_CAUSE: Final = re.compile(r"^panic: |\blevel=(error|ERROR)\b|\berr=")
_ANSWER_SECONDS: Final = 2.0
_ANSWER_BYTES: Final = 16 << 20


class Command(NamedTuple):
    """A program, its arguments, and where it will answer, as HOST:PORT."""

    name: str
    program: str
    arguments: tuple[str, ...]
    address: str


class CompanionProcess:
    """A child process that serves HTTP.

    Args:
        command: what is started, always on the same port.
        log: a file for what it says; begun anew here, appended to when it is started again.
        environment: its environment.
        say: told a line when it dies and when it runs again.
    """

    def __init__(self, command: Command, log: Path, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.url = f"http://{command.address}"
        self._command = command
        self._log = log
        self._log_start = 0  # where in the log the present process begins
        self._environment = environment
        self._line = say
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start it and wait until it answers or has had its time; returns why it ended, empty where it runs."""
        try:
            process = await self._spawn()
        except OSError as error:
            return f"{error.strerror or error}"
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while process.returncode is None and asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(fetch, f"{self.url}/-/ready")
                if _listens(process.pid, self._command.address):  # else somebody else was quicker to take the port
                    return ""
            await asyncio.sleep(_POLL_SECONDS)
        if process.returncode is None:
            self._say(f"is still starting after {_START_SECONDS:.0f} s: see {self._log}")
            return ""
        return f"{_how(process.returncode)}{self.last_words()}"

    def watch(self) -> None:
        """Start it again, from now on, when it dies."""
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End it; it has some seconds to do so in order."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait((self._watcher,))
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def output(self) -> str:
        """Return the end of what the present process wrote."""
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self._log_start, size - _LOG_TAIL_BYTES))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def last_words(self) -> str:
        """Return the line that says why it ended, else its last one, as the end of a sentence; empty for nothing."""
        lines = [line for line in self.output().splitlines() if line.strip()]
        causes = [line for line in lines if _CAUSE.search(line)]  # what follows a panic is where, not why
        words = "".join(letter if letter.isprintable() else " " for letter in "".join((causes or lines)[-1:]))
        return f": {words[-_LONGEST_WORDS:].strip()}" if words else ""

    def _say(self, text: str) -> None:
        self._line(f"{self._command.name:<13} {text}")

    async def _spawn(self) -> asyncio.subprocess.Process:
        with self._log.open("wb" if self._process is None else "ab") as stream:
            self._log_start = stream.tell()
            self._process = await asyncio.create_subprocess_exec(
                self._command.program,
                *self._command.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=dict(self._environment),
                start_new_session=True,  # Ctrl-C is ours to handle: the exporter goes last
            )
        return self._process

    async def _watch(self) -> None:
        ended = await self._end()
        tries = 0
        while tries < len(_PAUSES):
            self._say(f"{ended}. Starting it again in {_PAUSES[tries]:.0f} s")
            await asyncio.sleep(_PAUSES[tries])
            tries += 1
            if why := await self.start():
                ended = f"did not start: {why}"
                continue
            self._say(f"runs again: {self.url}/")
            since = asyncio.get_running_loop().time()
            ended = await self._end()
            if asyncio.get_running_loop().time() - since >= _SETTLED_SECONDS:
                tries = 0
        self._say(
            f"{ended}. Given up after {len(_PAUSES)} new starts: there are no alerts until you start `up` again "
            f"(see {self._log})"
        )

    async def _end(self) -> str:
        assert self._process is not None
        code = await self._process.wait()
        return f"{_how(code)}{self.last_words()}"


def fetch(url: str) -> bytes:
    """Return what a companion answers within two seconds; raises OSError."""
    answer = exchange(url, deadline=_ANSWER_SECONDS, limit=_ANSWER_BYTES)
    if not 200 <= answer.status < 300:
        raise OSError(f"HTTP {answer.status} {answer.reason}")
    return answer.body


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _listens(pid: int, address: str) -> bool:
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.AccessDenied:
        return True  # it does not let itself be looked at: the answer must do
    except psutil.Error:
        return False
    port = int(address.rpartition(":")[2])
    return any(each.laddr and each.laddr.port == port and each.status == psutil.CONN_LISTEN for each in found)

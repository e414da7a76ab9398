"""A thread that does one thing again and again until it is stopped: started once, woken, guarded, ended in time."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from .log_once import LogOnce

log = logging.getLogger("vllm_vitals")

_LEAST_PAUSE: Final = 0.1  # seconds; a round that overruns must not take a core


class Background:
    """Rounds of some work in a daemon thread: what hangs in it holds nobody.

    Args:
        name: of the thread.
        work: one round; returns the seconds until the next, or None for `interval` after the start of this one.
        interval: seconds from one round to the next.
        on_error: told what a round raised; the rounds go on. None logs it, once per trouble.
        at_once: whether the first round waits for neither `wake` nor the interval.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], float | None],
        interval: float,
        *,
        on_error: Callable[[Exception], None] | None = None,
        at_once: bool = True,
    ) -> None:
        self._name = name
        self._work = work
        self._interval = interval
        self._on_error = on_error
        self._at_once = at_once
        self._said = LogOnce()
        self._wake = threading.Event()
        self._stopping = False  # written by `stop`
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; nothing to do when it runs already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Begin the next round now, or one more after that which is under way."""
        self._wake.set()

    def stop(self, patience: float = 2.0) -> None:
        """End after the round that is under way, waiting for it at most `patience` seconds; any state will do."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(patience)

    def _run(self) -> None:
        pause = 0.0 if self._at_once else self._interval
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._stopping:  # set before the wake that we may just have cleared
                return
            pause = self._round()

    def _round(self) -> float:
        started = time.monotonic()
        told: float | None = None
        try:
            told = self._work()
            self._said.forget("round")
        except Exception as error:  # whatever comes must not end the rounds
            if self._on_error is not None:
                self._on_error(error)
            elif self._said.is_news("round", repr(error)):
                log.exception("%s failed, and goes on", self._name)
        left = self._interval - (time.monotonic() - started)
        return max(_LEAST_PAUSE, left if told is None else told)

"""When to stop: Ctrl-C, SIGTERM, and a terminal that is closed."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def until_stopped(work: Coroutine[Any, Any, None], farewell: Callable[[], object]) -> None:
    """Do the work until it is done or a signal comes; then let it end in good order.

    The first signal calls the farewell and cancels the work wherever it is, while it starts, too. Later ones change
    nothing: an orderly end that is interrupted leaves programs behind.

    Args:
        work: what ends, such as by `forever`, only when it is cancelled.
        farewell: says that we are stopping.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # nohup: who has SIGHUP ignored wants us to outlive the terminal
    numbers = [each for each in _SIGNALS if each != signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        farewell()
        working.cancel()
    try:
        await working
    except asyncio.CancelledError:
        pass
    finally:
        if stop.is_set():
            _ignore(loop, numbers)


async def forever() -> None:
    """Wait to be cancelled. Not for the signals themselves: the cancellation would then hit what cleans up."""
    await asyncio.Event().wait()


def _ignore(loop: asyncio.AbstractEventLoop, numbers: list[signal.Signals]) -> None:
    """Ignore these from now on: the loop would give back handlers that end the interpreter with a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

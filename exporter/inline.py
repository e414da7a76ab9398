"""Work on bytes beside the event loop: at once where there are few, in a thread where the loop would miss deadlines."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

Result = TypeVar("Result")

# What the loop may take upon itself, in bytes: some milliseconds of each kind of work.
RELABELLING: Final = 1 << 18
JOINING: Final = 1 << 20
PACKING: Final = 1 << 20


async def inline_or_thread(size: int, at_most: int, work: Callable[[], Result]) -> Result:
    """Return what the work returns; done in a thread when it has more than `at_most` bytes before it."""
    return await asyncio.to_thread(work) if size > at_most else work()

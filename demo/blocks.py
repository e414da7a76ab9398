"""The KV cache of one engine: blocks in use, and finished blocks kept for the prefix cache until the room is needed.

A block of the prefix cache is known by its place in one of two streams: a shared prefix (a system prompt, identical
for many) or a session (one conversation, followed by one sequence at a time). So a stream's blocks are a run from its
start, a run is one number, and acquiring thousands of blocks costs a few additions instead of a hash per block.
"""

from collections import OrderedDict
from typing import NamedTuple


class Chain(NamedTuple):
    """Where the tokens of a sequence come from.

    Attributes:
        prefix: name of the shared prefix; empty for none.
        prefix_blocks: its whole blocks.
        session: number of the conversation.
    """

    prefix: str
    prefix_blocks: int
    session: int


class BlockPool:
    """A fixed number of blocks.

    Attributes:
        capacity: blocks in all.
        used: blocks that a running sequence refers to; shared ones count once.
        idle: blocks that nobody refers to, still valid for a prefix hit.
    """

    __slots__ = ("_references", "_runs", "capacity", "idle", "used")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.idle = 0
        self._references: dict[str, int] = {}  # sequences per shared prefix
        self._runs: OrderedDict[str | int, int] = OrderedDict()  # idle blocks by stream, least recently used first

    @property
    def available(self) -> int:
        """Return the blocks that a sequence could get now; idle ones are among them."""
        return self.capacity - self.used

    def acquire(self, chain: Chain, total_blocks: int, most_hits: int) -> int | None:
        """Take `total_blocks` for a sequence; return how many held its tokens already, None when there is no room.

        At most `most_hits` count as hits: the last token of a prompt is always computed, to get its logits.
        """
        references = self._references.get(chain.prefix, 0)
        needed = total_blocks - (chain.prefix_blocks if references else 0)
        if needed > self.available:
            return None
        if references:
            hits = chain.prefix_blocks
        else:
            hits = self._runs.pop(chain.prefix, 0)
            self.idle -= hits
        session_run = self._runs.pop(chain.session, 0)
        self.idle -= session_run
        if hits == chain.prefix_blocks:  # the chain of hashes breaks at the first block that is gone
            hits += session_run
        if chain.prefix_blocks:
            self._references[chain.prefix] = references + 1
        self.used += needed
        self._evict()
        return min(hits, most_hits)

    def grow(self, blocks: int) -> None:
        """Take blocks for tokens about to be generated; the caller has checked `available`."""
        self.used += blocks
        self._evict()

    def release(self, chain: Chain, total_blocks: int, full_blocks: int) -> None:
        """Give a sequence's blocks back; the first `full_blocks` of them stay valid for hits."""
        self.used -= total_blocks - chain.prefix_blocks
        kept = full_blocks - chain.prefix_blocks
        if kept > 0:
            self._runs[chain.session] = kept
            self.idle += kept
        if not chain.prefix_blocks:
            return
        references = self._references[chain.prefix] - 1
        if references:
            self._references[chain.prefix] = references
            return
        del self._references[chain.prefix]
        self.used -= chain.prefix_blocks
        computed = min(full_blocks, chain.prefix_blocks)
        if computed:
            self._runs[chain.prefix] = computed
            self.idle += computed

    def _evict(self) -> None:
        """Drop idle blocks, oldest stream first and from its end, until all fits."""
        excess = self.used + self.idle - self.capacity
        while excess > 0:
            stream, run = next(iter(self._runs.items()))
            if run > excess:
                self._runs[stream] = run - excess
                self.idle -= excess
                return
            del self._runs[stream]
            self.idle -= run
            excess -= run

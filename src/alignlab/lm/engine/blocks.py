"""Which block of the cache belongs to whom: reference counts, blocks found again by what they hold, LRU eviction.

A block is a piece of the key-value cache for `block_size` tokens. A full block never changes again, so requests that
begin alike can use it together: it is found by a hash over its tokens and all tokens before them (as in vLLM; Kwon et
al. 2023 describe the paging, section 4.3 the sharing).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

ZERO_BLOCK = 0
"""Always zeros; stands in block tables where a row has no more blocks. Never handed out."""


def chain_hash(before: bytes, tokens: Sequence[int]) -> bytes:
    """Name of a full block: of its tokens and, through the name of the block before it, of all that precede them."""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """Hands out the blocks 1 … `n_blocks`. A block is in use (`users` above 0), idle (nobody's, but kept to be found
    again, the longest unused given away first), or free (holds nothing worth keeping)."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self.users = [0] * (n_blocks + 1)
        self.free = list(range(n_blocks, 0, -1))
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.name_of: dict[int, bytes] = {}
        self.by_name: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """How many blocks `allocate` can still give."""
        return len(self.free) + len(self.idle)

    @property
    def used(self) -> int:
        """How many blocks requests hold."""
        return self.n_blocks - self.available

    def allocate(self) -> int:
        """A block of one's own: a free one, or else the idle one that nobody has used for longest."""
        if self.free:
            block = self.free.pop()
        else:
            block, _ = self.idle.popitem(last=False)
            self._unname(block)
        self.users[block] = 1
        return block

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest known beginning of `names`."""
        found = []
        for name in names:
            block = self.by_name.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, block: int) -> None:
        """One more user of a block that `find` gave."""
        if self.users[block] == 0:
            del self.idle[block]
        self.users[block] += 1

    def release(self, block: int) -> None:
        """One user less; the last one's leaving makes it idle where it has a name, free otherwise."""
        if self.users[block] < 1:
            raise AssertionError(f"block {block} is released more often than it was taken")
        self.users[block] -= 1
        if self.users[block] == 0:
            if block in self.name_of:
                self.idle[block] = None
            else:
                self.free.append(block)

    def publish(self, block: int, name: bytes) -> None:
        """Let a full block be found; where another block holds the same, that one stays the one to find."""
        if name not in self.by_name and block not in self.name_of:
            self.by_name[name], self.name_of[block] = block, name

    def withdraw(self, block: int) -> None:
        """Let a block not be found any more; who uses it keeps it."""
        self._unname(block)
        if block in self.idle:
            del self.idle[block]
            self.free.append(block)

    def forget(self) -> None:
        """Withdraw every block: what the cache holds is out of date."""
        for block in list(self.name_of):
            self.withdraw(block)

    def _unname(self, block: int) -> None:
        name = self.name_of.pop(block, None)
        if name is not None:
            del self.by_name[name]

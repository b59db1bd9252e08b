"""Prefix reuse: keys and values of prompts' beginnings, kept for the next prompt that begins the same way.

They are kept in blocks of `BLOCK_TOKENS` tokens. A block is known by its own tokens and by the block
before it, so that prompts share the blocks of their common beginning and nothing is kept twice.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

BLOCK_TOKENS = 32

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys and values of some tokens, layer by layer: (tokens, heads, dimension) each."""


class Key(NamedTuple):
    """A block's identity: the block before it (0: none) and its own tokens."""

    parent: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """Keys and values of `BLOCK_TOKENS` consecutive tokens.

    Attributes:
        identity: Never used again, also after the block is forgotten.
        layers: Its keys and values.
        size: Bytes they take.
    """

    identity: int
    layers: KeysValues
    size: int


class PrefixCache:
    """Blocks of prefixes within a memory budget; the least recently used are forgotten first.

    Args:
        budget: Bytes of keys and values to keep at most, on the device of the cache; 0 keeps nothing.

    Attributes:
        size: Bytes kept.
    """

    def __init__(self, budget: int) -> None:
        self.size = 0
        self._budget = budget
        self._blocks: OrderedDict[Key, Block] = OrderedDict()
        self._made = 0

    @property
    def budget(self) -> int:
        """Most bytes kept; lowering it forgets at once."""
        return self._budget

    @budget.setter
    def budget(self, value: int) -> None:
        self._budget = value
        self._shrink()

    def clear(self) -> None:
        """Forgets everything."""
        self._blocks.clear()
        self.size = 0

    def match(self, token_ids: Sequence[int]) -> list[Block]:
        """Blocks of the longest kept prefix of a prompt, which counts as a use of them.

        The last token is never among them: its state must be computed, the first candidates depend on it.
        """
        found = self._find(token_ids[:-1])
        self._touch([key for key, _ in found])
        return [block for _, block in found]

    def next_key(self, token_ids: Sequence[int]) -> Key | None:
        """What the first block of a prompt that is not kept will be; None where all that fills a block is."""
        found = self._find(token_ids[:-1])
        start = len(found) * BLOCK_TOKENS
        if len(token_ids) - 1 < start + BLOCK_TOKENS:
            return None
        return Key(found[-1][1].identity if found else 0, tuple(token_ids[start : start + BLOCK_TOKENS]))

    def add(self, token_ids: Sequence[int], read: Callable[[int, int], KeysValues]) -> None:
        """Keeps what is not kept yet of a row's tokens.

        Args:
            token_ids: The row's tokens from its beginning; what does not fill a block is left out.
            read: Copies the keys and values of tokens `start` … `stop - 1` out of the cache.
        """
        if self._budget <= 0:
            return
        known = self._find(token_ids)
        keys = [key for key, _ in known]
        parent = known[-1][1].identity if known else 0
        try:
            for start in range(len(known) * BLOCK_TOKENS, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
                layers = read(start, start + BLOCK_TOKENS)
                size = sum(tensor.numel() * tensor.element_size() for pair in layers for tensor in pair)
                if (len(keys) + 1) * size > self._budget:
                    break
                self._made += 1
                keys.append(Key(parent, tuple(token_ids[start : start + BLOCK_TOKENS])))
                self._blocks[keys[-1]] = Block(self._made, layers, size)
                self.size += size
                parent = self._made
        finally:
            self._touch(keys)
            self._shrink()

    def _find(self, token_ids: Sequence[int]) -> list[tuple[Key, Block]]:
        found: list[tuple[Key, Block]] = []
        parent = 0
        for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = Key(parent, tuple(token_ids[start : start + BLOCK_TOKENS]))
            block = self._blocks.get(key)
            if block is None:
                break
            found.append((key, block))
            parent = block.identity
        return found

    def _touch(self, keys: Sequence[Key]) -> None:
        # The beginning last: a block must never outlive the one before it, or it could not be found.
        for key in reversed(keys):
            self._blocks.move_to_end(key)

    def _shrink(self) -> None:
        while self.size > self._budget and self._blocks:
            self.size -= self._blocks.popitem(last=False)[1].size

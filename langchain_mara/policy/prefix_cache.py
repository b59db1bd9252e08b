"""Prefix cache: keys and values of prompts, kept for later prompts that begin with the same tokens.

They are kept in blocks of `BLOCK_TOKENS` tokens. A block is identified by its own tokens and by the block before it,
so prompts share the blocks of their common prefix and nothing is kept twice.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

BLOCK_TOKENS = 32
"""Tokens per block."""

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys and values of some tokens, layer by layer, (tokens, heads, dimension) each."""


class BlockKey(NamedTuple):
    """What identifies a block: the block before it and its own tokens.

    Attributes:
        parent: `identity` of the block before it; 0 for the first block of a prompt.
        token_ids: The `BLOCK_TOKENS` tokens of the block.
    """

    parent: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """Keys and values of `BLOCK_TOKENS` consecutive tokens.

    Attributes:
        identity: Unique number, never reused even after the block is evicted.
        layers: Keys and values of the block.
        size: Size of the keys and values in bytes.
    """

    identity: int
    layers: KeysValues
    size: int


class PrefixCache:
    """Blocks of prefixes within a memory budget; the least recently used are evicted first.

    Args:
        budget: Most bytes of keys and values to keep, on the device of the model; 0 keeps nothing.
        state: Function of a value that changes with whatever keys and values depend on besides tokens.

    Attributes:
        size: Bytes kept now.
        evicted: Number of blocks dropped so far for want of room.
        epoch: Number of times that the state has changed.
    """

    def __init__(self, budget: int, state: Callable[[], object] = lambda: None) -> None:
        self.size = self.evicted = 0
        self._state = state
        self._last_state: object = None
        self.epoch = 0
        self._budget = budget
        self._blocks: OrderedDict[BlockKey, Block] = OrderedDict()
        self._last_identity = 0

    @property
    def budget(self) -> int:
        """Most bytes to keep; lowering it evicts blocks at once."""
        return self._budget

    @budget.setter
    def budget(self, value: int) -> None:
        self._budget = value
        self._shrink()

    def clear(self) -> None:
        """Evicts all blocks."""
        self._blocks.clear()
        self.size = 0

    def refresh(self) -> None:
        """Evicts all blocks if the state has changed since the last call."""
        if self._budget > 0 and (state := self._state()) != self._last_state:
            self.clear()
            self._last_state = state
            self.epoch += 1

    def match(self, token_ids: Sequence[int]) -> list[Block]:
        """Blocks of the longest prefix of a prompt that is kept. They count as recently used.

        The last token of the prompt is never among them, because the first candidates need its state.

        Args:
            token_ids: The token ids of the prompt.
        """
        kept_blocks = self._find(token_ids[:-1])
        self._touch([key for key, _ in kept_blocks])
        return [block for _, block in kept_blocks]

    def next_key(self, token_ids: Sequence[int]) -> BlockKey | None:
        """Key of the first full block of a prompt that is not kept; None if all its full blocks are kept.

        Args:
            token_ids: The token ids of the prompt.
        """
        kept_blocks = self._find(token_ids[:-1])
        start = len(kept_blocks) * BLOCK_TOKENS
        if len(token_ids) - 1 < start + BLOCK_TOKENS:
            return None
        parent = kept_blocks[-1][1].identity if kept_blocks else 0
        return BlockKey(parent, tuple(token_ids[start : start + BLOCK_TOKENS]))

    def waits(self, prompts: Sequence[Sequence[int]]) -> list[bool]:
        """For each of several prompts, whether one before it computes a block that it can reuse.

        Args:
            prompts: The token ids of the prompts.
        """
        if not self._budget:
            return [False] * len(prompts)
        keys = [self.next_key(token_ids) for token_ids in prompts]
        return [key is not None and key in keys[:i] for i, key in enumerate(keys)]

    def add(self, token_ids: Sequence[int], read: Callable[[int, int], KeysValues], epoch: int | None = None) -> None:
        """Keeps the blocks of a row that are not kept yet.

        Args:
            token_ids: The tokens of the row from its beginning. Tokens that do not fill a block are left out.
            read: Function of `start` and `stop` that copies the keys and values of tokens `start` … `stop - 1`.
            epoch: The cache's when the row was computed. A row of an earlier state is not kept.
        """
        if self._budget <= 0 or epoch not in (None, self.epoch):
            return
        kept_blocks = self._find(token_ids)
        keys = [key for key, _ in kept_blocks]
        parent = kept_blocks[-1][1].identity if kept_blocks else 0
        try:
            for start in range(len(kept_blocks) * BLOCK_TOKENS, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
                layers = read(start, start + BLOCK_TOKENS)
                size = sum(tensor.numel() * tensor.element_size() for pair in layers for tensor in pair)
                if (len(keys) + 1) * size > self._budget:
                    break
                self._last_identity += 1
                keys.append(BlockKey(parent, tuple(token_ids[start : start + BLOCK_TOKENS])))
                self._blocks[keys[-1]] = Block(self._last_identity, layers, size)
                self.size += size
                parent = self._last_identity
        finally:
            self._touch(keys)
            self._shrink()

    def _find(self, token_ids: Sequence[int]) -> list[tuple[BlockKey, Block]]:
        kept_blocks: list[tuple[BlockKey, Block]] = []
        parent = 0
        for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = BlockKey(parent, tuple(token_ids[start : start + BLOCK_TOKENS]))
            block = self._blocks.get(key)
            if block is None:
                break
            kept_blocks.append((key, block))
            parent = block.identity
        return kept_blocks

    def _touch(self, keys: Sequence[BlockKey]) -> None:
        # The first block is touched last: a block that outlived the one before it could never be found again.
        for key in reversed(keys):
            self._blocks.move_to_end(key)

    def _shrink(self) -> None:
        while self.size > self._budget and self._blocks:
            self.size -= self._blocks.popitem(last=False)[1].size
            self.evicted += 1

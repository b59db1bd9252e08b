"""Ragged key/value cache: every row has its own length, and siblings live in scratch slots.

A slot is one token's keys and values. Slots of a row need not be in order of position: the
attention mask says which slots a query may see and where they stand. So committing an accepted
candidate costs nothing but a mark in `positions`; its rejected siblings' slots are used again.
Rejected candidates are therefore never visible to anything (ALGORITHM.md section 3).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from langchain_mara.policy.prefix_cache import KeysValues

Window = tuple[Tensor, Tensor]

GROWTH_SLOTS = 64
SMALLEST_BUCKET, LARGEST_STEP = 128, 4096


class _Pass:
    """Where the tokens of the running forward pass are written and what they read."""

    def __init__(self) -> None:
        self.rows = 0
        self.capacity = 0
        self.write = torch.empty(0, dtype=torch.long)
        self.read: tuple[int, int, int] | None = None


class _RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer: (rows, capacity, heads, dimension) each."""

    keys: Tensor
    values: Tensor

    def __init__(self, current: _Pass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = current
        self._windows: dict[tuple[int, int], Window] = {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Empty stores for states of the shape (…, heads, tokens, dimension)."""
        self._initialize(key_states.transpose(-3, -2), value_states.transpose(-3, -2))

    def _initialize(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = (one.new_zeros((0, 0, *one.shape[-2:])) for one in (keys, values))
        self.is_initialized = True

    def make_room(self, keys: Tensor, values: Tensor) -> None:
        """Grows to the pass's rows and slots, for keys and values of the shape (…, heads, dimension)."""
        if not self.is_initialized:
            self._initialize(keys, values)
        shape = (self.current.rows, self.current.capacity)
        if any(size < wanted for size, wanted in zip(self.keys.shape, shape, strict=False)):
            self._windows.clear()
            self.keys, self.values = enlarged(self.keys, shape), enlarged(self.values, shape)

    def keep_rows(self, rows: int) -> None:
        """Gives back the memory of all rows but the first `rows`."""
        self._windows.clear()
        self.keys, self.values = self.keys[:rows].clone(), self.values[:rows].clone()

    def window(self, rows: int, slots: int) -> Window | None:
        """Views of the first rows and slots, the same objects until the stores move; None where a layer has no past."""
        if not self.is_initialized:
            return None
        self.make_room(self.keys, self.values)
        if (rows, slots) not in self._windows:
            views = self.keys[:rows, :slots], self.values[:rows, :slots]
            for view in views:
                torch._dynamo.mark_static_address(view)  # noqa: SLF001 - as the caches of transformers do
            self._windows[rows, slots] = views
        return self._windows[rows, slots]

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes (batch, heads, tokens, dimension) states and returns what this pass attends to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.make_room(self.keys, self.values)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, store: Tensor, states: Tensor) -> Tensor:
        current = self.current
        states = finite(states)
        tokens = states.transpose(1, 2).flatten(0, 1)
        store.flatten(0, 1).index_copy_(0, current.write.to(store.device), tokens)
        if current.read is None:
            return states
        start, stop, span = current.read
        return store[start:stop, :span].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - the interface's
        return self.current.capacity, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class RaggedCache(Cache):
    """Cache of a changing set of rows; rows 0 … n-1 are in use, the policy model's layers share it.

    Args:
        layers: Number of layers.
        device: Where `positions` is.
        static: Whether storage has the sizes of compiled passes (`compiled.py`), and grows rarely.

    Attributes:
        positions: (rows, capacity) int64, position of the committed token in each slot, -1 where
            the slot is free or holds an undecided sibling.
    """

    def __init__(self, layers: int, device: torch.device, *, static: bool = False) -> None:
        self._static = static
        self._pass = _Pass()
        self._ragged = [_RaggedLayer(self._pass) for _ in range(layers)]
        super().__init__(layers=list(self._ragged))
        self.positions = torch.full((0, 0), -1, dtype=torch.long, device=device)

    def reserve(self, rows: int, slots: int) -> None:
        """Makes room for `rows` rows of `slots` slots; storage grows in blocks as it is written."""
        capacity = self.positions.shape[1]
        if self._static:
            rows, capacity = power_of_two(rows), max(capacity, slot_bucket(slots))
        elif slots > capacity:
            capacity = slots + max(GROWTH_SLOTS, slots // 32)
        self.positions = enlarged(self.positions, (rows, capacity), fill=-1)
        self._pass.rows, self._pass.capacity = self.positions.shape

    def begin_pass(self, write: Tensor, read: tuple[int, int, int] | None) -> None:
        """Fixes where the next forward pass writes and reads.

        Args:
            write: (batch * tokens,) int64, flat `row * capacity + slot` of every token.
            read: `(first row, last row + 1, slots)` whose keys and values are attended to, or None
                where the pass attends to its own tokens only.
        """
        self._pass.write, self._pass.read = write, read

    def window(self, rows: int, slots: int) -> list[Window | None]:
        """Keys and values of the first rows and slots, layer by layer, for a compiled pass to read and write.

        Args:
            rows: At most those reserved.
            slots: At most those reserved.
        """
        return [layer.window(rows, slots) for layer in self._ragged]

    def flat(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Flat index of (row, slot) pairs, for `begin_pass`."""
        return rows * self.positions.shape[1] + slots

    def commit(self, rows: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Makes tokens visible: marks (row, slot) as holding the token at that position.

        Args:
            rows: (n,) int64.
            slots: (n,) int64.
            positions: (n,) int64.
        """
        self.positions[rows, slots] = positions

    def move_row(self, source: int, target: int, slots: int) -> None:
        """Copies the first `slots` slots of row `source` over row `target` and frees `source`."""
        for layer in self._ragged:
            if layer.is_initialized:
                layer.keys[target, :slots] = layer.keys[source, :slots]
                layer.values[target, :slots] = layer.values[source, :slots]
        self.positions[target] = self.positions[source]
        self.positions[source] = -1

    def clear_row(self, row: int) -> None:
        """Forgets everything row `row` has committed."""
        self.positions[row] = -1

    def read(self, row: int, slots: Sequence[int]) -> KeysValues:
        """Copies of the keys and values in slots of a row, layer by layer."""
        index = torch.tensor(slots).to(self.positions.device)
        return [
            (layer.keys[row, index.to(layer.keys.device)], layer.values[row, index.to(layer.values.device)])
            for layer in self._ragged
        ]

    def write(self, row: int, blocks: Sequence[KeysValues]) -> int:
        """Commits blocks of keys and values, as `read` gave them, to the first slots of a free row.

        Returns:
            Number of tokens written.
        """
        tokens = sum(block[0][0].shape[0] for block in blocks)
        for i, layer in enumerate(self._ragged):
            layer.make_room(*blocks[0][i])
            torch.cat([block[i][0] for block in blocks], out=layer.keys[row, :tokens])
            torch.cat([block[i][1] for block in blocks], out=layer.values[row, :tokens])
        self.positions[row, :tokens] = torch.arange(tokens, device=self.positions.device)
        return tokens

    def keep_rows(self, rows: int) -> None:
        """Gives back the memory of all rows but the first `rows`."""
        self.positions = self.positions[:rows].clone()
        for layer in self._ragged:
            if layer.is_initialized:
                layer.keep_rows(rows)


def finite(states: Tensor) -> Tensor:
    """The states with 0 for what is not finite.

    A masked slot still enters the product with weight 0, and 0 * NaN is NaN: one bad sibling would spoil its row
    for good.
    """
    return states.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def slot_bucket(slots: int) -> int:
    """Slots rounded up to one of a few sizes: powers of two, and multiples of `LARGEST_STEP` beyond it."""
    if slots > LARGEST_STEP:
        return -(-slots // LARGEST_STEP) * LARGEST_STEP
    return max(SMALLEST_BUCKET, power_of_two(slots))


def enlarged(table: Tensor, shape: tuple[int, ...], fill: float = 0) -> Tensor:
    """The table grown to at least `shape` in its leading dimensions, itself if it is that large.

    Args:
        table: Any tensor of at least `len(shape)` dimensions.
        shape: Wanted leading sizes.
        fill: Value of new entries.
    """
    old = tuple(table.shape[: len(shape)])
    new = tuple(map(max, old, shape))
    if new == old:
        return table
    grown = table.new_full((*new, *table.shape[len(shape) :]), fill)
    grown[tuple(map(slice, old))] = table
    return grown

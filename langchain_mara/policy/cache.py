"""Key/value cache of rows with different lengths; siblings use scratch slots.

A slot holds the keys and values of one token. The slots of a row need not be in order of position, because the
attention mask says which slots a query may see. So committing an accepted candidate only marks its slot in
`positions`, and the slots of its rejected siblings are reused. Nothing ever sees a rejected candidate
(docs/algorithm.md, "Why aligned decoding costs about one pass per token").
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from langchain_mara.policy.prefix_cache import KeysValues

Window = tuple[Tensor, Tensor]
"""Views of a layer's keys and values, (rows, slots, heads, dimension) each."""

GROWTH_SLOTS = 64
"""Least number of slots by which the cache grows."""
SMALLEST_BUCKET, LARGEST_STEP = 128, 4096
"""Least slots of a compiled pass, and the step beyond which buckets grow by addition instead of doubling."""


@dataclass
class _PassLayout:
    """Where the tokens of the running forward pass are written, and what they read; shared by all layers.

    Attributes:
        rows: Number of rows that storage must have.
        capacity: Number of slots per row that storage must have.
        write: (batch * tokens,) int64, flat `row * capacity + slot` of every token.
        read: `(first row, last row + 1, slots)` that are attended to; None if the pass attends to its own tokens only.
    """

    rows: int = 0
    capacity: int = 0
    write: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    read: tuple[int, int, int] | None = None


class _RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer: (rows, capacity, heads, dimension) each."""

    keys: Tensor
    values: Tensor

    def __init__(self, layout: _PassLayout) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layout = layout
        self._windows: dict[tuple[int, int], Window] = {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Creates empty storage for states of shape (…, heads, tokens, dimension)."""
        self._initialize(key_states.transpose(-3, -2), value_states.transpose(-3, -2))

    def _initialize(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = (states.new_zeros((0, 0, *states.shape[-2:])) for states in (keys, values))
        self.is_initialized = True

    def make_room(self, keys: Tensor, values: Tensor) -> None:
        """Grows storage to the rows and slots of the pass, for keys and values of shape (…, heads, dimension)."""
        if not self.is_initialized:
            self._initialize(keys, values)
        shape = (self.layout.rows, self.layout.capacity)
        if any(size < needed for size, needed in zip(self.keys.shape, shape, strict=False)):
            self._windows.clear()
            self.keys, self.values = enlarged(self.keys, shape), enlarged(self.values, shape)

    def keep_rows(self, rows: int) -> None:
        """Frees the memory of all rows except the first `rows`."""
        self._windows.clear()
        self.keys, self.values = self.keys[:rows].clone(), self.values[:rows].clone()

    def window(self, rows: int, slots: int) -> Window | None:
        """Views of the first rows and slots, the same objects until storage moves; None if the layer has no past."""
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
        """Writes (batch, heads, tokens, dimension) states and returns the keys and values that this pass attends to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.make_room(self.keys, self.values)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, store: Tensor, states: Tensor) -> Tensor:
        states = finite(states)
        tokens = states.transpose(1, 2).flatten(0, 1)
        store.flatten(0, 1).index_copy_(0, self.layout.write.to(store.device), tokens)
        if self.layout.read is None:
            return states
        start, stop, span = self.layout.read
        return store[start:stop, :span].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - the interface's
        return self.layout.capacity, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class RaggedCache(Cache):
    """Cache of a changing number of rows for all layers of a policy model; rows 0 … n-1 are in use.

    Args:
        layers: Number of layers of the model.
        device: Device of `positions`.
        static: Whether storage takes the sizes of compiled passes (`compilation.py`) and grows rarely.

    Attributes:
        positions: (rows, capacity) int64, position of the committed token in each slot; -1 if the slot is free or
            holds an undecided sibling.
    """

    def __init__(self, layers: int, device: torch.device, *, static: bool = False) -> None:
        self._static = static
        self._layout = _PassLayout()
        self._ragged = [_RaggedLayer(self._layout) for _ in range(layers)]
        super().__init__(layers=list(self._ragged))
        self.positions = torch.full((0, 0), -1, dtype=torch.long, device=device)

    def reserve(self, rows: int, slots: int) -> None:
        """Makes room for `rows` rows of `slots` slots. Storage grows in blocks when it is written to."""
        capacity = self.positions.shape[1]
        if self._static:
            rows, capacity = power_of_two(rows), max(capacity, slot_bucket(slots))
        elif slots > capacity:
            capacity = slots + max(GROWTH_SLOTS, slots // 32)
        self.positions = enlarged(self.positions, (rows, capacity), fill=-1)
        self._layout.rows, self._layout.capacity = self.positions.shape

    def begin_pass(self, write: Tensor, read: tuple[int, int, int] | None) -> None:
        """Sets where the next forward pass writes and what it reads.

        Args:
            write: (batch * tokens,) int64, flat `row * capacity + slot` of every token.
            read: `(first row, last row + 1, slots)` whose keys and values are attended to, or None if the pass
                attends to its own tokens only.
        """
        self._layout.write, self._layout.read = write, read

    def window(self, rows: int, slots: int) -> list[Window | None]:
        """Keys and values of the first rows and slots, layer by layer, for a compiled pass to read and write.

        Args:
            rows: Number of rows, at most as many as reserved.
            slots: Number of slots, at most as many as reserved.
        """
        return [layer.window(rows, slots) for layer in self._ragged]

    def flat(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Flat indices of (row, slot) pairs, as `begin_pass` takes them."""
        return rows * self.positions.shape[1] + slots

    def commit(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """Makes tokens visible; see `RowCache.commit`."""
        self.mark(*torch.tensor(tokens).to(self.positions.device).unbind(1))

    def mark(self, rows: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Makes tokens visible by marking their slots with their positions.

        Args:
            rows: (n,) int64, row of each token.
            slots: (n,) int64, slot of each token.
            positions: (n,) int64, position of each token.
        """
        self.positions[rows, slots] = positions

    def move_row(self, source: int, target: int, slots: int) -> None:
        """Copies the first `slots` slots of row `source` to row `target` and clears row `source`."""
        for layer in self._ragged:
            if layer.is_initialized:
                layer.keys[target, :slots] = layer.keys[source, :slots]
                layer.values[target, :slots] = layer.values[source, :slots]
        self.positions[target] = self.positions[source]
        self.positions[source] = -1

    def clear_row(self, row: int) -> None:
        """Forgets everything that was committed to a row."""
        self.positions[row] = -1

    def read(self, row: int, slots: Sequence[int]) -> KeysValues:
        """Copies the keys and values in some slots of a row, layer by layer."""
        index = torch.tensor(slots).to(self.positions.device)
        return [
            (layer.keys[row, index.to(layer.keys.device)], layer.values[row, index.to(layer.values.device)])
            for layer in self._ragged
        ]

    def write(self, row: int, blocks: Sequence[KeysValues]) -> int:
        """Commits blocks of keys and values, as `read` returns them, to the first slots of a free row.

        Returns:
            The number of tokens written.
        """
        tokens = sum(block[0][0].shape[0] for block in blocks)
        for i, layer in enumerate(self._ragged):
            layer.make_room(*blocks[0][i])
            torch.cat([block[i][0] for block in blocks], out=layer.keys[row, :tokens])
            torch.cat([block[i][1] for block in blocks], out=layer.values[row, :tokens])
        self.positions[row, :tokens] = torch.arange(tokens, device=self.positions.device)
        return tokens

    def keep_rows(self, rows: int) -> None:
        """Frees the memory of all rows except the first `rows`."""
        self.positions = self.positions[:rows].clone()
        for layer in self._ragged:
            if layer.is_initialized:
                layer.keep_rows(rows)


def finite(states: Tensor) -> Tensor:
    """Replaces NaN and infinite values by 0.

    A masked slot still enters the attention product with weight 0, and 0 * NaN is NaN, so one bad sibling would spoil
    its row for good.
    """
    return states.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def slot_bucket(slots: int) -> int:
    """Rounds slots up to one of a few sizes: powers of two up to `LARGEST_STEP`, and its multiples beyond."""
    if slots > LARGEST_STEP:
        return -(-slots // LARGEST_STEP) * LARGEST_STEP
    return max(SMALLEST_BUCKET, power_of_two(slots))


def enlarged(table: Tensor, shape: tuple[int, ...], fill: float = 0) -> Tensor:
    """A copy of a tensor grown to at least `shape` in its leading dimensions; the tensor itself if it is that large.

    Args:
        table: Any tensor of at least `len(shape)` dimensions.
        shape: Least sizes of the leading dimensions.
        fill: Value of new entries.
    """
    old = tuple(table.shape[: len(shape)])
    new = tuple(map(max, old, shape))
    if new == old:
        return table
    grown = table.new_full((*new, *table.shape[len(shape) :]), fill)
    grown[tuple(map(slice, old))] = table
    return grown

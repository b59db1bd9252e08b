"""What the decode loop needs of a policy model, whatever runs it: rows and siblings in, states and logits out.

`model.PolicyModel` runs models of transformers, `llama_cpp.policy.LlamaCppPolicy` those of llama.cpp.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from langchain_mara.policy.loaded_model import LoadedModel


class RowCache(Protocol):
    """Keys and values of rows 0 … n-1, as far as a policy keeps them. A row holds one token in a slot.

    A token goes through the model in a slot, and counts once the slot is committed. Slots of a row need not be in order
    of position; those that are not committed may be used again.
    """

    def reserve(self, rows: int, slots: int) -> None:
        """Makes room for so many rows of so many slots."""

    def commit(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """Makes tokens visible: row, slot and position of each, those of a row in order of position."""

    def move_row(self, source: int, target: int, slots: int) -> None:
        """Moves a row with its first slots to another place, whose row is forgotten."""

    def clear_row(self, row: int) -> None:
        """Forgets a row."""

    def keep_rows(self, rows: int) -> None:
        """Frees the memory of all rows except the first `rows`."""

    def read(self, row: int, slots: Sequence[int]) -> Any:
        """What is kept of some consecutive tokens of a row, for `write`."""

    def write(self, row: int, blocks: Sequence[Any]) -> int:
        """Commits what `read` returned to a free row from its beginning; returns the number of tokens."""


class Policy(Protocol):
    """Runs passes of a frozen causal language model over the rows of a cache that it has made.

    Attributes:
        model: The loaded model.
        backbone: Module that is called once in every pass, for hooks.
        passes: Number of forward passes made so far, including prefill.
        prefilled: Number of prompt tokens computed so far, not counting reused ones.
    """

    model: Any
    backbone: nn.Module
    passes: int
    prefilled: int

    @property
    def loaded(self) -> LoadedModel:
        """What belongs to the model and is shared by all its users."""

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def context(self) -> int | None:
        """Most tokens that a row may hold; None if there is no limit."""

    @property
    def hidden_size(self) -> int:
        """Size d of a state."""

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that have a logit."""

    @property
    def embeddings(self) -> int:
        """Number of token ids that have an embedding."""

    @property
    def device(self) -> torch.device:
        """Device of states and logits."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of states."""

    @property
    def precision(self) -> torch.dtype:
        """Dtype that passes compute in, where it is less precise than that of states."""

    def new_cache(self) -> Any:
        """An empty `RowCache` for this policy."""

    def prefill(self, cache: Any, first_row: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Commits whole prompts to free rows from `first_row` on; (prompts, d) states of their last tokens."""

    def extend(self, cache: Any, first_row: int, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Commits further tokens to rows that hold `starts` tokens; (rows, d) states of the last ones."""

    def siblings(
        self,
        cache: Any,
        token_ids: Tensor,
        slots: Sequence[Sequence[int]],
        positions: Sequence[int],
        span: int,
        depths: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Evaluates siblings of the first rows in one pass; see `PolicyModel.siblings`.

        Token ids come from the device; what the loop knows on the host stays there until the policy needs it elsewhere.

        Returns:
            (rows, width, d) states after the final norm.
        """

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits (n, vocabulary) of (n, d) states, which the caller may overwrite."""

    def states(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """(sequences, longest, d) states of all tokens of whole sequences; those past the end of one mean nothing."""

    def cache_free(self, prompt: Sequence[int], siblings: Tensor) -> tuple[Tensor, Tensor]:
        """States and logits of (n,) siblings after a prompt, evaluated without what other passes have left."""

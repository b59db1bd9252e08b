"""The frozen policy model in a GGUF file as the decode loop sees it."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from langchain_mara.policy.llama_cpp.cache import Branch, Row, SequenceCache
from langchain_mara.policy.llama_cpp.context import TokenInPass
from langchain_mara.policy.loaded_model import LoadedModel

if TYPE_CHECKING:
    from langchain_mara.policy.llama_cpp.model import LlamaCppModel

_STATES_AT_ONCE = 64


class LlamaCppPolicy:
    """Runs passes of a model that llama.cpp has loaded; a `Policy`.

    Args:
        model: The loaded model.

    Attributes:
        See `Policy`. States and logits are float32 and on the CPU, wherever llama.cpp computes them.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, model: "LlamaCppModel") -> None:
        self.model = model
        self.loaded = LoadedModel.of(model)
        self.name = model.name_or_path
        self.context: int | None = model.config.max_position_embeddings
        self.hidden_size = int(model.config.hidden_size)
        self.vocabulary_size = self.embeddings = int(model.config.vocab_size)
        self.passes = self.prefilled = 0
        self._context = model.context
        # With other weights than float32, llama.cpp rounds activations, too, and not alike in passes of all sizes.
        self.precision = torch.float32 if model.context.settings.exact else torch.float16
        self.backbone: nn.Module = model.context.backbone
        self.loaded.interrupt = model.context.interrupt

    def new_cache(self) -> SequenceCache:
        """An empty cache. All caches of a model share its cells."""
        return SequenceCache(self._context, keeps_prefixes=self.model.config.sliding_window is None)

    def prefill(self, cache: SequenceCache, first_row: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Commits whole prompts to free rows; see `Policy.prefill`."""
        return self.extend(cache, first_row, prompts, [0] * len(prompts))

    def extend(
        self, cache: SequenceCache, first_row: int, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Tensor:
        """Commits further tokens to rows; see `Policy.extend`.

        Args:
            cache: The cache.
            first_row: Row of the first sequence.
            token_ids: Tokens to append to each row, none empty.
            starts: Number of tokens that each row holds already.
        """
        with self._context.lock:
            rows = [cache.open_row(first_row + i, start) for i, start in enumerate(starts)]
            tokens = [
                [TokenInPass(token, start + n, row.main.sequence) for n, token in enumerate(ids)]
                for row, ids, start in zip(rows, token_ids, starts, strict=True)
            ]
            for row, own in zip(rows, tokens, strict=True):
                row.main.length = own[-1].position + 1  # so that a failure cuts them off
            try:
                # Only the last tokens decide anything. A context that gives states gives those of all tokens of a pass.
                self.passes += self._context.fill([token for own in tokens for token in own[:-1]])
                states = torch.from_numpy(self.evaluate(rows, [own[-1] for own in tokens]))
            except BaseException:
                cache.undo(rows)
                raise
            for row in rows:
                cache.committed(row, row.main.length)
        self.prefilled += sum(map(len, token_ids))
        return states

    def siblings(
        self,
        cache: SequenceCache,
        token_ids: Tensor,
        slots: Sequence[Sequence[int]],
        positions: Sequence[int],
        span: int,  # noqa: ARG002 - for caches that are tensors
        depths: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Evaluates siblings of the first rows; see `Policy.siblings`. Equal siblings are evaluated once.

        Args:
            cache: The cache.
            token_ids: (rows, width) int64 candidates and drafted tokens.
            slots: Their slots.
            positions: Position of the siblings of each row.
            span: Not read.
            depths: See `PolicyModel.siblings`.
        """
        ids = token_ids.tolist()
        ahead = [[0] * len(row) for row in ids] if depths is None else depths
        wave = _Wave(self)
        with self._context.lock:
            try:
                for i, position in enumerate(positions):
                    row = cache.open_position(i, position, slots[i])
                    wave.add_row(cache, row, _Siblings(ids[i], slots[i], ahead[i], position))
                wave.run()
            except BaseException:
                cache.undo(wave.rows)
                raise
        return torch.from_numpy(wave.states()).view(*token_ids.shape, self.hidden_size)

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits (n, vocabulary) of (n, d) states; see `Policy.logits`.

        They come out of the pass with the states of undecided positions. For others the head is computed in float32.
        """
        with self._context.lock:
            known = self._context.known.of(states)
        return self.model.head_logits(states) if known is None else known

    def states(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """States of all tokens of whole sequences; see `Policy.states`."""
        states = torch.zeros(len(token_ids), max(map(len, token_ids)), self.hidden_size)
        with self._context.lock:
            for own, ids in zip(states, token_ids, strict=True):
                cache = self.new_cache()
                row = cache.open_row(0, 0)
                own[: len(ids)] = self._whole(cache, row, ids)
        return states

    def _whole(self, cache: SequenceCache, row: Row, ids: Sequence[int]) -> Tensor:
        """(tokens, d) states of a row's tokens. Their logits are forgotten part by part, because they are large."""
        parts = []
        for start in range(0, len(ids), _STATES_AT_ONCE):
            tokens = enumerate(ids[start : start + _STATES_AT_ONCE], start)
            given = [TokenInPass(token, i, row.main.sequence) for i, token in tokens]
            parts.append(torch.from_numpy(self.evaluate([row] * len(given), given)))
            cache.committed(row, start + len(given))
            cache.settle(row)
        return torch.cat(parts)

    def cache_free(self, prompt: Sequence[int], siblings: Tensor) -> tuple[Tensor, Tensor]:
        """States and logits of (n,) siblings after a prompt, each after a prompt of its own."""
        cache, states, logits = self.new_cache(), [], []
        for token in siblings.tolist():
            states.append(self.prefill(cache, 0, [[*prompt, token]]))
            logits.append(self.logits(states[-1]))
        return torch.cat(states), torch.cat(logits)

    def evaluate(self, rows: Sequence[Row], tokens: Sequence[TokenInPass]) -> "np.ndarray":
        """Puts tokens through the model and keeps their logits; for use with the context locked.

        Args:
            rows: Row of each token.
            tokens: The tokens.

        Returns:
            (tokens, d) float32 states.
        """
        states, keys = self._context.evaluate(tokens)
        self.passes += -(-len(tokens) // self._context.pass_tokens)
        for row, token, key in zip(rows, tokens, keys, strict=True):
            row.keys.append((token.position, key))
        return states


class _Siblings(NamedTuple):
    """The tokens of a row in a pass.

    Attributes:
        token_ids: The tokens.
        slots: Their slots.
        depths: 0 for siblings, n for the n-th drafted token.
        position: Position of the siblings.
    """

    token_ids: Sequence[int]
    slots: Sequence[int]
    depths: Sequence[int]
    position: int


class _Wave:
    """Tokens of several rows that wait to go through the model together.

    Args:
        policy: The policy.

    Attributes:
        rows: The rows that have tokens in it.
    """

    def __init__(self, policy: LlamaCppPolicy) -> None:
        self.rows: list[Row] = []
        self._policy = policy
        self._waiting: list[tuple[Row, TokenInPass]] = []
        self._evaluated: list[np.ndarray] = []
        self._sources: list[int] = []  # for each token of all rows, its number among those that went through
        self._tokens = 0

    def add_row(self, cache: SequenceCache, row: Row, siblings: _Siblings) -> None:
        """Adds the tokens of a row. If no sequence is free, those that wait go through the model first."""
        self.rows.append(row)
        seen: dict[int, int] = {}
        head: Branch | None = None
        for token, slot, depth in zip(*siblings[:3], strict=True):
            if depth == 0 and seen.setdefault(token, self._tokens) != self._tokens:
                self._sources.append(seen[token])
                continue
            place = partial(cache.place, row, slot, token, siblings.position + depth, head if depth else None)
            branch = place()
            if branch is None:
                self.run()
                cache.make_room()
                branch = cast("Branch", place())
            head = head or branch
            self._waiting.append((row, TokenInPass(token, siblings.position + depth, branch.sequence)))
            self._sources.append(self._tokens)
            self._tokens += 1

    def run(self) -> None:
        """Puts the tokens that wait through the model."""
        if self._waiting:
            rows, tokens = zip(*self._waiting, strict=True)
            self._evaluated.append(self._policy.evaluate(rows, tokens))
            self._waiting = []

    def states(self) -> "np.ndarray":
        """(tokens, d) states of all tokens, in order of rows. Those of equal siblings are equal."""
        parts = self._evaluated
        evaluated = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return evaluated if len(self._sources) == self._tokens else evaluated[self._sources]

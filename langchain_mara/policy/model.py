"""The frozen policy model as the decode loop sees it: passes over rows of different lengths, states, logits.

Whatever depends on the model family is here and in `architectures.py`; the decode loop knows nothing of it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from langchain_mara.policy.architectures import attention_windows, context_length, refuse_unsupported, scale_logits
from langchain_mara.policy.attention.masks import (
    attention_implementation,
    attention_mask,
    visible_in_pass,
    visible_keys,
)
from langchain_mara.policy.cache import RaggedCache
from langchain_mara.policy.compilation import Backend, SiblingTokens, can_compile, padded, run_compiled
from langchain_mara.policy.loaded_model import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL_TOKENS = 1024
"""Most prompt tokens in one pass."""
# A pass over many keys takes fewer tokens, so that its mask stays small, but enough to be worth a pass.
_MASK_ENTRIES = 2**21
_FEWEST_TOKENS = 256


class PolicyModel:
    """Runs passes of a frozen causal language model over the rows of a `RaggedCache`.

    Args:
        model: Any `AutoModelForCausalLM` with standard attention. Passes run in evaluation mode. A model in training
            mode returns to it after each pass.
        compile: Whether passes over siblings run as compiled graphs. A model that cannot be compiled runs uncompiled,
            after a warning.

    Attributes:
        loaded: What belongs to the model and is shared by all its users.
        hidden_size: Size d of a state.
        vocabulary_size: Number of token ids.
        embeddings: Number of token ids that have an embedding.
        context: Most tokens a row may hold; None if the model sets no limit.
        passes: Number of forward passes made so far, including prefill.
        prefilled: Number of prompt tokens computed so far, not counting reused ones.

    Raises:
        UnsupportedModelError: If the configuration shows that siblings cannot be evaluated in one pass. To check that
            the model computes them correctly, call `verify_siblings`.
    """

    def __init__(self, model: "PreTrainedModel", *, compile: bool = False, _backend: Backend = "inductor") -> None:  # noqa: A002
        refuse_unsupported(model)
        self.model = model
        self.loaded = LoadedModel.of(model)
        self.config = model.config.get_text_config(decoder=True)
        self.backbone: nn.Module = _backbone(model)
        self.head: nn.Module = model.get_output_embeddings()
        self.windows = attention_windows(self.config)
        self.context = context_length(self.config)
        self.hidden_size = int(self.config.hidden_size)
        self.vocabulary_size = int(self.config.vocab_size)
        self.embeddings = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
        self.device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[assignment]
        self.passes = self.prefilled = 0
        self._backend = _backend
        self.compile = compile and can_compile(model)

    @property
    def name(self) -> str:
        """Name for messages: the checkpoint's name, or else the architecture's."""
        return str(getattr(self.model, "name_or_path", "") or type(self.model).__name__)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of states, and of what computes them."""
        return self.model.dtype

    precision = dtype

    def new_cache(self) -> RaggedCache:
        """An empty cache for this model."""
        return RaggedCache(int(self.config.num_hidden_layers), self.device, static=self.compile)

    def prefill(self, cache: RaggedCache, first_row: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Commits whole prompts to free rows.

        Short prompts are concatenated into one pass without padding. A long prompt is split into several passes.

        Args:
            cache: Cache whose rows from `first_row` on are free.
            first_row: Row of the first prompt; the others follow.
            prompts: Token ids of each prompt, none empty.

        Returns:
            (prompts, d) states of the last prompt tokens.
        """
        cache.reserve(first_row + len(prompts), max(map(len, prompts)))
        states = []
        row = first_row
        for group in _prompt_groups(prompts, PREFILL_TOKENS):
            alone = len(group) == 1
            states.append(self.extend(cache, row, group, [0]) if alone else self._prefill_together(cache, row, group))
            row += len(group)
        return torch.cat(states)

    def _prefill_together(self, cache: RaggedCache, first_row: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        rows = torch.repeat_interleave(torch.arange(len(prompts)), lengths).to(self.device)
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts]).to(self.device)
        token_ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=self.device)
        cache.begin_pass(cache.flat(first_row + rows, positions), read=None)
        same_prompt = rows[None, :, None] == rows[None, None, :]

        def visible(window: int | None) -> Tensor:
            return visible_keys(positions[None], positions[None], window) & same_prompt

        states = self._forward(cache, token_ids, positions[None], visible, lengths=lengths.tolist())
        cache.mark(first_row + rows, positions, positions)
        self.prefilled += len(rows)
        last: Tensor = states[0, lengths.cumsum(0).to(states.device) - 1]
        return last

    def extend(
        self, cache: RaggedCache, first_row: int, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Tensor:
        """Appends tokens to consecutive rows and commits them, in several passes if there are many.

        Args:
            cache: Cache in which row `first_row + i` holds `starts[i]` tokens, in slots in order of position.
            first_row: Row of the first sequence; the others follow.
            token_ids: Tokens to append to each row, none empty.
            starts: Number of tokens that each row holds already.

        Returns:
            (rows, d) states of the last tokens.
        """
        rows, lengths = len(token_ids), [len(ids) for ids in token_ids]
        longest = max(lengths)
        cache.reserve(first_row + rows, max(starts) + longest)
        # Padding comes after the tokens of a row, so none of them sees it, and it is never committed.
        padded_ids = pad_sequence([torch.tensor(ids) for ids in token_ids], batch_first=True).to(self.device)
        first_slots = torch.tensor(starts).to(self.device).unsqueeze(1)
        row_index = first_row + torch.arange(rows, device=self.device).unsqueeze(1)
        last = padded_ids.new_zeros((rows, self.hidden_size), dtype=self.model.dtype)
        for start, stop in _chunks(longest, rows, max(starts)):
            chunk = padded_ids[:, start:stop]
            slots = first_slots + start + torch.arange(chunk.shape[1], device=self.device)
            span = max(starts) + start + chunk.shape[1]
            cache.begin_pass(cache.flat(row_index, slots).flatten(), read=(first_row, first_row + rows, span))
            keys = torch.arange(span, device=self.device).expand(rows, span)
            positions = slots if self.context is None else slots.clamp(max=self.context - 1)
            states = self._forward(cache, chunk, positions, partial(visible_keys, keys, positions))
            ends = {i: n - 1 - start for i, n in enumerate(lengths) if start < n <= start + chunk.shape[1]}
            last = last.to(states)
            last[list(ends)] = states[list(ends), list(ends.values())]
        self.prefilled += sum(lengths)
        index, offset = (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).nonzero(as_tuple=True)
        positions = (torch.tensor(starts)[index] + offset).to(self.device)
        cache.mark(first_row + index.to(self.device), positions, positions)
        return last

    def siblings(
        self,
        cache: RaggedCache,
        token_ids: Tensor,
        slots: Sequence[Sequence[int]],
        positions: Sequence[int],
        span: int,
        depths: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Evaluates siblings of the first rows in one pass. Siblings do not see each other.

        Args:
            cache: Cache that holds the committed prefixes and has room reserved for the slots.
            token_ids: (rows, width) int64 candidates and drafted tokens.
            slots: Scratch slots of these tokens, distinct within a row.
            positions: Position of the siblings of each row.
            span: Number of slots of a row to attend to, more than the highest slot in use.
            depths: 0 for siblings and n for the n-th drafted token after the first sibling of its row, which sees the
                tokens it continues; None if nothing is drafted.

        Returns:
            (rows, width, d) states after the final norm, in the model's dtype.
        """
        unpadded_rows, unpadded_width = token_ids.shape
        tokens = SiblingTokens.on_device(token_ids, slots, positions, span, depths)
        if self.compile:
            tokens = padded(tokens)
            cache.reserve(len(tokens.positions), tokens.span)
        rows, width = tokens.token_ids.shape
        row_index = torch.arange(rows, device=self.device).unsqueeze(-1)
        cache.begin_pass(cache.flat(row_index, tokens.slots).flatten(), read=(0, rows, tokens.span))
        query_positions = tokens.positions.unsqueeze(-1).expand(rows, width)
        if tokens.depths is not None:
            query_positions = query_positions + tokens.depths
        pass_slots = tokens.slots.unsqueeze(1).expand(rows, width, width)

        def visible(window: int | None) -> Tensor:
            # The slots of this pass are not committed, so the mask of the prefix is False there.
            prefix = visible_keys(cache.positions[:rows, : tokens.span], query_positions, window)
            return prefix.scatter_(-1, pass_slots, visible_in_pass(query_positions, tokens.depths, window))

        own_slots = tokens.slots if self.compile else None
        states = self._forward(cache, tokens.token_ids, query_positions, visible, own_slots)
        return states[:unpadded_rows, :unpadded_width]

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits (n, vocabulary) of (n, d) states, in the model's dtype."""
        # `head.weight` would unpack a packed head, which costs more than the product.
        weight = next(self.head.parameters(), states)
        return scale_logits(self.config, self.head(states.to(weight.device)))

    def states(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """States of all tokens of whole sequences, in one pass; see `Policy.states`."""
        # Causal attention keeps every token from seeing the padding on the right, so no mask is needed.
        padded_ids = pad_sequence([torch.tensor(ids) for ids in token_ids], batch_first=True).to(self.device)
        with self.loaded.evaluation_mode():
            states: Tensor = self.backbone(input_ids=padded_ids, use_cache=False).last_hidden_state
        return states

    def cache_free(self, prompt: Sequence[int], siblings: Tensor) -> tuple[Tensor, Tensor]:
        """States and logits of (n,) siblings after a prompt, by whole forward passes without a cache."""
        prefix = torch.tensor(prompt, device=self.device).expand(len(siblings), -1)
        token_ids = torch.cat([prefix, siblings.unsqueeze(1)], dim=1)
        with self.loaded.evaluation_mode():
            output = self.model(token_ids, use_cache=False, output_hidden_states=True)
        return output.hidden_states[-1][:, -1], output.logits[:, -1]

    def _forward(
        self,
        cache: RaggedCache,
        token_ids: Tensor,
        positions: Tensor,
        visible: Callable[[int | None], Tensor],
        slots: Tensor | None = None,
        lengths: Sequence[int] = (),
    ) -> Tensor:
        """Runs one forward pass, as a compiled graph if `slots` are given.

        `visible` returns the (batch, queries, keys) mask for a window size. `lengths` are those of prompts in one row.
        """
        # Importing it loads much of transformers, which by now is needed by the model anyway.
        from langchain_mara.policy.attention.prompt_by_prompt import keep_prompts_apart  # noqa: PLC0415

        implementation = attention_implementation(self.config)
        masks = {
            layer_type: attention_mask(visible(window), implementation, self.model.dtype)
            for layer_type, window in self.windows.items()
        }
        self.passes += 1
        inputs = {
            "input_ids": token_ids,
            # Only models with several layer types take a dictionary of masks.
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            "position_ids": positions.contiguous(),
        }
        with self.loaded.evaluation_mode(), keep_prompts_apart(self.model, self.config, lengths):
            if slots is not None and self.loaded.compilable:
                window = cache.window(len(slots), next(iter(masks.values())).shape[-1])
                compiled = run_compiled(self.backbone, inputs, slots, window, self._backend)
                if compiled is not None:
                    return compiled
                self.loaded.compilable = False
            states: Tensor = self.backbone(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
        return states


def _backbone(model: "PreTrainedModel") -> nn.Module:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return model.base_model if decoder is None or decoder is model else decoder


def _chunks(tokens: int, rows: int, held: int) -> Iterator[tuple[int, int]]:
    """Starts and stops of the passes that append up to `tokens` tokens to rows of up to `held` tokens."""
    start = 0
    while start < tokens:
        budget = min(PREFILL_TOKENS, max(_FEWEST_TOKENS, _MASK_ENTRIES // (held + start + PREFILL_TOKENS)))
        stop = min(tokens, start + max(1, budget // rows))
        yield start, stop
        start = stop


def _prompt_groups(prompts: Sequence[Sequence[int]], budget: int) -> Iterator[Sequence[Sequence[int]]]:
    """Splits prompts into consecutive groups of at most `budget` tokens; a longer prompt is a group of its own."""
    start = 0
    while start < len(prompts):
        totals = accumulate(len(prompt) for prompt in prompts[start:])
        size = max(1, sum(total <= budget for total in totals))
        yield prompts[start : start + size]
        start += size

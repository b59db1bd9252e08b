"""The frozen policy model as the decode loop sees it: passes over ragged rows, states, logits.

What is special to a model family stands here and in `families.py`; the decode loop knows none of it.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from langchain_mara.policy.architectures import attention_windows, context_length, refuse_unsupported, scale_logits
from langchain_mara.policy.attention.grouped_attention import attention_implementation, grouped
from langchain_mara.policy.attention.masks import attention_mask, visible_in_pass, visible_keys
from langchain_mara.policy.cache import RaggedCache
from langchain_mara.policy.compilation import Backend, SiblingTokens, padded, run_compiled
from langchain_mara.policy.loaded_model import LoadedModel
from langchain_mara.policy.packed_linear import is_packed

PREFILL_TOKENS = 1024
# With many keys a pass takes fewer tokens, so that its mask stays within some MiB, but enough to be worth a pass.
_MASK_ENTRIES = 2**21
_FEWEST_TOKENS = 256


class PolicyModel:
    """Runs passes of a frozen causal language model over the rows of a `RaggedCache`.

    Args:
        model: Any `AutoModelForCausalLM` with standard attention. Passes run in evaluation mode; a model in
            training mode is given its mode back after each.
        compile: Whether passes over siblings run as compiled graphs; where the model does not allow it they run as they
            are, after a warning.

    Attributes:
        loaded: What belongs to the model and is shared by all who use it.
        hidden_size: Size d of a state.
        vocabulary_size: Number of token ids.
        context: Most tokens a row may hold, or None where the model sets no limit.
        passes: Forward passes made so far, prefill included.
        prefilled: Tokens of prompts computed so far; those that were reused do not count.

    Raises:
        UnsupportedModelError: If the configuration tells that siblings cannot be evaluated in one pass. Whether the
            model computes them rightly is checked by `verify_siblings`.
    """

    def __init__(self, model: PreTrainedModel, *, compile: bool = False, _backend: Backend = "inductor") -> None:  # noqa: A002
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
        self.device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[assignment]
        self.passes = self.prefilled = 0
        self._backend = _backend
        if compile and is_packed(model):
            compile = False  # noqa: A001
            warnings.warn(
                "Packed linear layers cannot be compiled: passes run as they are. Load the model with packed=False.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.compile = compile

    @property
    def name(self) -> str:
        """Name to use in messages: the checkpoint's, or the architecture's."""
        return str(getattr(self.model, "name_or_path", "") or type(self.model).__name__)

    def new_cache(self) -> RaggedCache:
        """An empty cache for this model."""
        return RaggedCache(int(self.config.num_hidden_layers), self.device, static=self.compile)

    def prefill(self, cache: RaggedCache, first_row: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Commits whole prompts to fresh rows.

        Short prompts share a pass, packed end to end without padding; a long one goes in chunks.

        Args:
            cache: Rows `first_row` and up must be free.
            first_row: Row of the first prompt; the others follow.
            prompts: Token ids, none empty.

        Returns:
            (len(prompts), d) states of the last prompt tokens.
        """
        cache.reserve(first_row + len(prompts), max(map(len, prompts)))
        states = []
        row = first_row
        for pack in _packs(prompts, PREFILL_TOKENS):
            alone = len(pack) == 1
            states.append(self.extend(cache, row, pack, [0]) if alone else self._prefill_packed(cache, row, pack))
            row += len(pack)
        return torch.cat(states)

    def _prefill_packed(self, cache: RaggedCache, first_row: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        rows = torch.repeat_interleave(torch.arange(len(prompts)), lengths).to(self.device)
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts]).to(self.device)
        token_ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=self.device)
        cache.begin_pass(cache.flat(first_row + rows, positions), read=None)
        same_prompt = rows[None, :, None] == rows[None, None, :]

        def visible(window: int | None) -> Tensor:
            return visible_keys(positions[None], positions[None], window) & same_prompt

        states = self._forward(cache, token_ids, positions[None], visible)
        cache.commit(first_row + rows, positions, positions)
        self.prefilled += len(rows)
        last: Tensor = states[0, lengths.cumsum(0).to(states.device) - 1]
        return last

    def extend(
        self, cache: RaggedCache, first_row: int, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Tensor:
        """Commits tokens to consecutive rows behind what they hold already, long ones in chunks.

        Args:
            cache: Row `first_row + i` holds `starts[i]` tokens, in slots in order of position.
            first_row: Row of the first sequence; the others follow.
            token_ids: What each row is extended by; none empty.
            starts: Tokens each row holds.

        Returns:
            (rows, d) states of the last tokens.
        """
        rows, lengths = len(token_ids), [len(ids) for ids in token_ids]
        longest = max(lengths)
        cache.reserve(first_row + rows, max(starts) + longest)
        # Padding stands behind a row's tokens, where nothing of the row sees it, and is never committed.
        padded = pad_sequence([torch.tensor(ids) for ids in token_ids], batch_first=True).to(self.device)
        first_slots = torch.tensor(starts).to(self.device).unsqueeze(1)
        row_index = first_row + torch.arange(rows, device=self.device).unsqueeze(1)
        last = padded.new_zeros((rows, self.hidden_size), dtype=self.model.dtype)
        for start, stop in _chunks(longest, rows, max(starts)):
            chunk = padded[:, start:stop]
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
        which, ahead = (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).nonzero(as_tuple=True)
        positions = (torch.tensor(starts)[which] + ahead).to(self.device)
        cache.commit(first_row + which.to(self.device), positions, positions)
        return last

    def siblings(
        self,
        cache: RaggedCache,
        token_ids: Tensor,
        slots: Tensor,
        positions: Tensor,
        span: int,
        depths: Tensor | None = None,
    ) -> Tensor:
        """Evaluates siblings of rows 0 … rows-1 in one pass; none sees another, drafted tokens see what they continue.

        Args:
            cache: Holds the committed prefixes; room for the slots must be reserved.
            token_ids: (rows, width) int64 candidates, and drafted tokens.
            slots: (rows, width) int64 scratch slots, distinct within a row.
            positions: (rows,) int64, the position all siblings of a row stand at.
            span: Slots of a row to attend to, above the highest slot in use.
            depths: (rows, width) int64: 0 for siblings, n for the n-th drafted token behind the row's first sibling;
                by default there are none.

        Returns:
            (rows, width, d) states after the final norm, in the model's dtype.
        """
        asked_rows, asked = token_ids.shape
        if self.compile:
            tokens = SiblingTokens(token_ids, slots, positions, span, depths)
            token_ids, slots, positions, span, depths = padded(tokens)
            cache.reserve(len(positions), span)
        rows, width = token_ids.shape
        row_index = torch.arange(rows, device=slots.device).unsqueeze(-1)
        cache.begin_pass(cache.flat(row_index, slots).flatten(), read=(0, rows, span))
        query_positions = positions.unsqueeze(-1).expand(rows, width)
        if depths is not None:
            query_positions = query_positions + depths
        places = slots.unsqueeze(1).expand(rows, width, width)

        def visible(window: int | None) -> Tensor:
            # Slots of the pass are not committed, so the prefix's part of the mask is False there.
            prefix = visible_keys(cache.positions[:rows, :span], query_positions, window)
            return prefix.scatter_(-1, places, visible_in_pass(query_positions, depths, window))

        states = self._forward(cache, token_ids, query_positions, visible, slots if self.compile else None)
        return states[:asked_rows, :asked]

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits (n, vocabulary) of (n, d) states, in the model's dtype."""
        # Asking a packed head for its weight would unpack it, which costs more than the product.
        weight = next(self.head.parameters(), states)
        return scale_logits(self.config, self.head(states.to(weight.device)))

    def _forward(
        self,
        cache: RaggedCache,
        token_ids: Tensor,
        positions: Tensor,
        visible: Callable[[int | None], Tensor],
        slots: Tensor | None = None,
    ) -> Tensor:
        """One forward pass, compiled if told the slots.

        `visible` gives the (batch, queries, keys) mask for a size of window.
        """
        implementation = attention_implementation(self.config)
        masks = {
            kind: attention_mask(visible(window), implementation, self.model.dtype)
            for kind, window in self.windows.items()
        }
        self.passes += 1
        inputs = {
            "input_ids": token_ids,
            # A model with one kind of layer takes the mask itself; only mixed ones know the dict.
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            "position_ids": positions.contiguous(),
        }
        with self.loaded.evaluation_mode(), grouped(self.model, self.config):
            if slots is not None and self.loaded.compilable:
                window = cache.window(len(slots), next(iter(masks.values())).shape[-1])
                compiled = run_compiled(self.backbone, inputs, slots, window, self._backend)
                if compiled is not None:
                    return compiled
                self.loaded.compilable = False
            states: Tensor = self.backbone(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
        return states


def _backbone(model: PreTrainedModel) -> nn.Module:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return model.base_model if decoder is None or decoder is model else decoder


def _chunks(tokens: int, rows: int, held: int) -> Iterator[tuple[int, int]]:
    """Begins and ends of the passes that extend rows, which hold up to `held` tokens, by up to `tokens` each."""
    start = 0
    while start < tokens:
        budget = min(PREFILL_TOKENS, max(_FEWEST_TOKENS, _MASK_ENTRIES // (held + start + PREFILL_TOKENS)))
        stop = min(tokens, start + max(1, budget // rows))
        yield start, stop
        start = stop


def _packs(prompts: Sequence[Sequence[int]], budget: int) -> Iterator[Sequence[Sequence[int]]]:
    """Consecutive groups of prompts whose tokens together stay within the budget, or one each."""
    start = 0
    while start < len(prompts):
        totals = accumulate(len(prompt) for prompt in prompts[start:])
        size = max(1, sum(total <= budget for total in totals))
        yield prompts[start : start + size]
        start += size

"""`model.generate(custom_generate=mara_generate)`: accept/reject decoding for users of transformers."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from langchain_mara.agents.base import Agent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request, eos_ids
from langchain_mara.exceptions import OptionsError
from langchain_mara.gates.kinds import Gate
from langchain_mara.options import BATCH_DEFAULTS, DEFAULTS, DecodingOptions, Order, Strategy
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.verification import verify_siblings

_MODES = {GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION}
# What generate hands to any model, and what says nothing that the ids do not.
_KNOWN_INPUTS = {
    "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position",
    "inputs_embeds", "token_type_ids", "synced_gpus",
}  # fmt: skip


def mara_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    streamer: BaseStreamer | None = None,
    agent: Agent | None = None,
    top_k: int = DEFAULTS.top_k,
    top_p: float = DEFAULTS.top_p,
    order: Order | None = None,
    strategy: Strategy = DEFAULTS.strategy,
    strength: float = DEFAULTS.strength,
    accept_threshold: float = DEFAULTS.accept_threshold,
    fallback: int = DEFAULTS.fallback,
    gate: Gate | None = DEFAULTS.gate,
    width: int | None = BATCH_DEFAULTS.width,
    draft: int = BATCH_DEFAULTS.draft,
    stop_strings: str | list[str] | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decodes with accept/reject what transformers' `generate` has prepared.

    Do not call it yourself. Pass it to `generate`: `model.generate(input_ids, custom_generate=mara_generate,
    agent=agent, top_k=40, top_p=0.95, max_new_tokens=64)`. Lengths and EOS ids of the generation config, logits
    processors, stopping criteria and streamers work as in plain `generate`. Rows with logits processors,
    or with stopping criteria of your own, go step by step together, because these may keep state for the whole batch.

    Args:
        model: The policy model.
        input_ids: (batch, length) int64 prompts, left-padded where `attention_mask` is 0.
        logits_processor: Logits processors from `generate`, applied before the candidate set is cut.
        stopping_criteria: Stopping criteria from `generate`, called after every step with CPU ids.
        generation_config: Configuration from `generate`. With `do_sample=True` candidates are examined in a drawn order
            (seeded by torch's global generator), so the first accepted candidate is a sample.
        streamer: Streamer from `generate`; takes a batch of one only, as in plain `generate`.
        agent: Agent that accepts or rejects candidates; None decodes without an agent.
        top_k: Most candidates at a position.
        top_p: Nucleus mass of the renormalized top-k candidates.
        order: Order of examination; by default `sampled` with `do_sample=True`, else `descending`.
        strategy: Which candidate is emitted; see `DecodingOptions`.
        strength: Weight of the agent in the `guided` strategy; see `DecodingOptions`.
        accept_threshold: Accept probability that a candidate must exceed.
        fallback: Index of the candidate to emit if all are rejected; see `DecodingOptions`.
        gate: Where the agent is asked; see `DecodingOptions`.
        width: Most siblings of a row in one pass; None chooses it by measured times.
        draft: Most drafted tokens of a row in one pass.
        stop_strings: Refused, because `generate` keeps the tokenizer to itself. Give
            `stopping_criteria=[StopStringCriteria(tokenizer, stop_strings)]`, or see `hooks/generate_method.py`.
        **model_kwargs: Other arguments from `generate`, of which only `attention_mask` is used; what would change the
            answer, such as `inputs_embeds`, is refused.

    Returns:
        (batch, longest) int64 sequences, prompts included, right-padded; a `GenerateDecoderOnlyOutput` with
        `return_dict_in_generate=True`.

    Raises:
        OptionsError: If the generation config requests beams, scores, or anything else that is not supported.
        PromptError: If a prompt is empty or leaves no room in the context.
    """
    _refuse_unsupported(generation_config, input_ids, stop_strings, model_kwargs)
    options = DecodingOptions.parse(
        top_k=top_k,
        top_p=top_p,
        order=order or ("sampled" if generation_config.do_sample else "descending"),
        strategy=strategy,
        strength=strength,
        accept_threshold=accept_threshold,
        fallback=fallback,
        gate=gate,
        max_new_tokens=max(1, generation_config.max_length - input_ids.shape[1]),
        seed=int(torch.randint(2**31, ()).item()) if generation_config.do_sample else 0,
    )
    padding = _left_padding(input_ids, model_kwargs.get("attention_mask"))
    rows = _Rows(input_ids, generation_config.pad_token_id, logits_processor)
    joint = bool(logits_processor) or not all(map(_keeps_no_state, stopping_criteria))
    rows.requests = [
        Request(
            ids[pad:],
            options.model_copy(update={"seed": options.seed + i}),
            agent,
            eos_ids(generation_config.eos_token_id),
            joint_process=rows if joint else None,
        )
        for i, (ids, pad) in enumerate(zip(input_ids.tolist(), padding, strict=True))
    ]
    streamer = streamer or _streamer_of_generate()
    policy = PolicyModel(model)
    verify_siblings(policy)
    for decision in decode(policy, rows.requests, batch_size=len(rows.requests), width=width, draft=draft):
        if not joint:
            rows.add(decision.request, decision.token_id)
            rows.stop([decision.request], stopping_criteria)
        elif rows.is_new_step():
            rows.stop(rows.requests, stopping_criteria)
        if streamer is not None:
            streamer.put(torch.tensor([decision.token_id]))
    if streamer is not None:
        streamer.end()
    sequences = rows.padded().to(input_ids.device)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
    return sequences


class _Rows:
    """The padded rows of a batch, as logits processors and stopping criteria know them from `generate`.

    It is the `JointProcess` of the requests that go step by step together.

    Args:
        input_ids: (batch, length) int64.
        pad_token_id: Token that fills up rows that have ended, or None.
        processors: Logits processors from `generate`.

    Attributes:
        requests: The requests of the rows.
    """

    __name__ = "list"  # in messages: "The logits processor list …"

    def __init__(self, input_ids: Tensor, pad_token_id: int | None, processors: LogitsProcessorList) -> None:
        self.requests: list[Request] = []
        self._token_ids: list[list[int]] = input_ids.tolist()
        self._pad_token_id = pad_token_id
        self._processors = processors
        self._length = input_ids.shape[1]
        self._last: tuple[int, Tensor] | None = None

    def add(self, request: Request, token_id: int) -> None:
        """Appends a token to the row of a request."""
        self._token_ids[self.requests.index(request)].append(token_id)

    def __call__(self, requests: Sequence[Request], scores: Tensor) -> Tensor:
        """Calls the processors with the whole batch; rows that have ended get scores of zero."""
        rows = [self.requests.index(request) for request in requests]
        token_ids = self.padded()
        # Where memory ran out, a position is cut again. Processors must see it once.
        if self._last is None or self._last[0] != token_ids.shape[1]:
            whole = scores.new_zeros(len(self.requests), scores.shape[1])
            whole[rows] = scores
            processed = self._processors(token_ids.to(scores.device), whole)  # type: ignore[arg-type]
            if not isinstance(processed, Tensor) or processed.shape != whole.shape:
                return processed  # the caller says what is wrong with it
            self._last = token_ids.shape[1], processed
        return self._last[1][rows]

    def is_new_step(self) -> bool:
        """Whether the rows have grown since the last call."""
        before, self._length = self._length, max(map(len, self._token_ids))
        return self._length > before

    def stop(self, requests: Sequence[Request], criteria: StoppingCriteriaList) -> None:
        """Ends those of the requests that the criteria want to end: one request, or all of them."""
        alone = len(requests) == 1
        token_ids = torch.tensor([self._token_ids[self.requests.index(requests[0])]]) if alone else self.padded()
        over = criteria(token_ids, None).tolist()
        for request, is_over in zip(requests, over, strict=True):
            if is_over:
                request.cancel()

    def padded(self) -> Tensor:
        """(batch, longest) int64; rows that have ended are filled up for good."""
        longest = max(map(len, self._token_ids))
        for ids in self._token_ids:
            if len(ids) < longest and self._pad_token_id is None:
                raise OptionsError("Answers have different lengths and there is no pad token: pass pad_token_id=...")
            ids.extend([self._pad_token_id] * (longest - len(ids)))  # type: ignore[list-item]
        return torch.tensor(self._token_ids)


def _keeps_no_state(criterion: StoppingCriteria) -> bool:
    """Whether a stopping criterion is transformers' own, which look at the ids alone or at the clock."""
    return type(criterion).__module__.startswith("transformers.")


def _refuse_unsupported(
    config: GenerationConfig, input_ids: Tensor, stop_strings: object, model_kwargs: Mapping[str, Any]
) -> None:
    if (config.num_beams or 1) > 1:
        raise OptionsError("mara_generate decodes one sequence per prompt; leave num_beams at 1.")
    mode = config.get_generation_mode()
    if mode not in _MODES:
        raise OptionsError(f"mara_generate does not do {mode.value}. Leave out the arguments that ask for it.")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise OptionsError(f"mara_generate does not return what {name} asks for; leave it off.")
    if stop_strings is not None:
        raise OptionsError(
            "generate does not hand its tokenizer to mara_generate, so stop_strings cannot be found. Give "
            "stopping_criteria=[StopStringCriteria(tokenizer, stop_strings)] of transformers instead."
        )
    _refuse_inputs(input_ids, model_kwargs)


def _refuse_inputs(input_ids: Tensor, model_kwargs: Mapping[str, Any]) -> None:
    """Refuses inputs of the model that would be ignored, which the answer depends on."""
    if model_kwargs.get("inputs_embeds") is not None:
        raise OptionsError(
            "mara_generate decodes token ids, but got inputs_embeds. An agent judges the states of tokens, so give "
            "input_ids. To put vectors before a prompt, add them to the model's embedding as tokens."
        )
    mask, positions, cache = (model_kwargs.get(name) for name in ("attention_mask", "position_ids", "past_key_values"))
    if cache is not None and cache.get_seq_length():
        raise OptionsError(
            f"mara_generate keeps a cache of its own, but got past_key_values of {cache.get_seq_length()} tokens. "
            "Leave them out and give all tokens as input_ids."
        )
    if positions is not None:
        visible = torch.ones_like(input_ids) if mask is None else mask.to(input_ids)
        usual = (visible.cumsum(-1) - 1)[visible.bool()]
        if positions.shape != input_ids.shape or not torch.equal(positions[visible.bool()].to(usual), usual):
            raise OptionsError("mara_generate counts positions from 0 on in each prompt; leave out position_ids.")
    ignored = sorted(name for name, value in model_kwargs.items() if value is not None and name not in _KNOWN_INPUTS)
    if ignored:
        raise OptionsError(f"mara_generate reads text only, but got {', '.join(ignored)}. Leave such inputs out.")


def _left_padding(input_ids: Tensor, attention_mask: Tensor | None) -> list[int]:
    """Number of padding tokens before each prompt, from the (batch, length) attention mask."""
    if attention_mask is None:
        return [0] * input_ids.shape[0]
    if not bool((attention_mask.diff(dim=1) >= 0).all()):
        raise OptionsError("The prompts must be left-padded: set padding_side='left' on the tokenizer.")
    counts: list[int] = (attention_mask == 0).sum(1).tolist()
    return counts


def _streamer_of_generate() -> BaseStreamer | None:
    """The streamer given to `generate`, read from its frame.

    `generate` (transformers 4.56 … 5.23) passes every prepared argument to a callable `custom_generate` except the
    streamer, although it has already put the prompt into it.
    """
    frame = inspect.currentframe()
    for _ in range(2):
        frame = frame.f_back if frame is not None else None
    is_generate = frame is not None and frame.f_code.co_name == "generate"
    # Not every streamer is a `BaseStreamer`: that of `transformers serve` only has its methods.
    return frame.f_locals.get("streamer") if frame is not None and is_generate else None

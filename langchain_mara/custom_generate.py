"""`model.generate(custom_generate=mara_generate)`: accept/reject decoding for users of transformers."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import LogitsProcess, Request, eos_ids
from langchain_mara.exceptions import OptionsError
from langchain_mara.options import BATCH_DEFAULTS, DEFAULTS, DecodingOptions, Order, Strategy
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.verification import verify_siblings


def mara_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    streamer: BaseStreamer | None = None,
    agent: MaraAgent | None = None,
    top_k: int = DEFAULTS.top_k,
    top_p: float = DEFAULTS.top_p,
    order: Order | None = None,
    strategy: Strategy = DEFAULTS.strategy,
    accept_threshold: float = DEFAULTS.accept_threshold,
    fallback: int = DEFAULTS.fallback,
    width: int | None = BATCH_DEFAULTS.width,
    draft: int = BATCH_DEFAULTS.draft,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decodes with accept/reject what transformers' `generate` has prepared.

    Do not call it yourself. Pass it to `generate`: `model.generate(input_ids, custom_generate=mara_generate,
    agent=agent, top_k=40, top_p=0.95, max_new_tokens=64)`. Lengths and EOS ids of the generation config, logits
    processors, stopping criteria and streamers work as in plain `generate`.

    Args:
        model: The policy model.
        input_ids: (batch, length) int64 prompts, left-padded where `attention_mask` is 0.
        logits_processor: Logits processors from `generate`, applied before the candidate set is cut.
        stopping_criteria: Stopping criteria from `generate`, called for each row after every token, with CPU ids.
        generation_config: Configuration from `generate`. With `do_sample=True` candidates are examined in a drawn order
            (seeded by torch's global generator), so the first accepted candidate is a sample.
        streamer: Streamer from `generate`; takes a batch of one only, as in plain `generate`.
        agent: Agent that accepts or rejects candidates; None decodes without an agent.
        top_k: Most candidates at a position.
        top_p: Nucleus mass of the renormalized top-k candidates.
        order: Order of examination; by default `sampled` with `do_sample=True`, else `descending`.
        strategy: Which accepted candidate is emitted; see `DecodingOptions`.
        accept_threshold: Accept probability that a candidate must exceed.
        fallback: Index of the candidate to emit if all are rejected; see `DecodingOptions`.
        width: Most siblings of a row in one pass; None chooses it by measured times.
        draft: Most drafted tokens of a row in one pass.
        **model_kwargs: Other arguments from `generate`, of which only `attention_mask` is used.

    Returns:
        (batch, longest) int64 sequences, prompts included, right-padded; a `GenerateDecoderOnlyOutput` with
        `return_dict_in_generate=True`.

    Raises:
        OptionsError: If the generation config requests beams, scores, or anything else that is not supported.
        PromptError: If a prompt is empty or leaves no room in the context.
    """
    _refuse_unsupported(generation_config, logits_processor, input_ids)
    options = DecodingOptions.parse(
        top_k=top_k,
        top_p=top_p,
        order=order or ("sampled" if generation_config.do_sample else "descending"),
        strategy=strategy,
        accept_threshold=accept_threshold,
        fallback=fallback,
        max_new_tokens=max(1, generation_config.max_length - input_ids.shape[1]),
        seed=int(torch.randint(2**31, ()).item()) if generation_config.do_sample else 0,
    )
    padded = input_ids.tolist()
    padding = _left_padding(input_ids, model_kwargs.get("attention_mask"))
    requests = [
        Request(
            ids[pad:],
            options.model_copy(update={"seed": options.seed + i}),
            agent,
            eos_ids(generation_config.eos_token_id),
            _for_row(logits_processor, ids[:pad], i, len(padded)) if logits_processor else None,
        )
        for i, (ids, pad) in enumerate(zip(padded, padding, strict=True))
    ]
    streamer = streamer or _streamer_of_generate()
    rows = dict(zip(requests, padded, strict=True))
    policy = PolicyModel(model)
    verify_siblings(policy)
    for decision in decode(policy, requests, batch_size=len(requests), width=width, draft=draft):
        ids = rows[decision.request]
        ids.append(decision.token_id)
        if streamer is not None:
            streamer.put(torch.tensor([decision.token_id]))
        if bool(stopping_criteria(torch.tensor([ids]), None).any()):
            decision.request.cancel()
    if streamer is not None:
        streamer.end()
    sequences = _right_padded(list(rows.values()), generation_config).to(input_ids.device)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
    return sequences


def _refuse_unsupported(config: GenerationConfig, processors: LogitsProcessorList, input_ids: Tensor) -> None:
    if (config.num_beams or 1) > 1:
        raise OptionsError("mara_generate decodes one sequence per prompt; leave num_beams at 1.")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise OptionsError(f"mara_generate does not return what {name} asks for; leave it off.")
    guided = any(isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor) for processor in processors)
    if guided and input_ids.shape[0] > 1:
        raise OptionsError(
            "guidance_scale keeps one cache for all prompts, but mara_generate decodes them independently. "
            "Generate one prompt at a time."
        )


def _left_padding(input_ids: Tensor, attention_mask: Tensor | None) -> list[int]:
    """Number of padding tokens before each prompt, from the (batch, length) attention mask."""
    if attention_mask is None:
        return [0] * input_ids.shape[0]
    if not bool((attention_mask.diff(dim=1) >= 0).all()):
        raise OptionsError("The prompts must be left-padded: set padding_side='left' on the tokenizer.")
    counts: list[int] = (attention_mask == 0).sum(1).tolist()
    return counts


def _for_row(processors: LogitsProcessorList, padding: list[int], row: int, rows: int) -> LogitsProcess:
    """Applies processors that `generate` prepared for a padded batch to one row without padding.

    Some processors hold one value per row of the batch. So they get a batch that repeats this row, and the result is
    read at the row's own index.
    """

    def process(input_ids: Tensor, scores: Tensor) -> Tensor:
        prefix = torch.tensor([padding], dtype=input_ids.dtype, device=input_ids.device)
        ids = torch.cat([prefix, input_ids], dim=1)
        processed: Tensor = processors(ids.expand(rows, -1), scores.repeat(rows, 1))  # type: ignore[arg-type]
        return processed[row : row + 1]

    return process


def _streamer_of_generate() -> BaseStreamer | None:
    """The streamer given to `generate`, read from its frame.

    `generate` (transformers 4.56 … 5.23) passes every prepared argument to a callable `custom_generate` except the
    streamer, although it has already put the prompt into it.
    """
    frame = inspect.currentframe()
    for _ in range(2):
        frame = frame.f_back if frame is not None else None
    is_generate = frame is not None and frame.f_code.co_name == "generate"
    streamer = frame.f_locals.get("streamer") if frame is not None and is_generate else None
    return streamer if isinstance(streamer, BaseStreamer) else None


def _right_padded(rows: list[list[int]], config: GenerationConfig) -> Tensor:
    longest = max(map(len, rows))
    pad = config.pad_token_id
    if pad is None and any(len(row) < longest for row in rows):
        raise OptionsError("Answers have different lengths and there is no pad token: pass pad_token_id=...")
    return torch.tensor([row + [pad or 0] * (longest - len(row)) for row in rows])

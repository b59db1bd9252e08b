"""`generate(custom_generate=mara_generate)`: the engine for people who use transformers directly."""

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
    """Decodes what `generate` has prepared with the accept/reject loop.

    Not called directly: `model.generate(input_ids, custom_generate=mara_generate, agent=agent,
    top_k=40, top_p=0.95, max_new_tokens=64)`. The generation config's lengths and EOS ids, the
    logits processors, the stopping criteria and the streamer are honoured as in plain `generate`.

    Args:
        model: The policy model.
        input_ids: (batch, length) int64, left-padded where an `attention_mask` says so.
        logits_processor: Prepared by `generate`; applied before the candidate set is cut.
        stopping_criteria: Prepared by `generate`; asked row by row after every token, with CPU ids.
        generation_config: Prepared by `generate`. `do_sample=True` draws the order of candidates, so
            that the first accepted is a sample (seeded by torch's global generator).
        streamer: Prepared by `generate`; batch of one only, as there.
        agent: Accepts or rejects; None is plain decoding.
        top_k: Most candidates of a position.
        top_p: Nucleus mass, on the renormalised top-k.
        order: Order of examination; by default `sampled` under `do_sample`, else `descending`.
        strategy: See `DecodingOptions`.
        accept_threshold: See `DecodingOptions`.
        fallback: See `DecodingOptions`.
        width: Most siblings of a row in one pass; None chooses it by measuring.
        draft: Most drafted tokens of a row in one pass; see `decode`.
        **model_kwargs: `attention_mask` is used; a prepared cache is not needed and left alone.

    Returns:
        (batch, longest) int64 sequences, prompt included, right-padded; or a
        `GenerateDecoderOnlyOutput` under `return_dict_in_generate`.

    Raises:
        OptionsError: If the generation config asks for beams, scores, or another unsupported thing.
        PromptError: If a prompt is empty or leaves no room in the context.
    """
    _refuse(generation_config, logits_processor, input_ids)
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
            _of_row(logits_processor, ids[:pad], i, len(padded)) if logits_processor else None,
        )
        for i, (ids, pad) in enumerate(zip(padded, padding, strict=True))
    ]
    streamer = streamer or _streamer_of_generate()
    rows = dict(zip(requests, padded, strict=True))
    policy = PolicyModel(model)
    verify_siblings(policy)
    for decision in decode(policy, requests, batch_size=len(requests), width=width, draft=draft):
        if decision.token_id is None:
            continue
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


def _refuse(config: GenerationConfig, processors: LogitsProcessorList, input_ids: Tensor) -> None:
    if (config.num_beams or 1) > 1:
        raise OptionsError("mara_generate decodes one sequence per row; leave num_beams at 1.")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise OptionsError(f"mara_generate does not return what {name} asks for; leave it off.")
    guided = any(isinstance(one, UnbatchedClassifierFreeGuidanceLogitsProcessor) for one in processors)
    if guided and input_ids.shape[0] > 1:
        raise OptionsError(
            "guidance_scale keeps one cache for all rows, and rows of mara_generate advance independently. "
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


def _of_row(processors: LogitsProcessorList, padding: list[int], row: int, rows: int) -> LogitsProcess:
    """Applies processors that `generate` prepared for a whole padded batch to one ragged row.

    Some hold a value per row of the batch, so the row is shown in every place and taken from its own.
    """

    def process(input_ids: Tensor, scores: Tensor) -> Tensor:
        prefix = torch.tensor([padding], dtype=input_ids.dtype, device=input_ids.device)
        ids = torch.cat([prefix, input_ids], dim=1)
        processed: Tensor = processors(ids.expand(rows, -1), scores.repeat(rows, 1))  # type: ignore[arg-type]
        return processed[row : row + 1]

    return process


def _streamer_of_generate() -> BaseStreamer | None:
    """The streamer given to `generate`, read from its frame.

    `generate` (transformers 4.56 … 5.23) hands a callable `custom_generate` every prepared argument
    but the streamer, although it has put the prompt into it already.
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
        raise OptionsError("Rows end at different lengths and there is no pad token: pass pad_token_id=...")
    return torch.tensor([row + [pad or 0] * (longest - len(row)) for row in rows])

"""What a checkpoint's generation config asks of every answer: penalties, suppressed and forced tokens, bad words.

Transformers' own `generate` makes logits processors of it, for `mara_generate` as for anybody. The same function makes
those of `MaraLLM` and `ChatMara`, so there is one way.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from langchain_mara.options import DecodingOptions

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedModel

# How candidates are drawn is up to the decoding options, and guidance would need a second prompt.
_NOT_READ = {"do_sample": False, "num_beams": 1, "guidance_scale": None}


class PenaltyFields(BaseModel):
    """Fields that the LangChain classes share and that change scores before candidate sets are cut.

    None leaves what the checkpoint's generation config says.
    """

    repetition_penalty: float | None = Field(default=None, gt=0)
    """Factor by which tokens of the prompt and the answer lose; 1 is none."""
    no_repeat_ngram_size: int | None = Field(default=None, ge=0)
    """Number of tokens in a row that no answer repeats, the prompt included; 0 is none."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability of a candidate, as a share of that of the most probable one."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """What the score of each token that the answer holds loses, once."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """What the score of each token that the answer holds loses, for each time."""


class CountPenalty:
    """OpenAI's penalties on the tokens of the answer, which transformers lacks.

    Args:
        prompt_length: Number of tokens before the answer.
        presence: What a token loses that the answer holds.
        frequency: What it loses for each time.
    """

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self.prompt_length, self.presence, self.frequency = prompt_length, presence, frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Lowers the (rows, vocabulary) scores by what (rows, length) ids hold after the prompt."""
        answers = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, answers, torch.ones_like(answers, dtype=scores.dtype))
        return scores - counts * self.frequency - (counts > 0) * self.presence


def checkpoint_processors(
    model: "PreTrainedModel",
    prompt_ids: Sequence[int],
    options: DecodingOptions,
    eos: Collection[int],
    penalties: Any = None,
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Logits processors for one answer, as a new list, because some of them keep state.

    Args:
        model: The model, whose generation config is left as it is.
        prompt_ids: Token ids of the prompt.
        options: Options of the answer. `min_new_tokens`, if it is above 0, replaces the least lengths of the config.
        eos: Tokens that end the answer.
        penalties: An object with the fields of `PenaltyFields`, which replace those of the config.

    Returns:
        The processors; None if nothing asks for any.
    """
    given = {name: getattr(penalties, name, None) for name in PenaltyFields.model_fields}
    source: Any = model
    configured = getattr(source, "generation_config", None)
    if configured is None and not any(given.values()):
        return None
    from transformers import GenerationConfig, MinPLogitsWarper  # noqa: PLC0415 - loads much of transformers

    config = GenerationConfig() if configured is None else copy.deepcopy(configured)
    lengths = {"max_length": len(prompt_ids) + options.max_new_tokens}
    if options.min_new_tokens:
        lengths |= {"min_length": 0, "min_new_tokens": 0}
    replaced = {name: given[name] for name in ("repetition_penalty", "no_repeat_ngram_size") if given[name] is not None}
    for name, value in {**_NOT_READ, **lengths, **replaced, "eos_token_id": sorted(eos) or None}.items():
        setattr(config, name, value)
    device = source.get_input_embeddings().weight.device
    source._prepare_special_tokens(config, device=device, batch_size=1)  # noqa: SLF001 - as `generate` does
    processors: LogitsProcessorList = source._get_logits_processor(  # noqa: SLF001
        generation_config=config,
        input_ids_seq_length=len(prompt_ids),
        encoder_input_ids=torch.tensor([list(prompt_ids)], device=device),
        device=device,
        model_kwargs={},
    )
    if given["presence_penalty"] or given["frequency_penalty"]:
        presence, frequency = given["presence_penalty"] or 0.0, given["frequency_penalty"] or 0.0
        processors.append(CountPenalty(len(prompt_ids), presence, frequency))
    if given["min_p"]:
        # Transformers makes this one for sampling only. Here it limits the candidates in every order.
        processors.append(MinPLogitsWarper(given["min_p"]))
    return processors if len(processors) else None  # type: ignore[return-value]

"""What a checkpoint's generation config asks of every answer: penalties, suppressed and forced tokens, bad words.

Transformers' own `generate` makes logits processors of it, for `mara_generate` as for anybody. The same function makes
those of `MaraLLM` and `ChatMara`, so there is one way.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from langchain_mara.options import DecodingOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How candidates are drawn is up to the decoding options, and guidance would need a second prompt.
_NOT_READ = {"do_sample": False, "num_beams": 1, "guidance_scale": None}


def checkpoint_processors(
    model: "PreTrainedModel", prompt_ids: Sequence[int], options: DecodingOptions, eos: Collection[int]
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Logits processors for one answer, as a new list, because some of them keep state.

    Args:
        model: The model, whose generation config is left as it is.
        prompt_ids: Token ids of the prompt.
        options: Options of the answer. `min_new_tokens`, if it is above 0, replaces the least lengths of the config.
        eos: Tokens that end the answer.

    Returns:
        The processors; None if the config asks for nothing.
    """
    if getattr(model, "generation_config", None) is None:
        return None
    source: Any = model
    config = copy.deepcopy(source.generation_config)
    lengths = {"max_length": len(prompt_ids) + options.max_new_tokens}
    if options.min_new_tokens:
        lengths |= {"min_length": 0, "min_new_tokens": 0}
    for name, value in {**_NOT_READ, **lengths, "eos_token_id": sorted(eos) or None}.items():
        setattr(config, name, value)
    device = source.get_input_embeddings().weight.device
    source._prepare_special_tokens(config, device=device, batch_size=1)  # noqa: SLF001 - as `generate` does
    processors: Callable[[Tensor, Tensor], Tensor] = source._get_logits_processor(  # noqa: SLF001
        generation_config=config,
        input_ids_seq_length=len(prompt_ids),
        encoder_input_ids=torch.tensor([list(prompt_ids)], device=device),
        device=device,
        model_kwargs={},
    )
    return processors if len(processors) else None  # type: ignore[arg-type]

"""A tiny chat model of a family that says what a test wants, through transformers' own sequence bias."""

from typing import Any

import torch
from tool_families import tokenizer_of
from transformers import LlamaConfig, LlamaForCausalLM

from langchain_mara import ChatMara


def scripted_chat(family: str, answer: str, *, after: str, **fields: Any) -> ChatMara:
    """A chat model whose answer to every prompt is the same.

    Args:
        family: Family of the tokenizer and the chat template.
        answer: The answer. The EOS follows.
        after: Last token of the generation prompt.
        **fields: Fields of `ChatMara`.
    """
    tokenizer = tokenizer_of(family)
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(vocab_size=len(tokenizer), **size, max_position_embeddings=4096)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = LlamaForCausalLM(config).eval()
    script = [*tokenizer(after + answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    # The longer the beginning that fits, the more it counts.
    model.generation_config.sequence_bias = [[script[: place + 1], 100.0 * place] for place in range(1, len(script))]
    return ChatMara(model=model, tokenizer=tokenizer, max_new_tokens=600, **fields)

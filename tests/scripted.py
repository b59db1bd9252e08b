"""A tiny chat model of a family that says what a test wants, through transformers' own sequence bias."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tool_families import tokenizer_of
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from langchain_mara import ChatMara

FORCED = "<forced>"
"""What stands, in a turn's key, between the last message and the beginning of a forced call."""


def scripted_chat(family: str, answer: str, *, after: str, **fields: Any) -> ChatMara:
    """A chat model whose answer to every prompt is the same.

    Args:
        family: Family of the tokenizer and the chat template.
        answer: The answer. The EOS follows.
        after: Last token of the generation prompt.
        **fields: Fields of `ChatMara`.
    """
    tokenizer = tokenizer_of(family)
    model = _tiny_model(tokenizer)
    script = [*tokenizer(after + answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    # The longer the beginning that fits, the more it counts.
    model.generation_config.sequence_bias = [[script[: place + 1], 100.0 * place] for place in range(1, len(script))]
    return ChatMara(model=model, tokenizer=tokenizer, max_new_tokens=600, **fields)


def _tiny_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(vocab_size=len(tokenizer), **size, max_position_embeddings=4096)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    return LlamaForCausalLM(config).eval()


def turns_chat(folder: Path, turns: Mapping[tuple[str, str], str], **fields: Any) -> ChatMara:
    """A chat model that knows which turn of a conversation it is in by what was said last.

    Args:
        folder: A saved tokenizer with a ChatML template.
        turns: Role and text of the last message, or no role and the end of its text, and the answer to it. Where a call
            is forced, what is forced follows the text after `FORCED`, and the answer goes on there.
        **fields: Fields of `ChatMara`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = _tiny_model(tokenizer)
    biases = []
    for (role, said), answer in turns.items():
        text, _, forced = said.partition(FORCED)
        prompt = tokenizer(f"{text}<|im_end|>\n<|im_start|>assistant\n{forced}", add_special_tokens=False).input_ids
        if role:
            prompt = [*tokenizer(f"<|im_start|>{role}\n", add_special_tokens=False).input_ids, *prompt]
        script = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        known = [*prompt, *script]
        biases += [[known[: place + 1], 100.0 * place] for place in range(len(prompt), len(known))]
    model.generation_config.sequence_bias = biases
    return ChatMara(model=model, tokenizer=tokenizer, max_new_tokens=200, **fields)

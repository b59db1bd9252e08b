"""A tiny random model that can write any JSON, with the bundled tokenizer, and an agent that rejects half of it."""

from typing import Any

import torch
import transformers as hf
from families import tiny_agent
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara.grammar.engine import GrammarEngine
from langchain_mara.grammar.specification import GrammarFields, GrammarText, grammar_text
from langchain_mara.llms import MaraLLM
from langchain_mara.loading.models import DEMO_MODEL_FOLDER

TOKENIZER: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(DEMO_MODEL_FOLDER)
EOS = 2


def json_model() -> PreTrainedModel:
    """A random Llama in float64 with the vocabulary of the bundled tokenizer, which likes to close what is open."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=1, eos_token_id=EOS, pad_token_id=0,
        initializer_range=0.4,
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    closing = TOKENIZER.convert_tokens_to_ids(['"', "]", "}"])
    model.generation_config.sequence_bias = {(token,): 6.0 for token in closing}
    return model


def json_llm(**options: Any) -> MaraLLM:
    """An LLM on this model; its agent accepts half of the candidates that it is asked about."""
    agent = {"agent": tiny_agent(seed=3), "accept_threshold": 0.3}
    return MaraLLM(**{"model": json_model(), "tokenizer": TOKENIZER, **agent, **options})


def promised(schema: Any, **more: Any) -> dict[str, Any]:
    """The `response_format` of a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def text_of(**options: Any) -> GrammarText:
    """What the engine reads of options."""
    text = grammar_text(GrammarFields(**options))
    assert text is not None
    return text


def engine() -> GrammarEngine:
    """The engine of the bundled tokenizer."""
    return GrammarEngine.of(TOKENIZER)


def ids(text: str) -> list[int]:
    """Token ids of a text."""
    return list(TOKENIZER(text, add_special_tokens=False).input_ids)

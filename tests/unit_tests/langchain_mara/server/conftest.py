"""One server of the bundled model for the tests of each module."""

from collections.abc import Iterator

import pytest
import torch
from http_servers import Listening, app_of, listening
from scripted import scripted_chat
from tool_families import tokenizer_of
from transformers import LlamaConfig, LlamaForCausalLM

from langchain_mara import MaraLLM


@pytest.fixture(scope="session")
def demo() -> MaraLLM:
    """The bundled model with its agent, at a fixed width, so that rounding is the same in every run."""
    return MaraLLM.demo(max_new_tokens=12, width=4)


@pytest.fixture(scope="module")
def server(demo: MaraLLM) -> Iterator[Listening]:
    """A server of the bundled model, called `m`, and its agent, called `a`."""
    with listening(app_of(demo)) as running:
        yield running


@pytest.fixture(scope="session")
def endless() -> MaraLLM:
    """A tiny model whose answers take a minute, unless somebody ends them."""
    tokenizer = tokenizer_of("hermes")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2**17,
    )
    model = LlamaForCausalLM(config).eval()
    return MaraLLM(model=model, tokenizer=tokenizer, min_new_tokens=30_000, max_new_tokens=30_000)


@pytest.fixture(scope="module")
def calling() -> Iterator[Listening]:
    """A server of a model, called `m`, that thinks and then calls a tool, whatever it is asked."""
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    chat = scripted_chat("hermes", f"<think>Hm.</think>{call}", after="assistant\n")
    llm = MaraLLM(model=chat.model, tokenizer=chat.tokenizer, max_new_tokens=600)
    with listening(app_of(llm)) as running:
        yield running

"""A model's own `generate` with the agent in it, as `transformers serve` calls it."""

import asyncio
from typing import Any

import pytest
import torch
from families import tiny_agent, tiny_model
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cli.serving.utils import GenerateManager

from langchain_mara import mara_generate
from langchain_mara.exceptions import OptionsError
from langchain_mara.hooks.generate_method import replace_generate

IDS = torch.tensor([[5, 6, 7, 8]])
AGENT = tiny_agent(bias=0.0)
SETTINGS: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1}


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama-3")


@pytest.fixture
def expected() -> Tensor:
    return tiny_model("llama-3").generate(IDS, custom_generate=mara_generate, agent=AGENT, **SETTINGS)


def config(**settings: Any) -> GenerationConfig:
    return GenerationConfig(**{**SETTINGS, **settings})


async def streamed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: GenerationConfig) -> str:
    """The text that the manager of `transformers serve` streams."""
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    queue, _ = GenerateManager().generate_streaming(model, tokenizer, inputs, settings, "1")
    texts = []
    async with asyncio.timeout(30):
        while (item := await queue.get()) is not None:
            assert isinstance(item, str), item
            texts.append(item)
    return "".join(texts)


def test_generate_asks_the_agent(model: PreTrainedModel, expected: Tensor) -> None:
    plain = model.generate(IDS, **SETTINGS)
    replace_generate(model, AGENT)
    got = model.generate(IDS, **SETTINGS)
    assert torch.equal(got, expected)
    assert not torch.equal(got, plain)


async def test_the_streamer_of_transformers_serve(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, expected: Tensor
) -> None:
    replace_generate(model, AGENT)
    text = await streamed(model, tokenizer, config())
    assert text == tokenizer.decode(expected[0, 4:], skip_special_tokens=True)
    assert text


async def test_the_stop_of_transformers_serve(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, expected: Tensor
) -> None:
    replace_generate(model, AGENT)
    whole = tokenizer.decode(expected[0, 4:], skip_special_tokens=True)
    stop = whole[2:4]
    settings = config(stop_strings=[stop])
    text = await streamed(model, tokenizer, settings)
    assert text == whole[: len(text)] != whole
    assert stop in text
    assert settings.stop_strings == [stop]  # the caller's configuration stays as it is


def test_stop_strings_as_an_argument(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, expected: Tensor
) -> None:
    replace_generate(model, AGENT)
    stop = tokenizer.decode(expected[0, 5:6])
    got = model.generate(IDS, **SETTINGS, stop_strings=stop, tokenizer=tokenizer)
    assert got.shape[1] < expected.shape[1]


@pytest.mark.parametrize("name", ["generate_batch", "init_continuous_batching", "continuous_batching_context_manager"])
def test_continuous_batching_is_refused(model: PreTrainedModel, name: str) -> None:
    assert callable(getattr(model, name))
    replace_generate(model, AGENT)
    with pytest.raises(OptionsError, match=f"{name} asks for .* without the agent"):
        getattr(model, name)()


def test_a_paged_cache_is_refused(model: PreTrainedModel) -> None:
    replace_generate(model, AGENT)
    with pytest.raises(OptionsError, match="paged"):
        model.generate(IDS, cache_implementation="paged")

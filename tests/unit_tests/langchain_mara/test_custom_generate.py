"""`generate(custom_generate=mara_generate)` respects what `generate` has prepared."""

from typing import Any

import pytest
import torch
from families import cache_free, tiny_agent, tiny_model
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from langchain_mara import mara_generate
from langchain_mara.exceptions import AgentMismatchError, OptionsError

ALWAYS = tiny_agent(bias=100.0)
SOMETIMES = tiny_agent(bias=0.0)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama-3")


def padded(lengths: tuple[int, ...] = (4, 7, 2)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    longest = max(lengths)
    ids = torch.randint(2, 97, (len(lengths), longest), generator=generator)
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several eos": {"eos_token_id": list(range(1, 97, 6))},
    "min_new_tokens": {"eos_token_id": list(range(1, 97, 6)), "min_new_tokens": 5},
    "repetition_penalty": {"repetition_penalty": 2.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "max_length": {"max_length": 17, "max_new_tokens": None},
    "bad words": {"bad_words_ids": [[n] for n in range(10, 40)]},
    "constrained by row": {"prefix_allowed_tokens_fn": lambda row, _ids: list(range(2 + 30 * row, 30 + 30 * row))},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("agent", [ALWAYS, None], ids=["always accepts", "no agent"])
def test_accepting_everything_equals_generate(model: PreTrainedModel, setting: str, agent: Any) -> None:
    settings = {"max_new_tokens": 14, "do_sample": False, "pad_token_id": 1, **SETTINGS[setting]}
    expected = model.generate(**padded(), **settings)
    got = model.generate(**padded(), **settings, custom_generate=mara_generate, agent=agent)
    assert torch.equal(got, expected)


def test_the_agent_decides(model: PreTrainedModel) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = cache_free(model, SOMETIMES, [5, 6, 7, 8], top_k=9, top_p=0.9, max_new_tokens=12)
    got = model.generate(
        ids,
        custom_generate=mara_generate,
        agent=SOMETIMES,
        top_k=9,
        top_p=0.9,
        max_new_tokens=12,
        do_sample=False,
    )
    assert got[0, 4:].tolist() == expected.token_ids
    assert any(len(asked) > 1 for asked in expected.probabilities)


class Collect(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_the_streamer_gets_prompt_and_tokens(model: PreTrainedModel) -> None:
    ids = torch.tensor([[5, 6, 7]])
    streamer = Collect()
    got = model.generate(ids, custom_generate=mara_generate, agent=SOMETIMES, max_new_tokens=6, streamer=streamer)
    assert streamer.tokens == got[0].tolist()
    assert streamer.ended


class StopAt(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


def test_stopping_criteria_end_a_row(model: PreTrainedModel) -> None:
    got = model.generate(
        **padded(),
        custom_generate=mara_generate,
        agent=SOMETIMES,
        max_new_tokens=30,
        stopping_criteria=[StopAt(11)],
    )
    assert got.shape == (3, 11)


def test_sampling_follows_torchs_seed(model: PreTrainedModel) -> None:
    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        got = model.generate(
            torch.tensor([[5, 6, 7]]),
            custom_generate=mara_generate,
            agent=SOMETIMES,
            do_sample=True,
            max_new_tokens=8,
            num_return_sequences=2,
        )
        rows: list[list[int]] = got.tolist()
        return rows

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1)[0] != sample(1)[1]


def test_returns_a_dict_when_asked(model: PreTrainedModel) -> None:
    got = model.generate(
        torch.tensor([[5]]), custom_generate=mara_generate, max_new_tokens=3, return_dict_in_generate=True
    )
    assert got.sequences.shape == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_beams": 2}, OptionsError, "num_beams at 1"),
        ({"top_k": 0}, OptionsError, "top_k=0"),
        ({"top_p": 2.0}, OptionsError, "top_p=2"),
        ({"agent": tiny_agent(64)}, AgentMismatchError, "size 64"),
        ({"output_scores": True, "return_dict_in_generate": True}, OptionsError, "output_scores"),
        ({"guidance_scale": 1.5}, OptionsError, "one prompt at a time"),
        ({"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}, OptionsError, "padding_side='left'"),
        ({"eos_token_id": list(range(2, 97, 3)), "pad_token_id": None}, OptionsError, "pad_token_id"),
    ],
)
def test_refuses_what_it_does_not_do(
    model: PreTrainedModel, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with pytest.raises(error, match=message):
        model.generate(ids, **{"custom_generate": mara_generate, "max_new_tokens": 9, **arguments})

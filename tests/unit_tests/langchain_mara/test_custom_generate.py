"""`generate(custom_generate=mara_generate)` respects what `generate` has prepared."""

from typing import Any

import pytest
import torch
from families import cache_free, tiny_agent, tiny_look_ahead, tiny_model
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from langchain_mara import mara_generate
from langchain_mara.exceptions import AgentMismatchError, LogitsProcessorError, OptionsError
from langchain_mara.policy.model import PolicyModel

ALWAYS, AHEAD = tiny_agent(bias=100.0), tiny_look_ahead(bias=100.0)
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


def filled_cache() -> DynamicCache:
    """A cache that holds two tokens of each row."""
    cache = DynamicCache()
    for layer in range(3):
        cache.update(torch.zeros(2, 2, 2, 8), torch.zeros(2, 2, 2, 8), layer)
    return cache


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
@pytest.mark.parametrize("agent", [ALWAYS, AHEAD, None], ids=["always accepts", "looks ahead", "no agent"])
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
        ({"stop_strings": ["a"], "tokenizer": object()}, OptionsError, "StopStringCriteria"),
        ({"inputs_embeds": torch.zeros(2, 3, 32), "input_ids": None}, OptionsError, "got inputs_embeds"),
        ({"position_ids": torch.tensor([[3, 4, 5], [0, 1, 2]])}, OptionsError, "leave out position_ids"),
        ({"past_key_values": filled_cache()}, OptionsError, "past_key_values of 2 tokens"),
        ({"penalty_alpha": 0.6, "top_k": 4, "trust_remote_code": True}, OptionsError, "contrastive_search"),
        ({"logits_processor": [lambda _ids, scores: scores[:1]]}, LogitsProcessorError, r"returned \(1, 97\) .*"),
        ({"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}, OptionsError, "padding_side='left'"),
        ({"eos_token_id": list(range(2, 97, 3)), "pad_token_id": None}, OptionsError, "pad_token_id"),
    ],
)
def test_refuses_what_it_does_not_do(
    model: PreTrainedModel, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with pytest.raises(error, match=message):
        model.generate(**{"input_ids": ids, "custom_generate": mara_generate, "max_new_tokens": 9, **arguments})


def test_usual_positions_and_empty_caches_are_taken(model: PreTrainedModel) -> None:
    inputs = padded()
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    arguments = {**inputs, "max_new_tokens": 5, "pad_token_id": 1, "do_sample": False}
    got = model.generate(
        **arguments, position_ids=positions, past_key_values=DynamicCache(), custom_generate=mara_generate
    )
    assert torch.equal(got, model.generate(**arguments))


class Grammar(LogitsProcessor):
    """Keeps a state per row, as grammar engines do: odd tokens follow even ones, and only the EOS ends a row.

    It takes the last token of each row in every call, and refuses what its grammar forbids.
    """

    def __init__(self, eos: int) -> None:
        self.eos = eos
        self.ended: list[bool] = []
        self.lengths: list[int] = []
        self.odd: list[bool] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.lengths:
            self.ended, self.odd = [False] * len(input_ids), [bool(row % 2) for row in range(len(input_ids))]
        else:
            assert input_ids.shape[1] == self.lengths[-1] + 1
            assert len(input_ids) == len(self.ended)
            for row, token in enumerate(input_ids[:, -1].tolist()):
                if not self.ended[row]:
                    assert token == self.eos or bool(token % 2) is self.odd[row]
                    self.ended[row], self.odd[row] = token == self.eos, not self.odd[row]
        self.lengths.append(input_ids.shape[1])
        number = torch.arange(scores.shape[1])
        allowed = torch.stack([(number % 2 == int(odd)) | (number == self.eos) for odd in self.odd])
        return scores.masked_fill(~allowed & ~torch.tensor(self.ended)[:, None], -torch.inf)


@pytest.mark.parametrize("eos", [20, 64])
@pytest.mark.parametrize("agent", [ALWAYS, None], ids=["always accepts", "no agent"])
def test_processors_with_state_see_the_batch_once_per_step(model: PreTrainedModel, agent: Any, eos: int) -> None:
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 1, "eos_token_id": [eos, 30, 41]}
    inputs, theirs, ours = padded((4, 7, 2, 5)), Grammar(eos), Grammar(eos)
    expected = model.generate(**inputs, **settings, logits_processor=[theirs])
    got = model.generate(**inputs, **settings, logits_processor=[ours], custom_generate=mara_generate, agent=agent)
    assert torch.equal(got, expected)
    assert ours.lengths == theirs.lengths


@pytest.mark.parametrize("strategy", ["first-accept", "max-prob"])
def test_rows_that_wait_for_others_decide_as_if_alone(model: PreTrainedModel, strategy: str) -> None:
    """One sibling per pass: rows need different numbers of passes for a step."""
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, "top_k": 7, "strategy": strategy}
    inputs, seen = padded(), []

    def unchanged(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids.clone())
        return scores

    together = model.generate(
        **inputs, **settings, logits_processor=[unchanged], custom_generate=mara_generate, agent=SOMETIMES, width=1
    )
    apart = model.generate(**inputs, **settings, custom_generate=mara_generate, agent=SOMETIMES, width=1)
    assert torch.equal(together, apart)
    assert all(torch.equal(ids, together[:, : ids.shape[1]]) for ids in seen)
    assert [ids.shape[1] for ids in seen] == list(range(7, 7 + 12))


class Count(StoppingCriteria):
    """Ends row after row, by counting its own calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return torch.tensor([self.calls >= 4 + 2 * row for row in range(len(input_ids))])


def test_criteria_with_state_see_the_batch_once_per_step(model: PreTrainedModel) -> None:
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 1, "eos_token_id": 0}
    expected = model.generate(**padded(), **settings, stopping_criteria=[Count()])
    count = Count()
    got = model.generate(**padded(), **settings, stopping_criteria=[count], custom_generate=mara_generate, agent=ALWAYS)
    assert torch.equal(got, expected)
    assert count.calls == 8


def test_guidance_of_a_batch_equals_generate(model: PreTrainedModel) -> None:
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1, "guidance_scale": 1.5}
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    expected = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, **settings, custom_generate=mara_generate, agent=ALWAYS), expected)


def test_processors_with_state_are_called_once_where_memory_runs_out(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row begins again from its tokens; a batch of several cannot be parted."""
    siblings, settings = PolicyModel.siblings, {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 1}
    failing = iter([False, False, False, True] + [False] * 99)

    def sometimes(*args: Any, **kwargs: Any) -> Tensor:
        if next(failing):
            raise torch.OutOfMemoryError
        return siblings(*args, **kwargs)

    monkeypatch.setattr(PolicyModel, "siblings", sometimes)
    grammar, one = Grammar(96), torch.tensor([[5, 6, 8]])
    with pytest.warns(RuntimeWarning, match="Out of memory"):
        got = model.generate(one, **settings, logits_processor=[grammar], custom_generate=mara_generate, agent=ALWAYS)
    assert torch.equal(got, model.generate(one, **settings, logits_processor=[Grammar(96)]))
    failing = iter([False, True, False])
    with pytest.raises(torch.OutOfMemoryError, match="Generate fewer prompts at a time"):
        model.generate(**padded(), **settings, logits_processor=[Grammar(96)], custom_generate=mara_generate)

"""Whatever an answer depends on is part of the cache key, and empties the kept prefixes if they depend on it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from families import tiny_agent, tiny_model
from langchain_core.caches import InMemoryCache
from tokenizers.normalizers import Replace
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.llms import MaraLLM
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.loaded_model import LoadedModel
from langchain_mara.policy.model import PolicyModel

PROMPT = "is it so that the end of it is near, or is it not the end at all, and it is the end that is not near?"
Change = Callable[[MaraLLM], Any]


def change_row(llm: MaraLLM) -> None:
    """Writes one row of a matrix behind autograd's back, as for a new token's embedding."""
    ids = llm.encode(PROMPT)
    llm.model.get_input_embeddings().weight.data[ids[-1]] *= -3


def change_all(llm: MaraLLM) -> None:
    for weight in llm.model.parameters():
        weight.data.mul_(1.5)


def change_epsilon(llm: MaraLLM) -> None:
    for layer in llm.model.model.layers:
        layer.input_layernorm.variance_epsilon = 5.0


def change_activation(llm: MaraLLM) -> None:
    for layer in llm.model.model.layers:
        layer.mlp.act_fn = nn.Tanh()


def change_rope(llm: MaraLLM) -> None:
    llm.model.model.rotary_emb.inv_freq.mul_(3.0)


WEIGHTS: dict[str, Change] = {
    "a row written in place": change_row,
    "all weights written in place": change_all,
    "norm epsilon": change_epsilon,
    "activation": change_activation,
    "rope frequencies": change_rope,
}
OTHERS: dict[str, Change] = {
    "EOS ids": lambda llm: setattr(llm.model.generation_config, "eos_token_id", list(range(5, 97, 2))),
    "a special token": lambda llm: llm.tokenizer.add_special_tokens({"additional_special_tokens": ["the end"]}),
    "a chat template": lambda llm: setattr(llm.tokenizer, "chat_template", "{{ messages[0].content }}a"),
    "rules of the tokenizer": lambda llm: setattr(llm.tokenizer.backend_tokenizer, "normalizer", Replace("end", "he")),
}


@pytest.fixture
def fresh(make_tokenizer: Callable[[], PreTrainedTokenizerFast], agent: MaraAgent) -> MaraLLM:
    """An LLM whose model and tokenizer a test may change, with a cache of answers and kept prefixes."""
    return MaraLLM(
        model=tiny_model("llama-3"), tokenizer=make_tokenizer(), agent=agent, max_new_tokens=12, cache=InMemoryCache()
    )


def uncached(llm: MaraLLM) -> str:
    return llm.model_copy(update={"cache": False, "prefix_memory": 0}).invoke(PROMPT)


@pytest.mark.parametrize("change", {**WEIGHTS, **OTHERS})
def test_a_changed_model_gives_no_stale_answer(fresh: MaraLLM, change: str) -> None:
    before, key = fresh.invoke(PROMPT), fresh._identity()
    assert fresh.invoke(PROMPT) == before
    assert fresh._identity() == key
    {**WEIGHTS, **OTHERS}[change](fresh)
    expected = uncached(fresh)
    assert expected != before
    assert fresh.invoke(PROMPT) == expected
    assert fresh._identity() != key


@pytest.mark.parametrize("change", WEIGHTS)
def test_a_changed_model_reads_no_stale_prefix(fresh: MaraLLM, change: str) -> None:
    llm = fresh.model_copy(update={"cache": False})
    llm.invoke(PROMPT)
    assert llm.generate([PROMPT]).llm_output
    WEIGHTS[change](llm)
    assert llm.invoke(PROMPT) == uncached(llm)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_prompt_that_joins_a_running_batch_reads_no_stale_prefix(fresh: MaraLLM, cancelled: bool) -> None:
    """The weights change between prompts of one batch; the first may still be in its row."""
    model, ids = fresh.model, fresh.encode(PROMPT)
    cache = LoadedModel.of(model).prefix_cache(10**7)
    options = DecodingOptions(max_new_tokens=6)
    first, second, third = (Request(ids, options) for _ in range(3))

    def arriving() -> Iterator[Request | None]:
        yield first
        while not finished:
            yield None
        change_all(fresh)
        yield second
        while second not in finished:
            yield None
        yield third

    finished: list[Request] = []
    answers: dict[Request, list[int]] = {first: [], second: [], third: []}
    for decision in decode(PolicyModel(model), arriving(), batch_size=2, prefix_cache=cache):
        answers[decision.request].append(decision.token_id)
        if decision.finish_reason or (cancelled and decision.request is first):
            finished.append(decision.request)
            decision.request.cancel()
    expected = [decision.token_id for decision in decode(PolicyModel(model), [Request(ids, options)])]
    assert answers[second] == answers[third] == expected
    assert third.reused_tokens > 0


@pytest.mark.parametrize(
    "changes",
    [{"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, {"rms_norm_eps": 0.5}, {"hidden_act": "relu"}],
    ids=str,
)
def test_models_of_the_same_weights_and_another_configuration_differ(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, changes: dict[str, Any]
) -> None:
    other = type(model)(type(model.config)(**{**model.config.to_dict(), **changes})).double().eval()
    other.load_state_dict(model.state_dict())
    first, second = (MaraLLM(model=each, tokenizer=tokenizer, model_id="same") for each in (model, other))
    assert first._identity() != second._identity()


def test_a_setting_of_the_agent_counts(fresh: MaraLLM) -> None:
    class Eager(MaraAgent):
        shift = 0.0

        def accept_probability(self, states: torch.Tensor, action: int = 1) -> torch.Tensor:
            return super().accept_probability(states, action) + self.shift

    agent = Eager(**{name: getattr(fresh.agent, name) for name in ("hidden_size",)})
    llm = fresh.with_agent(agent)
    key = llm._identity()
    agent.shift = 0.3
    assert llm._identity() != key
    assert llm._identity() != fresh.with_agent(tiny_agent(seed=3))._identity()


def test_the_key_is_the_same_while_the_model_runs(fresh: MaraLLM) -> None:
    keys = []
    handle = fresh.model.model.layers[1].register_forward_hook(lambda *_: keys.append(fresh._identity()))
    fresh.invoke(PROMPT)
    handle.remove()
    assert len(keys) > 3
    assert all(key == fresh._identity() for key in keys)

"""Decoding leaves everything that users own as it was: their model, tokenizer, agent, and `sys.path`."""

import asyncio
import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import tiny_agent, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.llms import MaraLLM

PROMPTS = ["hi", "the end is it so"]
TOKENIZER_SETTINGS = ("padding_side", "truncation_side", "model_max_length", "pad_token", "chat_template")
RUNS: dict[str, Callable[[MaraLLM], Any]] = {
    "invoke": lambda llm: llm.invoke(PROMPTS[0]),
    "stream": lambda llm: list(llm.stream(PROMPTS[0])),
    "batch": lambda llm: llm.batch(PROMPTS),
    "abatch": lambda llm: asyncio.run(llm.abatch(PROMPTS)),
    "trace": lambda llm: llm.trace(PROMPTS)[0].to_html(),
    "chat": lambda llm: llm.as_chat().invoke(PROMPTS[0]),
}


def state_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, agent: MaraAgent) -> dict[str, Any]:
    """All that a run might change, in comparable form."""
    modules = [*model.named_modules(), *agent.named_modules()]
    weights = [*model.named_parameters(), *agent.named_parameters()]
    return {
        "modules": [(name, id(module), module.training) for name, module in modules],
        "weights": [
            (name, id(weight), weight.requires_grad, weight.device, weight._version) for name, weight in weights
        ],
        "gradients": [weight.grad for _, weight in weights],
        "generation_config": model.generation_config.to_dict(),
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "tokenizer": {name: getattr(tokenizer, name) for name in TOKENIZER_SETTINGS},
        "special_tokens": dict(tokenizer.special_tokens_map),
        "gradients_enabled": torch.is_grad_enabled(),
        "path": list(sys.path),
    }


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    run=st.sampled_from(sorted(RUNS)),
    model_trains=st.booleans(),
    agent_trains=st.booleans(),
    frozen=st.booleans(),
    attention=st.sampled_from(["sdpa", "eager"]),
    padding_side=st.sampled_from(["left", "right"]),
    pad_token=st.sampled_from([None, "</s>"]),
)
def test_a_run_leaves_what_users_own_as_it_was(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast],
    run: str,
    model_trains: bool,
    agent_trains: bool,
    frozen: bool,
    attention: str,
    padding_side: str,
    pad_token: str | None,
) -> None:
    model, agent, tokenizer = tiny_model("llama-3"), tiny_agent(seed=3), make_tokenizer()
    model.train(model_trains).set_attn_implementation(attention)
    model.model.layers[1].eval()
    model.generation_config.max_length = 7
    agent.train(agent_trains).requires_grad_(not frozen)
    tokenizer.padding_side, tokenizer.pad_token = padding_side, pad_token
    before = copy.deepcopy(state_of(model, tokenizer, agent))
    RUNS[run](MaraLLM(model=model, tokenizer=tokenizer, agent=agent, max_new_tokens=4))
    assert state_of(model, tokenizer, agent) == before


@pytest.mark.parametrize("run", sorted(RUNS))
def test_a_run_that_fails_leaves_the_modes_as_they_were(
    tokenizer: PreTrainedTokenizerBase, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, agent = tiny_model("llama-3").train(), tiny_agent(seed=3)
    llm = MaraLLM(model=model, tokenizer=tokenizer, agent=agent, max_new_tokens=4)
    before = copy.deepcopy(state_of(model, tokenizer, agent))

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(model.model.layers[2].mlp, "forward", fail)
    with pytest.raises(ZeroDivisionError):
        RUNS[run](llm)
    assert state_of(model, tokenizer, agent) == before

"""The policy of llama.cpp decides as that of transformers does."""

from collections.abc import Callable

import pytest
import torch
from decisions import run
from families import tiny_agent, tiny_look_ahead
from transformers import PreTrainedModel

from langchain_mara.agents.base import Agent
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.llama_cpp.model import LlamaCppModel
from langchain_mara.policy.llama_cpp.policy import LlamaCppPolicy
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import PrefixCache
from langchain_mara.policy.verification import verify_siblings

Load = Callable[..., LlamaCppModel]
Reference = Callable[[str], PreTrainedModel]
FAMILIES = ["llama-3", "llama-3.2", "mistral-v0.3", "qwen-2"]
PROMPTS = [[0, 5, 9, 33, 12, 60], [0, 7], [0, *range(20, 60)], [0, 5, 9, 33, 12, 60]]
AGENTS = {"state": tiny_agent(seed=3), "strict": tiny_agent(seed=1, bias=-3.0), "look-ahead": tiny_look_ahead(seed=2)}
AGENT = pytest.mark.parametrize("agent", [None, *AGENTS.values()], ids=["none", *AGENTS])


def requests(agent: Agent | None, **options: object) -> list[Request]:
    """Requests for all prompts."""
    values = DecodingOptions.parse(**{"max_new_tokens": 12, **options})
    return [Request(prompt, values, agent, frozenset({1})) for prompt in PROMPTS]


def decided(decisions: list[list[Decision]]) -> list[list[tuple[object, ...]]]:
    """What was decided, and of which candidates."""
    return [[(one.token_id, one.index, one.accepted, set(one.candidates)) for one in own] for own in decisions]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_logits_are_those_of_transformers(loaded: Load, reference: Reference, family: str) -> None:
    ours, theirs = LlamaCppPolicy(loaded(family)), PolicyModel(reference(family))
    with torch.inference_mode():
        cache = ours.new_cache()
        states, expected = ours.prefill(cache, 0, PROMPTS), theirs.prefill(theirs.new_cache(), 0, PROMPTS)
        torch.testing.assert_close(states, expected.float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.logits(states), theirs.logits(expected).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_siblings_are_verified(loaded: Load, family: str) -> None:
    verify_siblings(LlamaCppPolicy(loaded(family)))


@AGENT
@pytest.mark.parametrize("width", [1, 3, 40])
def test_decisions_are_those_of_transformers(loaded: Load, reference: Reference, agent: Agent, width: int) -> None:
    ours = run(LlamaCppPolicy(loaded("llama-3")), requests(agent), batch_size=3, width=width)
    theirs = run(PolicyModel(reference("llama-3")), requests(agent), batch_size=3)
    assert decided(ours) == decided(theirs)

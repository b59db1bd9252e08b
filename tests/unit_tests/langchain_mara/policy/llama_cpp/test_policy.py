"""The policy of llama.cpp decides as that of transformers does."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from decisions import run
from families import tiny_agent, tiny_look_ahead
from gguf import GGMLQuantizationType
from gguf_files import skip_without_llama_cpp, write_gguf
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_mara.agents.base import Agent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.llama_cpp.model import LlamaCppModel
from langchain_mara.policy.llama_cpp.policy import LlamaCppPolicy
from langchain_mara.policy.llama_cpp.settings import LlamaCppSettings
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import PrefixCache
from langchain_mara.policy.verification import verify_siblings

Load = Callable[..., LlamaCppModel]
Reference = Callable[[str], PreTrainedModel]
FAMILIES = ["llama-3", "llama-3.2", "mistral-v0.3", "qwen-2"]
PROMPTS = [[0, 5, 9, 33, 12, 60], [0, 7], [0, *range(20, 60)], [0, 5, 9, 33, 12, 60]]
REPEATING = [[44, 3, 44, 3, 44], [5, 6, 7], [9] * 12]
AGENTS = {"state": tiny_agent(seed=3), "strict": tiny_agent(seed=1, bias=-3.0), "look-ahead": tiny_look_ahead(seed=2)}
AGENT = pytest.mark.parametrize("agent", [None, *AGENTS.values()], ids=["none", *AGENTS])


def requests(agent: Agent | None, times: int = 1, **options: object) -> list[Request]:
    """Requests for all prompts."""
    values = DecodingOptions.parse(**{"max_new_tokens": 12, **options})
    return [Request(prompt, values, agent, frozenset({1})) for prompt in times * PROMPTS]


def decided(decisions: list[list[Decision]]) -> list[list[tuple[object, ...]]]:
    """What was decided, and of which candidates."""
    return [[(made.token_id, made.index, made.accepted, set(made.candidates)) for made in own] for own in decisions]


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


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_siblings_may_be_off_by_the_rounding_of_the_weights_only(
    reference: Reference,
    make_tokenizer: Callable[[], PreTrainedTokenizerFast],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    skip_without_llama_cpp()
    weights = GGMLQuantizationType[kind]
    file = write_gguf(reference("llama-3"), make_tokenizer(), tmp_path / "tiny.gguf", weights)
    policy = LlamaCppPolicy(LlamaCppModel(file, LlamaCppSettings(512, n_threads=1)))
    exact = policy.siblings
    monkeypatch.setattr(policy, "siblings", lambda *args, **kwargs: exact(*args, **kwargs) * 1.01)
    with nullcontext() if kind == "F16" else pytest.raises(UnsupportedModelError, match="other states"):
        verify_siblings(policy)


@AGENT
@pytest.mark.parametrize("width", [1, 3, 40])
def test_decisions_are_those_of_transformers(loaded: Load, reference: Reference, agent: Agent, width: int) -> None:
    ours = run(LlamaCppPolicy(loaded("llama-3")), requests(agent), batch_size=3, width=width)
    theirs = run(PolicyModel(reference("llama-3")), requests(agent), batch_size=3)
    assert decided(ours) == decided(theirs)


@pytest.mark.parametrize("strategy", ["max-prob", "guided", "random", "sampled"])
@AGENT
def test_strategies_choose_as_with_transformers(
    loaded: Load, reference: Reference, agent: Agent, strategy: str
) -> None:
    options = {"strategy": strategy, "order": "sampled", "temperature": 0.8, "fallback": -1}
    ours = run(LlamaCppPolicy(loaded("llama-3")), requests(agent, **options), width=2)
    assert decided(ours) == decided(run(PolicyModel(reference("llama-3")), requests(agent, **options)))


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("agent", [tiny_agent(bias=2.0), tiny_agent(bias=0.0), tiny_look_ahead(bias=1.0)])
def test_drafts_change_nothing(loaded: Load, reference: Reference, agent: Agent | None, width: int) -> None:
    def asked() -> list[Request]:
        options = DecodingOptions(top_k=12, max_new_tokens=30)
        return [Request(prompt, options, agent) for prompt in REPEATING]

    ours = run(LlamaCppPolicy(loaded("repeating")), asked(), draft=6, width=width)
    assert any(decision.drafted for own in ours for decision in own)
    assert decided(ours) == decided(run(PolicyModel(reference("repeating")), asked()))


@AGENT
def test_kept_prefixes_change_nothing(loaded: Load, agent: Agent) -> None:
    model, prefixes = loaded("llama-3"), PrefixCache(2**24)
    expected = decided(run(LlamaCppPolicy(model), requests(agent)))
    for _ in range(2):
        asked = requests(agent)
        assert decided(run(LlamaCppPolicy(model), asked, prefix_cache=prefixes)) == expected
    assert [request.reused_tokens for request in asked] == [0, 0, 32, 0]
    assert prefixes.size > 0


@pytest.mark.parametrize("strategy", ["first-accept", "max-prob"])
def test_more_candidates_than_sequences(loaded: Load, reference: Reference, strategy: str) -> None:
    options = {"strategy": strategy, "top_p": 1.0, "max_new_tokens": 4}
    asked, expected = (requests(AGENTS["strict"], 3, **options) for _ in range(2))
    ours = run(LlamaCppPolicy(loaded("llama-3")), asked, batch_size=12, width=40)
    assert decided(ours) == decided(run(PolicyModel(reference("llama-3")), expected, batch_size=12))


@AGENT
def test_rows_that_do_not_fit_wait(loaded: Load, agent: Agent) -> None:
    expected = decided(run(LlamaCppPolicy(loaded("llama-3")), requests(agent, 2, max_new_tokens=80)))
    with pytest.warns(RuntimeWarning, match="continuing with"):
        ours = run(LlamaCppPolicy(loaded("llama-3", 256)), requests(agent, 2, max_new_tokens=80), width=4)
    assert decided(ours) == expected


@AGENT
def test_nothing_is_left_behind(loaded: Load, agent: Agent) -> None:
    policy = LlamaCppPolicy(loaded("llama-3"))
    context = policy.model.context
    run(policy, requests(agent), width=3)
    stopped = decode(policy, requests(agent), width=3)
    next(stopped)
    stopped.close()
    del stopped
    gc.collect()
    context.give_back(context.take_sequence())
    assert len(context.known) == 0
    assert sorted(context._free) == list(range(context.most_sequences))
    assert all(context.length(sequence) == 0 for sequence in context._free)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_whole_sequences_and_logits_by_the_head(loaded: Load, reference: Reference, family: str) -> None:
    ours, theirs = LlamaCppPolicy(loaded(family)), PolicyModel(reference(family))
    with torch.inference_mode():
        states, expected = ours.states(PROMPTS), theirs.states(PROMPTS)
        for i, prompt in enumerate(PROMPTS):
            own, other = states[i, : len(prompt)], expected[i, : len(prompt)]
            torch.testing.assert_close(own, other.float(), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.logits(own), theirs.logits(other).float(), atol=1e-4, rtol=1e-4)
    ours.model.context.give_back(ours.model.context.take_sequence())
    assert len(ours.model.context.known) == 0


def test_hooks_count_passes(loaded: Load) -> None:
    policy, counted = LlamaCppPolicy(loaded("llama-3")), []
    handle = policy.backbone.register_forward_hook(lambda *_: counted.append(1))
    policy.passes = 0
    run(policy, requests(AGENTS["state"]), width=2)
    handle.remove()
    assert len(counted) == policy.passes > 0

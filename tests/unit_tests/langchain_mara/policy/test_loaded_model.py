"""LoadedModel: callers share prefixes without harming each other, and users' agents and modes stay as they are."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from families import GPT, tiny_agent, tiny_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.llms import MaraLLM
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.loaded_model import LoadedModel
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import BLOCK_TOKENS, KeysValues

PROMPT = list(range(BLOCK_TOKENS + 1))
BLOCK_BYTES = 2 * BLOCK_TOKENS * 4
META = torch.device("meta")


@pytest.fixture
def fresh_model() -> PreTrainedModel:
    """A tiny Llama that belongs to one test."""
    return tiny_model("llama-3")


@pytest.fixture
def loaded(fresh_model: PreTrainedModel) -> LoadedModel:
    return LoadedModel.of(fresh_model)


def read(start: int, stop: int) -> KeysValues:
    """Keys and values of one head of size 1, as a cache would copy them."""
    return [(torch.zeros(stop - start, 1, 1), torch.zeros(stop - start, 1, 1))]


def training_modes(model: PreTrainedModel) -> list[bool]:
    return [module.training for module in model.modules()]


def mix_modes(model: PreTrainedModel) -> list[bool]:
    """Puts every third module into evaluation mode, the others into training mode, and returns all modes."""
    for i, module in enumerate(model.modules()):
        module.training = i % 3 != 1
    return training_modes(model)


def token_ids(model: PreTrainedModel, agent: MaraAgent) -> list[int | None]:
    requests = [Request([0, first, 9], DecodingOptions(max_new_tokens=8), agent) for first in (5, 6)]
    return [decision.token_id for decision in decode(PolicyModel(model), requests, width=3)]


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[0, 5, 9]])).logits  # type: ignore[no-any-return]


def test_a_model_has_one_owner_that_goes_with_it() -> None:
    model = tiny_model("llama-3")
    owner = weakref.ref(LoadedModel.of(model))
    assert LoadedModel.of(model) is owner()
    loaded = LoadedModel.of(model)
    del model
    gc.collect()
    with pytest.raises(ReferenceError, match="The loaded model is gone. Keep a reference"):
        _ = loaded.model
    del loaded
    gc.collect()
    assert owner() is None


def test_a_batch_that_keeps_nothing_leaves_the_prefixes_of_others(loaded: LoadedModel) -> None:
    cache = loaded.prefix_cache(10 * BLOCK_BYTES)
    assert cache is not None
    cache.add(PROMPT, read)
    assert loaded.prefix_cache(0) is None
    assert loaded.prefix_cache(10 * BLOCK_BYTES) is cache
    assert len(cache.match(PROMPT)) == 1


def test_a_smaller_budget_does_not_evict_what_others_keep(loaded: LoadedModel) -> None:
    cache = loaded.prefix_cache(10 * BLOCK_BYTES)
    assert cache is not None
    cache.add(PROMPT, read)
    assert loaded.prefix_cache(1) is cache
    assert (cache.budget, cache.size, len(cache.match(PROMPT))) == (10 * BLOCK_BYTES, BLOCK_BYTES, 1)
    assert loaded.prefix_cache(20 * BLOCK_BYTES) is cache
    assert cache.budget == 20 * BLOCK_BYTES


def test_one_call_without_prefix_memory_costs_the_next_calls_nothing(
    fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    llm = MaraLLM(model=fresh_model, tokenizer=tokenizer, max_new_tokens=4)
    prompt = "the end is it so " * 5
    llm.invoke(prompt)
    llm.invoke(prompt, prefix_memory=0)
    cache = LoadedModel.of(fresh_model).prefix_cache(1)
    assert cache is not None
    assert cache.match(llm.encode(prompt))


def test_changed_weights_empty_the_prefix_cache(fresh_model: PreTrainedModel, loaded: LoadedModel) -> None:
    cache = loaded.prefix_cache(10 * BLOCK_BYTES)
    assert cache is not None
    cache.refresh()
    cache.add(PROMPT, read)
    cache.refresh()
    assert len(cache.match(PROMPT)) == 1
    with torch.no_grad():
        next(fresh_model.parameters()).mul_(2)
    epoch = cache.epoch
    cache.refresh()
    cache.add(PROMPT, read, epoch)  # by a row that was computed before
    assert (cache.size, cache.match(PROMPT)) == (0, [])


def test_an_agent_on_the_device_is_used_itself(loaded: LoadedModel) -> None:
    agent = tiny_agent()
    assert loaded.agent_on(agent, torch.device("cpu")) is agent


def test_an_agent_elsewhere_is_copied_and_stays_where_it_is(loaded: LoadedModel) -> None:
    agent = tiny_agent()
    before = copy.deepcopy(agent.state_dict())
    on_meta = loaded.agent_on(agent, META)
    assert on_meta is not agent
    assert {parameter.device for parameter in on_meta.parameters()} == {META}
    assert {parameter.device.type for parameter in agent.parameters()} == {"cpu"}
    assert all(torch.equal(weight, before[name]) for name, weight in agent.state_dict().items())
    assert loaded.agent_on(agent, META) is on_meta, "one copy serves all passes"


def test_the_copy_is_renewed_when_the_agent_is_trained(loaded: LoadedModel) -> None:
    agent = tiny_agent()
    stale = loaded.agent_on(agent, META)
    with torch.no_grad():
        agent.linear1.weight.add_(1)
    renewed = loaded.agent_on(agent, META)
    assert renewed is not stale
    assert loaded.agent_on(agent, META) is renewed


def test_the_copy_is_made_anew_for_another_device(loaded: LoadedModel) -> None:
    agent = tiny_agent()
    assert loaded.agent_on(agent, META).ln.weight.device == META  # type: ignore[union-attr]
    indexed = torch.device("cpu", 0)  # counts as another device than "cpu"
    assert loaded.agent_on(agent, indexed).ln.weight.device.type == "cpu"  # type: ignore[union-attr]


def test_copies_go_with_their_agents(loaded: LoadedModel) -> None:
    agent = tiny_agent()
    agent_copy = weakref.ref(loaded.agent_on(agent, META))
    del agent
    gc.collect()
    assert agent_copy() is None


@pytest.mark.parametrize("mixed", [False, True])
def test_decoding_gives_the_modes_back(fresh_model: PreTrainedModel, agent: MaraAgent, mixed: bool) -> None:
    fresh_model.train()
    modes = mix_modes(fresh_model) if mixed else training_modes(fresh_model)
    modes_in_passes: list[list[bool]] = []
    hook = fresh_model.model.register_forward_pre_hook(
        lambda _module, _inputs: modes_in_passes.append(training_modes(fresh_model))
    )
    token_ids(fresh_model, agent)
    hook.remove()
    assert modes_in_passes
    assert not any(map(any, modes_in_passes))
    assert training_modes(fresh_model) == modes


def test_passes_at_the_same_time_give_the_modes_back_after_the_last(
    fresh_model: PreTrainedModel, loaded: LoadedModel
) -> None:
    fresh_model.train()
    modes = mix_modes(fresh_model)
    entered, leave = threading.Event(), threading.Event()

    def run_pass() -> None:
        with loaded.evaluation_mode():
            entered.set()
            assert leave.wait(20)

    thread = threading.Thread(target=run_pass)
    thread.start()
    assert entered.wait(20)
    with loaded.evaluation_mode():
        assert not any(training_modes(fresh_model))
    assert not any(training_modes(fresh_model)), "the other pass still runs"
    leave.set()
    thread.join()
    assert training_modes(fresh_model) == modes


def test_a_pass_that_fails_gives_the_modes_back(fresh_model: PreTrainedModel, loaded: LoadedModel) -> None:
    fresh_model.train()
    modes = mix_modes(fresh_model)

    with pytest.raises(ZeroDivisionError), loaded.evaluation_mode():
        raise ZeroDivisionError
    assert training_modes(fresh_model) == modes


def test_a_model_in_evaluation_mode_stays_in_it(fresh_model: PreTrainedModel, loaded: LoadedModel) -> None:
    with loaded.evaluation_mode():
        pass
    assert not any(training_modes(fresh_model))


def test_dropout_never_acts_while_decoding(
    fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, agent: MaraAgent
) -> None:
    config = LlamaConfig(**{**fresh_model.config.to_dict(), "attention_dropout": 0.5})
    model = type(fresh_model)(config).double().eval()
    model.load_state_dict(fresh_model.state_dict())
    expected = token_ids(model, agent)
    llm = MaraLLM(model=model, tokenizer=tokenizer, agent=agent, max_new_tokens=8)
    answer = llm.invoke("hi")
    model.train()
    first, second = (logits(model) for _ in range(2))
    assert not torch.equal(first, second), "dropout acts in training mode"
    assert token_ids(model, agent) == expected
    assert llm.invoke("hi") == answer
    assert all(training_modes(model))


def test_a_single_module_in_training_mode_does_not_drop_out() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**GPT, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)).eval()
    policy, modules = PolicyModel(model), list(model.modules())
    expected = policy.prefill(policy.new_cache(), 0, [PROMPT])
    model.transformer.drop.train()
    modes = [module.training for module in modules]
    assert torch.equal(policy.prefill(policy.new_cache(), 0, [PROMPT]), expected)
    assert [module.training for module in modules] == modes
    assert sum(modes) == 1

"""What a scheduler keeps for a model: prefixes until weights change, and nothing after the model is gone."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from callers import Caller, MakeCompletion, a_request, alone
from families import decoding_threads, tiny_model, wait_until
from torch import nn
from transformers import PreTrainedModel

from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.completion import GenerationJob, complete
from langchain_mara.serving.scheduler import BatchConfig, Scheduler


def change_in_place(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight.roll(1, 0))


def replace(model: PreTrainedModel) -> None:
    embeddings = model.get_input_embeddings()
    embeddings.weight = nn.Parameter(embeddings.weight.detach().roll(1, 0))


def load(model: PreTrainedModel) -> None:
    model.load_state_dict({name: item * 1.1 for name, item in model.state_dict().items()})


@pytest.mark.parametrize("change", [change_in_place, replace, load])
def test_prefixes_are_kept_until_weights_change(change: Callable[[PreTrainedModel], None]) -> None:
    policy = PolicyModel(tiny_model("llama-3"))
    reused = []
    for _ in range(2):
        caller = Caller(policy, [a_request(length=70)]).submit().wait()
        wait_until(lambda: not decoding_threads())
        caller.assert_as_alone()
        reused.append(caller.requests[0].reused_tokens)
    change(policy.model)
    changed = Caller(policy, [a_request(length=70)]).submit().wait()
    reused.append(changed.requests[0].reused_tokens)
    assert reused == [0, 64, 0]
    (request,) = changed.requests
    assert changed.tokens[request] == alone(PolicyModel(copy.deepcopy(policy.model)), request)
    assert changed.tokens[request] != caller.tokens[caller.requests[0]]


def test_prefix_memory_is_that_of_the_batch_settings(policy: PolicyModel) -> None:
    def reused(prefix_memory: int) -> int:
        caller = Caller(policy, [a_request(length=70)], BatchConfig(2, 4, prefix_memory)).submit().wait()
        wait_until(lambda: not decoding_threads())
        caller.assert_as_alone()
        return caller.requests[0].reused_tokens

    assert [reused(memory) for memory in (2**26, 2**26, 0, 2**26)][1:] == [64, 0, 64]


def broken_pass(*_: Any) -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("broken", [False, True])
def test_a_model_that_is_done_with_can_be_collected(completion_of: MakeCompletion, broken: bool) -> None:
    policy = PolicyModel(tiny_model("llama-3"))
    references = [weakref.ref(policy.model), weakref.ref(Scheduler.of(policy)), weakref.ref(policy)]
    assert list(complete(GenerationJob(policy, [completion_of(a_request(length=70))])))
    if broken:
        policy.backbone.register_forward_pre_hook(broken_pass)
        with pytest.raises(RuntimeError, match="broken"):
            list(complete(GenerationJob(policy, [completion_of()])))
    del policy
    wait_until(lambda: not any(reference() for reference in references))

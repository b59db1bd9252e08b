"""Siblings in one pass are compared with a cache-free evaluation, once per model; what differs is refused."""

from typing import Any

import pytest
import torch
import transformers as hf
from families import SIZES, tiny_model

from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.verification import verify_siblings


def test_a_model_is_verified_once() -> None:
    policy = PolicyModel(tiny_model("llama-3"))
    verify_siblings(policy)
    passes = policy.passes
    assert passes
    verify_siblings(PolicyModel(policy.model))
    verify_siblings(policy)
    assert policy.passes == passes


class Doubled(hf.LlamaForCausalLM):
    """A model that does to its logits what no configuration tells."""

    def forward(self, *args: object, **kwargs: object) -> object:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_refuses_logits_transformed_in_an_unknown_way() -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match="other logits"):
        verify_siblings(PolicyModel(Doubled(hf.LlamaConfig(**SIZES))))


class Sighted(hf.LlamaForCausalLM):
    """A model whose states depend on how many tokens share a pass."""

    def __init__(self, config: hf.LlamaConfig) -> None:
        super().__init__(config)
        self.model.register_forward_hook(self._add_tokens, with_kwargs=True)

    def _add_tokens(self, _module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state + kwargs["input_ids"].shape[1]
        return output


def test_refuses_states_that_depend_on_the_siblings_in_a_pass() -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match="other states"):
        verify_siblings(PolicyModel(Sighted(hf.LlamaConfig(**SIZES))))


def test_a_model_that_fails_in_a_pass_over_siblings_is_refused_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise TypeError("no such mask")

    policy = PolicyModel(tiny_model("llama-3"))
    monkeypatch.setattr(PolicyModel, "siblings", broken)
    with pytest.raises(UnsupportedModelError, match="cannot run a pass over siblings .no such mask."):
        verify_siblings(policy)
    assert not policy.loaded.verified


def test_a_model_whose_states_are_not_finite_is_not_refused() -> None:
    model = tiny_model("llama-3")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    verify_siblings(PolicyModel(model))

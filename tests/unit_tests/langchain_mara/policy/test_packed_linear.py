"""Packed linear layers compute, save, move and train as the plain ones do."""

import copy
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from langchain_mara import DecodingOptions, MaraAgent, MaraLLM
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.policy.loaded_model import model_fingerprint
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.packed_linear import PackedLinear, is_packed, named_weights, pack

IDS = torch.tensor([[5, 9, 2, 7]])


def tiny(dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).to(dtype).eval()


def packed_twin(model: PreTrainedModel) -> PreTrainedModel:
    twin = copy.deepcopy(model)
    if not pack(twin):
        pytest.skip("This build of PyTorch, or this processor, cannot pack weights.")
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 7, 40, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_computes_what_the_plain_one_does(dtype: torch.dtype, tokens: int, bias: bool) -> None:
    packed_twin(tiny(dtype))  # skips where nothing can be packed
    torch.manual_seed(tokens)
    linear = nn.Linear(77, 130, bias=bias, dtype=dtype)
    inputs = torch.randn(2, tokens, 77, dtype=dtype)
    with torch.inference_mode():
        expected, got = linear(inputs), PackedLinear(linear)(inputs)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_model_holds_the_same_weights(tied: bool) -> None:
    model = tiny(tie_word_embeddings=tied)
    twin = packed_twin(model)
    assert is_packed(twin)
    assert not is_packed(model)
    assert [type(module) for module in twin.modules()].count(PackedLinear) == 2 * 7 + 1
    before, after = model.state_dict(), twin.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(weight.requires_grad for weight in after.values())
    plain, unpacked = dict(model.named_parameters()), dict(named_weights(twin))
    assert list(plain) == list(unpacked)
    assert all(torch.equal(plain[name], unpacked[name]) for name in plain)
    assert model_fingerprint(model) == model_fingerprint(twin)
    assert sum(parameter.numel() for parameter in twin.parameters()) < sum(
        parameter.numel() for parameter in model.parameters()
    )


@pytest.mark.parametrize("tied", [True, False])
def test_decoding_never_unpacks(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = PolicyModel(packed_twin(tiny(tie_word_embeddings=tied)))
    monkeypatch.setattr(PackedLinear, "weight", property(lambda _: pytest.fail("a weight was unpacked")))
    decisions = list(decode(policy, [Request([5, 9, 2], DecodingOptions(max_new_tokens=4), MaraAgent(32))]))
    assert len(decisions) == 4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_model_is_saved_and_loaded_as_the_plain_one(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    model = tiny(dtype, tie_word_embeddings=tied)
    packed_twin(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert all(torch.equal(item, model.state_dict()[name]) for name, item in loaded.state_dict().items())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_stay_packed(again: Any) -> None:
    twin = packed_twin(tiny())
    copied = again(twin)
    assert is_packed(copied)
    with torch.inference_mode():
        assert torch.equal(copied(IDS).logits, twin(IDS).logits)


def test_loading_a_state_dict_packs_it() -> None:
    twin, other = packed_twin(tiny()), tiny(initializer_range=0.5)
    twin.load_state_dict(other.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(twin(IDS).logits, other(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_in_another_dtype_the_layers_are_plain_again(tied: bool) -> None:
    model = tiny(tie_word_embeddings=tied)
    moved = packed_twin(model).to(torch.float64)  # type: ignore[arg-type]
    assert not is_packed(moved)
    assert (moved.lm_head.weight is moved.model.embed_tokens.weight) == tied
    with torch.inference_mode():
        assert torch.equal(moved(IDS).logits, model.to(torch.float64)(IDS).logits)  # type: ignore[arg-type]


def test_gradients_pass_through() -> None:
    linear = nn.Linear(8, 4)
    packed_twin(tiny())
    inputs, same = torch.randn(3, 8, requires_grad=True), None
    same = inputs.detach().clone().requires_grad_()
    PackedLinear(linear)(inputs).square().sum().backward()
    linear(same).square().sum().backward()
    torch.testing.assert_close(inputs.grad, same.grad)


def test_each_plain_layer_is_gone_before_the_next_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed_twin(tiny())
    model = tiny()
    plain = [weakref.ref(module) for module in model.modules() if isinstance(module, nn.Linear)]
    alive, init = [], PackedLinear.__init__

    def watched(self: PackedLinear, linear: nn.Linear, **how: bool) -> None:
        alive.append(sum(layer() is not None for layer in plain))
        init(self, linear, **how)

    monkeypatch.setattr(PackedLinear, "__init__", watched)
    pack(model)
    # The first call tries out whether packing works.
    assert alive[1:] == list(range(len(plain), 0, -1))


def test_what_cannot_be_packed_stays_as_it_is() -> None:
    assert not pack(tiny(torch.float64))
    assert not pack(tiny(torch.float16))
    quantized = tiny()
    quantized.hf_quantizer = object()  # type: ignore[assignment]
    assert not pack(quantized)
    on_meta = tiny().to("meta")  # type: ignore[arg-type]
    assert not pack(on_meta)
    offloaded = tiny()
    offloaded.lm_head._hf_hook = object()  # type: ignore[assignment]
    if pack(offloaded):
        assert type(offloaded.lm_head) is nn.Linear


def test_models_loaded_by_name_are_packed_and_answer_alike() -> None:
    packed_twin(tiny())
    packed, plain = MaraLLM.demo(device="cpu"), MaraLLM.demo(device="cpu", packed=False)
    assert is_packed(packed.model)
    assert not is_packed(plain.model)
    prompts = ["How do I bake bread?", "Tell me about my neighbour's garden."]
    assert packed.batch(prompts) == plain.batch(prompts)
    assert packed._identity() == plain._identity()

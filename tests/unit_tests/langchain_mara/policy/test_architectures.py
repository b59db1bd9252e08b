"""Every supported family decodes as a cache-free evaluation does; what cannot work is refused with its reason."""

import pytest
import torch
import transformers as hf
from families import CONFIGS, SIZES, cache_free, tiny_agent, tiny_model
from transformers import PreTrainedModel

from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.architectures import context_length
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.verification import verify_siblings


def prompts_of(lengths: tuple[int, ...]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, 97, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("attention", ["default", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", CONFIGS)
def test_decodes_like_a_cache_free_evaluation(family: str, attention: str) -> None:
    model = tiny_model(family)
    if attention == "eager":
        model.set_attn_implementation("eager")
    prompts = prompts_of((3, 11, 1, 20))
    agents = [tiny_agent(seed=seed) for seed in range(4)]
    options = DecodingOptions(top_k=12, max_new_tokens=9)
    requests = [Request(p, options, a, frozenset([1])) for p, a in zip(prompts, agents, strict=True)]
    decisions: dict[Request, list[Decision]] = {request: [] for request in requests}
    for decision in decode(PolicyModel(model), requests, batch_size=3, width=3):
        decisions[decision.request].append(decision)
    for request, agent, prompt in zip(requests, agents, prompts, strict=True):
        expected = cache_free(model, agent, prompt, top_k=12, max_new_tokens=9)
        got = decisions[request]
        assert [decision.token_id for decision in got] == expected.token_ids
        assert [list(decision.candidates) for decision in got] == expected.candidates
        for decision, probabilities in zip(got, expected.probabilities, strict=True):
            assert list(decision.accept_probabilities) == pytest.approx(probabilities, abs=1e-4)


def bloom() -> PreTrainedModel:
    return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4))


def mamba() -> PreTrainedModel:
    config = hf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)
    return hf.MambaForCausalLM(config)


def linear_attention() -> PreTrainedModel:
    config = hf.Qwen3NextConfig(
        **{**SIZES, "num_hidden_layers": 2},
        layer_types=["linear_attention", "full_attention"],
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    return hf.Qwen3NextForCausalLM(config)


def encoder_decoder() -> PreTrainedModel:
    config = hf.T5Config(vocab_size=97, d_model=32, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return hf.T5ForConditionalGeneration(config)


def headless() -> PreTrainedModel:
    return hf.LlamaModel(hf.LlamaConfig(**SIZES))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (bloom, "ALiBi"),
        (mamba, "recurrent"),
        (linear_attention, "layers of type linear_attention"),
        (encoder_decoder, "encoder-decoder"),
        (headless, "no language-model head"),
    ],
)
def test_refuses_what_cannot_work_and_says_why(make: object, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        verify_siblings(PolicyModel(make()))  # type: ignore[operator]


def test_refuses_an_attention_implementation_without_masks() -> None:
    model = tiny_model("llama-3")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="flash_attention_2.*attn_implementation='sdpa'"):
        PolicyModel(model)


def test_context_of_dynamic_rotary_scaling_ends_where_it_would_begin() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    assert context_length(hf.LlamaConfig(**SIZES, rope_parameters=rope)) == 64
    assert context_length(hf.LlamaConfig(**SIZES)) == 128

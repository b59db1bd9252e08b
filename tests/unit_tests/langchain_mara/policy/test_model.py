"""Passes of the policy model over long prompts."""

import pytest
import torch
from families import CONFIGS
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from langchain_mara.policy import model as module
from langchain_mara.policy.cache import RaggedCache
from langchain_mara.policy.model import PolicyModel

LENGTH = 3500


def long_policy(family: str) -> PolicyModel:
    config = CONFIGS[family]()
    config.max_position_embeddings = 4096
    torch.manual_seed(0)
    return PolicyModel(AutoModelForCausalLM.from_config(config).double().eval())


def text(tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(2, 97, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def count_queries(policy: PolicyModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every pass to come."""
    seen: list[int] = []
    original = policy.backbone.forward

    def forward(*args: object, **kwargs: object) -> object:
        seen.append(kwargs["input_ids"].shape[1])  # type: ignore[attr-defined]
        return original(*args, **kwargs)

    monkeypatch.setattr(policy.backbone, "forward", forward)
    return seen


@pytest.mark.parametrize("family", ["llama-3", "qwen-2-mixed"])
@torch.inference_mode()
def test_a_long_prompt_in_chunks_has_the_states_of_one_pass(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, prompt = long_policy(family), text(LENGTH)
    queries = count_queries(policy, monkeypatch)
    cache = policy.new_cache()
    got = policy.prefill(cache, 0, [prompt])
    assert len(queries) > 3
    assert min(queries[:-1]) < max(queries) == module.PREFILL_TOKENS
    expected = policy.backbone(input_ids=torch.tensor([prompt]), use_cache=False).last_hidden_state[:, -1]
    assert torch.allclose(got, expected, atol=1e-9)
    assert cache.positions[0, :LENGTH].tolist() == list(range(LENGTH))


@torch.inference_mode()
def test_rows_of_unequal_length_are_extended_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = long_policy("llama-3")
    starts, more = [3, 40, 11], [70, 1, 33]
    texts = [text(start + n, seed) for seed, (start, n) in enumerate(zip(starts, more, strict=True))]
    cache = policy.new_cache()
    policy.prefill(cache, 0, [ids[:start] for ids, start in zip(texts, starts, strict=True)])
    monkeypatch.setattr(module, "PREFILL_TOKENS", 50)
    suffixes = [ids[start:] for ids, start in zip(texts, starts, strict=True)]
    got = policy.extend(cache, 0, suffixes, starts)
    for i, ids in enumerate(texts):
        assert torch.allclose(got[i], alone(policy, ids), atol=1e-9)
        assert cache.positions[i, : len(ids)].tolist() == list(range(len(ids)))
        assert (cache.positions[i, len(ids) :] == -1).all()


def alone(policy: PolicyModel, token_ids: list[int]) -> torch.Tensor:
    state: torch.Tensor = policy.backbone(input_ids=torch.tensor([token_ids]), use_cache=False).last_hidden_state[0, -1]
    return state


@given(st.integers(1, 200_000), st.integers(1, 40), st.integers(0, 200_000))
def test_chunks_cover_everything_and_keep_masks_small(tokens: int, rows: int, held: int) -> None:
    chunks = list(module._chunks(tokens, rows, held))
    assert [start for start, _ in chunks] == [0, *(stop for _, stop in chunks[:-1])]
    assert chunks[-1][1] == tokens
    for start, stop in chunks:
        assert start < stop
        assert rows * (stop - start) <= max(rows, module.PREFILL_TOKENS)
        if rows * (stop - start) > max(rows, module._FEWEST_TOKENS):
            assert rows * (stop - start) * (held + stop) <= module._MASK_ENTRIES


def test_a_long_row_has_little_room_to_spare() -> None:
    cache = RaggedCache(layers=1, device=torch.device("cpu"))
    cache.reserve(1, 32_768)
    assert cache.positions.shape[1] <= 1.05 * 32_768

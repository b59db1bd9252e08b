"""A sketch of embeddings tells models apart, and does not mind quantization."""

import pytest
import torch

from langchain_mara.agents.embedding_sketch import embedding_sketch, same_model, same_weights


def embeddings(vocabulary: int = 4000, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # A common direction, as real embeddings have.
    return torch.randn(vocabulary, 96, generator=generator) + torch.randn(96, generator=generator) / 2


def quantized(weight: torch.Tensor, bits: int) -> torch.Tensor:
    blocks = weight.reshape(-1, 32)
    low, high = blocks.min(1, keepdim=True).values, blocks.max(1, keepdim=True).values
    step = (high - low) / (2**bits - 1)
    return (((blocks - low) / step).round() * step + low).reshape(weight.shape)


def test_cosines_by_hand() -> None:
    weight = torch.zeros(3, 2)
    weight[0], weight[1], weight[2] = torch.tensor([2.0, 0]), torch.tensor([3.0, 3.0]), torch.tensor([0, -1.0])
    assert embedding_sketch(weight) == [0.707, 0.0, -0.707]
    assert len(embedding_sketch(embeddings())) == 120


@pytest.mark.parametrize(
    "change", [lambda w: quantized(w, 4), lambda w: w.half(), lambda w: w.bfloat16(), lambda w: 3 * w]
)
def test_the_same_model_in_another_precision(change: object) -> None:
    assert same_model(embedding_sketch(embeddings()), embedding_sketch(change(embeddings())))  # type: ignore[operator]


def test_another_quantization_is_told_from_another_floating_point_type() -> None:
    known = embedding_sketch(embeddings())
    assert same_weights(known, embedding_sketch(embeddings().bfloat16()))
    assert same_weights(known, embedding_sketch(embeddings().half()))
    assert not same_weights(known, embedding_sketch(quantized(embeddings(), 4)))


@pytest.mark.parametrize("vocabulary", [4000, 100])
def test_other_models(vocabulary: int) -> None:
    known = embedding_sketch(embeddings(vocabulary))
    assert not same_model(known, embedding_sketch(embeddings(vocabulary, seed=1)))
    assert not same_model(known, embedding_sketch(embeddings(vocabulary).roll(1, 0)))
    assert not same_model(known, embedding_sketch(embeddings(8)))

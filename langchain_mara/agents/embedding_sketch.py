"""A sketch of a model's embeddings, by which an agent knows the model it was trained on, quantized or not."""

from collections.abc import Sequence

import torch
from torch import Tensor

_TOKENS = 16
_FIRST, _STEP = 256, 97  # behind the bytes and control tokens, among frequent tokens, which every training moves
_DIGITS = 3
_NEAREST = 0.004  # casts to half precision and the rounding of the sketch move a cosine by less
_FARTHEST = 0.08  # four-bit quantization moves a cosine by less than 0.02; unrelated models differ by 0.2 and more


def embedding_sketch(embeddings: Tensor) -> list[float]:
    """Cosines between the embeddings of sixteen tokens, all pairs of them, rounded to three digits.

    Args:
        embeddings: (vocabulary, d) input embeddings in any float dtype.

    Returns:
        120 cosines; fewer if the vocabulary has fewer than sixteen tokens.
    """
    vocabulary = len(embeddings)
    ids = [_FIRST + _STEP * i for i in range(_TOKENS)]
    if ids[-1] >= vocabulary:
        ids = sorted({i * (vocabulary - 1) // (_TOKENS - 1) for i in range(_TOKENS)})
    rows = torch.nn.functional.normalize(embeddings.detach()[ids].float().cpu(), dim=-1)
    upper = torch.triu_indices(len(ids), len(ids), 1)
    cosines = (rows @ rows.T)[upper[0], upper[1]]
    return [round(cosine, _DIGITS) for cosine in cosines.tolist()]


def same_model(sketch: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two sketches are of the same embeddings, up to quantization or light fine-tuning."""
    return len(sketch) == len(other) and _all_within(_FARTHEST, sketch, other)


def same_weights(sketch: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two sketches of the same model are also of the same quantization, in whatever floating-point type."""
    return _all_within(_NEAREST, sketch, other)


def _all_within(distance: float, sketch: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(one - two) < distance for one, two in zip(sketch, other, strict=True))

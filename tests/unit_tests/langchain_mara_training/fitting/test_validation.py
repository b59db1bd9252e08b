"""Weights of rows are multiplied, and refused where float32 cannot add them."""

from typing import Any

import numpy as np
import pytest
from langchain_mara_training.fitting.validation import row_weights

LABELS = np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("sample_weight", "class_weight"),
    [
        (None, {0: 1e-50}),
        (None, {1: 1e-300}),
        ([1e-50, 1, 1, 1e-50], None),
        ([1e308] * 4, None),
        ([1e308] * 4, "balanced"),
        ([1e200] * 4, {0: 1e200, 1: 1e200}),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_weights_with_which_a_class_would_count_for_nothing_are_refused(
    sample_weight: Any, class_weight: Any, whole: bool
) -> None:
    with pytest.raises(ValueError, match=r"float32 cannot add.*similar sizes"):
        row_weights(sample_weight, class_weight, np.array([0, 1]), LABELS, whole=whole)


@pytest.mark.parametrize(
    ("sample_weight", "class_weight", "expected"),
    [
        (None, {0: 1e-6}, [1e-6, 1, 1, 1e-6]),
        ([1e-300] * 4, None, [1e-300] * 4),
        ([0, 1, 1e-30, 2], None, [0, 1, 1e-30, 2]),
        ([3, 1, 1, 1], "balanced", [9 / 4, 3 / 2, 3 / 2, 3 / 4]),
    ],
)
def test_other_weights_are_multiplied(sample_weight: Any, class_weight: Any, expected: list[float]) -> None:
    weights = row_weights(sample_weight, class_weight, np.array([0, 1]), LABELS)
    np.testing.assert_allclose(weights, expected)


def test_parts_of_a_stream_have_weights_as_they_are() -> None:
    with pytest.raises(ValueError, match="from 1e-50 to 1e-50, which float32 cannot add"):
        row_weights([1e-50] * 4, None, np.array([0, 1]), LABELS, whole=False)
    one_class = row_weights([0, 2, 2, 0], None, np.array([0, 1]), LABELS, whole=False)
    assert one_class.tolist() == [0, 2, 2, 0]

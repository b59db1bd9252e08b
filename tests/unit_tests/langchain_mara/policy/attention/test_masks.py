"""Which keys a query may see, against the definition."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_mara.policy.attention.masks import visible_keys

positions = st.integers(-1, 12)


@settings(max_examples=200)
@given(
    st.lists(st.lists(positions, min_size=5, max_size=5), min_size=2, max_size=2),
    st.lists(st.lists(st.integers(0, 12), min_size=3, max_size=3), min_size=2, max_size=2),
    st.none() | st.integers(1, 14),
)
def test_a_key_is_visible_if_committed_not_ahead_and_in_the_window(
    keys: list[list[int]], queries: list[list[int]], window: int | None
) -> None:
    expected = [
        [[0 <= key <= query and (window is None or query - key < window) for key in some] for query in asking]
        for some, asking in zip(keys, queries, strict=True)
    ]
    assert visible_keys(torch.tensor(keys), torch.tensor(queries), window).tolist() == expected

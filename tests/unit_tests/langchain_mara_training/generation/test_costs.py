"""Passes and seconds are counted while it is asked for, and no longer."""

import time

import pytest
import torch
from langchain_mara_training.generation.costs import Cost, count_passes, measure_cost

from langchain_mara import MaraLLM


def test_passes_are_counted_while_the_context_is_open(demo_llm: MaraLLM) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with count_passes(demo_llm.model) as outer, torch.inference_mode():
        demo_llm.model(ids)
        with count_passes(demo_llm.model) as inner:
            demo_llm.model(ids)
    demo_llm.model(ids)
    assert (outer.passes, inner.passes) == (2, 1)


def test_counting_ends_where_decoding_fails(demo_llm: MaraLLM) -> None:
    hooks = [len(module._forward_hooks) for module in demo_llm.model.modules()]
    with pytest.raises(KeyError), count_passes(demo_llm.model):
        raise KeyError
    assert [len(module._forward_hooks) for module in demo_llm.model.modules()] == hooks


def test_costs_add_up_and_are_shared(demo_llm: MaraLLM) -> None:
    ids = torch.tensor([[1, 2, 3]])
    cost = Cost()
    for _ in range(3):
        with measure_cost(cost, demo_llm.model), torch.inference_mode():
            demo_llm.model(ids)
            time.sleep(0.01)
    demo_llm.model(ids)
    assert cost.passes == 3
    assert cost.seconds >= 0.03
    assert cost.share(2) == (1.5, cost.seconds / 2)

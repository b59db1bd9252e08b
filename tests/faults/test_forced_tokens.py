"""A token that a logits processor forces is emitted, in every dtype of the model and beside every neighbor."""

from collections.abc import Callable

import pytest
import torch
from families import tiny_agent, tiny_model
from torch import Tensor

from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel

FORCED = 61
AGENT = tiny_agent(seed=3)
Process = Callable[[Tensor, Tensor], Tensor]


def at_forced(value: float, rest: float | None = None) -> Process:
    def process(_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone() if rest is None else torch.full_like(scores, rest)
        scores[:, FORCED] = value
        return scores

    return process


WAYS: dict[str, Process] = {
    "+inf": at_forced(torch.inf),
    "+inf, others -inf": at_forced(torch.inf, -torch.inf),
    "others -inf": at_forced(0.0, -torch.inf),
    "others the least number": at_forced(0.0, torch.finfo(torch.float32).min),
    "beyond float16": at_forced(1e5),
    "beyond float16, and others nearly": at_forced(1e5, 9e4),
    "just above the others": at_forced(1.0001, 1.0),
    "the largest number": at_forced(torch.finfo(torch.float32).max),
    "beyond float32": lambda ids, scores: at_forced(1e300)(ids, scores.double()),
    "half precision": lambda ids, scores: at_forced(torch.inf)(ids, scores.half()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_forced_token_is_emitted(way: str, dtype: torch.dtype) -> None:
    policy = PolicyModel(tiny_model("llama-3", dtype))
    options = DecodingOptions.parse(top_k=4, top_p=0.2, max_new_tokens=3)
    alike = {**options.model_dump(), "max_new_tokens": 3}
    neighbor, free = Request([7, 8], options, AGENT), Request([7, 8], options, AGENT)
    orders = [options, DecodingOptions.parse(**{**alike, "order": "sampled"})]
    forced = [Request([5, 6], order, AGENT, logits_processor=WAYS[way]) for order in orders]
    tokens: dict[Request, list[int]] = {request: [] for request in (neighbor, *forced)}
    for decision in decode(policy, list(tokens)):
        tokens[decision.request].append(decision.token_id)
    assert [tokens[request] for request in forced] == [[FORCED] * 3] * 2
    assert tokens[neighbor] == [decision.token_id for decision in decode(policy, [free])]


def test_of_several_forced_tokens_the_agent_chooses() -> None:
    def force(_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.tensor([20, 40, 60]), torch.inf)

    policy = PolicyModel(tiny_model("llama-3"))
    (decision,) = decode(policy, [Request([5], DecodingOptions.parse(max_new_tokens=1), AGENT, logits_processor=force)])
    assert set(decision.candidates) == {20, 40, 60}


def test_a_processor_cannot_change_what_it_was_given() -> None:
    def careless(_ids: Tensor, scores: Tensor) -> Tensor:
        returned = scores.clone()
        scores.fill_(torch.nan)
        return returned

    policy, options = PolicyModel(tiny_model("llama-3")), DecodingOptions.parse(max_new_tokens=4)
    plain, careful = (
        [d.token_id for d in decode(policy, [Request([5], options, AGENT, logits_processor=processor)])]
        for processor in (None, careless)
    )
    assert plain == careful

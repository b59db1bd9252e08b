"""What goes from vLLM's layer to its sampler: once, for the rows that are drawn from, and only where it is expected."""

import pytest
import torch
from families import tiny_look_ahead
from torch import Tensor

from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.serving.vllm_plugin.at_hand import AtHand

STATES, LOGITS, EMBEDDINGS = torch.randn(3, 32), torch.randn(3, 20), torch.randn(20, 32)


@pytest.fixture
def at_hand() -> AtHand:
    served = AtHand()
    served.serve(tiny_look_ahead().bind)
    return served


def leave(at_hand: AtHand, states: Tensor = STATES, logits: Tensor | None = LOGITS) -> None:
    at_hand.leave(states, logits, lambda: EMBEDDINGS)


def test_nothing_happens_without_a_processor() -> None:
    at_hand = AtHand()
    at_hand.expected = True
    at_hand.leave(STATES, LOGITS, lambda: pytest.fail("asked for the head"))
    with pytest.raises(UnsupportedModelError, match="has computed none"):
        at_hand.take(3)


def test_the_agent_is_bound_at_the_first_call_even_without_requests(at_hand: AtHand) -> None:
    leave(at_hand, logits=None)
    agent = at_hand.agent
    assert agent is not None
    leave(at_hand)
    assert at_hand.agent is agent
    with pytest.raises(UnsupportedModelError, match="mara serve"):
        at_hand.take(3)


def test_what_was_left_is_taken_once(at_hand: AtHand) -> None:
    at_hand.expected = True
    logits = LOGITS.clone()
    leave(at_hand, logits=logits)
    logits.zero_()  # the sampler changes float32 logits in place
    outlook, agent = at_hand.take(3)
    assert torch.equal(outlook.logits, LOGITS)
    assert torch.equal(outlook.states, STATES)
    assert agent is at_hand.agent
    leave(at_hand, torch.randn(9, 32), torch.randn(9, 20))  # log-probabilities of a prompt
    with pytest.raises(UnsupportedModelError, match="has computed none"):
        at_hand.take(3)


def test_narrower_logits_are_not_copied(at_hand: AtHand) -> None:
    at_hand.expected = True
    logits = LOGITS.bfloat16()
    leave(at_hand, logits=logits)
    assert at_hand.take(3)[0].logits is logits


def test_other_rows_are_refused(at_hand: AtHand) -> None:
    at_hand.expected = True
    leave(at_hand)
    with pytest.raises(UnsupportedModelError, match="draws from 4 rows of logits, .* has computed 3"):
        at_hand.take(4)


def test_forgotten_is_forgotten(at_hand: AtHand) -> None:
    at_hand.expected = True
    leave(at_hand)
    at_hand.forget()
    with pytest.raises(UnsupportedModelError):
        at_hand.take(3)

"""One poisoned request among eight fails by its own error; the other seven get the answers they get without it."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from families import tiny_agent, tiny_model
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.exceptions import AgentMismatchError, LogitsProcessorError, NonFiniteError, PromptError
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import PrefixCache

EOS = frozenset([1])
AGENT = tiny_agent(seed=3)
BAD_TOKEN = 50
"""Only the poisoned prompt holds it; `broken_model` breaks passes over it."""
OPTIONS: list[dict[str, Any]] = [
    {}, {"order": "sampled", "seed": 4}, {"strategy": "max-prob"}, {"strategy": "random", "seed": 2},
    {"strategy": "guided"}, {"top_k": 3}, {"order": "top-1-last"}, {"strategy": "sampled", "seed": 9},
]  # fmt: skip


class Escape(BaseException):
    """Not an `Exception`, so that `except Exception` does not catch it."""


class Misbehaving(nn.Module):
    """An agent that does something else than answering."""

    hidden_size = 32
    judges = "after"

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._answer = answer

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Any:
        return self._answer(states)

    def check_fits(self, hidden_size: int, model_name: str) -> None:
        assert hidden_size == self.hidden_size


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise error

    return function


def prudent(states: Tensor) -> Tensor:
    """Judges like the shared agent, but refuses states that are not finite."""
    if not states.isfinite().all():
        raise FloatingPointError("this state is not finite")
    return AGENT.accept_probability(states)


PRUDENT = Misbehaving(prudent)
NORMAL = DecodingOptions.parse(top_k=8, max_new_tokens=6)
SAMPLED = NORMAL.model_copy(update={"order": "sampled"})


class Poison(NamedTuple):
    """How the eighth request differs from a good one, and its error."""

    changes: dict[str, Any]
    error: type[BaseException] | None = None
    model: str = "sound"


def processor(function: Callable[..., Any], error: type[BaseException]) -> Poison:
    return Poison({"logits_processor": function}, error)


def agent(function: Callable[..., Any], error: type[BaseException]) -> Poison:
    return Poison({"agent": Misbehaving(function)}, error)


OUT_OF_MEMORY = torch.OutOfMemoryError("no room for this one")
POISONS = {
    "processor: NaN": processor(lambda _, s: s * torch.nan, LogitsProcessorError),
    "processor: one NaN": processor(lambda _, s: s.index_fill(1, torch.tensor([7]), torch.nan), LogitsProcessorError),
    "processor: a token less": processor(lambda _, s: s[:, 1:], LogitsProcessorError),
    "processor: no row": processor(lambda _, s: s[0], LogitsProcessorError),
    "processor: one number": processor(lambda _, s: s[:, :1], LogitsProcessorError),
    "processor: integers": processor(lambda _, s: s.long(), LogitsProcessorError),
    "processor: nothing": processor(lambda *_: None, LogitsProcessorError),
    "processor: all forbidden": processor(lambda _, s: s - torch.inf, NonFiniteError),
    "processor: error": processor(raising(ValueError("mine")), ValueError),
    "processor: base exception": processor(raising(Escape()), Escape),
    "processor: exit": processor(raising(SystemExit(3)), SystemExit),
    "agent: error": agent(raising(ValueError("mine")), ValueError),
    "agent: base exception": agent(raising(Escape()), Escape),
    "agent: generator exit": agent(raising(GeneratorExit()), GeneratorExit),
    "agent: both actions": agent(lambda states: states[..., :2], AgentMismatchError),
    "agent: one number": agent(lambda _: torch.tensor(0.5), AgentMismatchError),
    "agent: nothing": agent(lambda _: None, AgentMismatchError),
    "agent: NaN": agent(lambda states: states[..., 0] * torch.nan, NonFiniteError),
    "agent: other size": Poison({"agent": tiny_agent(hidden_size=16)}, AgentMismatchError),
    "agent: no memory": agent(raising(OUT_OF_MEMORY), torch.OutOfMemoryError),
    "prompt: id beyond the embedding": Poison({"prompt_ids": [5, 97]}, PromptError),
    "prompt: negative id": Poison({"prompt_ids": [5, -1]}, PromptError),
    "prompt: empty": Poison({"prompt_ids": []}, PromptError),
    "prompt: too long": Poison({"prompt_ids": [5] * 5000}, PromptError),
    "prompt: text": Poison({"prompt_ids": "hi"}, TypeError),
    "EOS beyond the vocabulary": Poison(
        {"eos_token_ids": frozenset([1, -1, 97, 10**12]), "options": NORMAL.model_copy(update={"min_new_tokens": 4})}
    ),
    "seed beyond 64 bits": Poison(
        {"options": SAMPLED.model_copy(update={"seed": 2**70})}, (OverflowError, RuntimeError, ValueError)
    ),  # type: ignore[arg-type]
    "seed of a wrong kind": Poison({"options": SAMPLED.model_copy(update={"seed": "four"})}, RuntimeError),
    "temperature of almost 0": Poison({"options": SAMPLED.model_copy(update={"temperature": 1e-300})}),
    "state: NaN": Poison({"prompt_ids": [9, BAD_TOKEN]}, NonFiniteError, "nan"),
    "state: NaN and an agent that minds": Poison(
        {"prompt_ids": [9, BAD_TOKEN], "agent": PRUDENT}, NonFiniteError, "nan"
    ),
    "pass: error": Poison({"prompt_ids": [9, BAD_TOKEN]}, IndexError, "raising"),
    "pass: no memory": Poison({"prompt_ids": [9, BAD_TOKEN]}, torch.OutOfMemoryError, "memory"),
}


@cache
def broken_model(how: str) -> PolicyModel:
    """A model that fails, in some way, for whoever has `BAD_TOKEN` in a pass."""
    model = tiny_model("llama-3")
    if how == "nan":
        with torch.no_grad():
            model.get_input_embeddings().weight[BAD_TOKEN] = torch.nan

    def before(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if how in ("raising", "memory") and (kwargs["input_ids"] == BAD_TOKEN).any():
            raise IndexError("index out of range") if how == "raising" else torch.OutOfMemoryError("no room")

    policy = PolicyModel(model)
    policy.backbone.register_forward_pre_hook(before, with_kwargs=True)
    return policy


def never_bad(_ids: Tensor, scores: Tensor) -> Tensor:
    return scores.index_fill(1, torch.tensor([BAD_TOKEN]), -torch.inf)


def seven(agents: nn.Module | None) -> list[Request]:
    """Good requests; they never choose `BAD_TOKEN`."""
    options = [DecodingOptions.parse(**{"top_k": 8, "max_new_tokens": 6, **more}) for more in OPTIONS]
    return [
        Request([5 + i, *range(2, 4 + i)], chosen, agents if i % 3 else AGENT, EOS, never_bad)  # type: ignore[arg-type]
        for i, chosen in enumerate(options)
    ]


def answers(policy: PolicyModel, requests: list[Request], **how: Any) -> list[list[int]]:
    tokens: dict[Request, list[int]] = {request: [] for request in requests}
    left: list[Request] = []
    for decision in decode(policy, iter(requests), on_leave=left.append, **how):
        tokens[decision.request].append(decision.token_id)
    assert sorted(map(id, left)) == sorted(map(id, requests)), "every request leaves exactly once"
    return list(tokens.values())


ways = st.fixed_dictionaries(
    {
        "batch_size": st.sampled_from([1, 3, 8]),
        "width": st.sampled_from([1, 3, None]),
        "draft": st.sampled_from([0, 3]),
        "prefix_cache": st.sampled_from([None, 2**20]).map(lambda budget: budget and PrefixCache(budget)),
    }
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Out of memory:RuntimeWarning")
@pytest.mark.parametrize("name", POISONS)
@settings(max_examples=4, phases=[Phase.generate])  # shrinking would take minutes
@given(place=st.integers(0, 7), way=ways)
def test_seven_answers_are_those_without_the_eighth(name: str, place: int, way: dict[str, Any]) -> None:
    poison = POISONS[name]
    policy = broken_model(poison.model)
    shared = PRUDENT if poison.changes.get("agent") is PRUDENT else AGENT
    expected = answers(policy, seven(shared))
    requests = seven(shared)
    good = {"prompt_ids": [9, 8], "options": NORMAL, "agent": AGENT, "eos_token_ids": EOS}
    sick = Request(**{**good, **poison.changes})
    requests.insert(place, sick)
    got = answers(policy, requests, **way)
    own = got.pop(place)
    assert got == expected
    assert all(request.error is None for request in requests if request is not sick)
    if poison.error is None:
        assert (sick.error, len(own)) == (None, 6)
    else:
        assert isinstance(sick.error, poison.error)
        assert len(own) <= 1


class Equal(MaraAgent):
    """An agent that says it equals any other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash(AGENT)


class Unhashable(MaraAgent):
    """An agent that cannot be counted."""

    def __hash__(self) -> int:
        raise ValueError("no hash")


SLOPPY = {
    "an agent that equals others": {"agent": Equal(32, width=16).eval()},
    "an agent without hash": {"agent": Unhashable(32, width=16).eval()},
    "a threshold of text": {"options": NORMAL.model_copy(update={"accept_threshold": "x"})},
    "a limit of text": {"options": NORMAL.model_copy(update={"max_new_tokens": "x"})},
    "a fallback of text": {"options": NORMAL.model_copy(update={"fallback": "x", "accept_threshold": 1.0})},
    "no EOS": {"eos_token_ids": None},
}


@pytest.mark.parametrize("name", SLOPPY)
@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize("width", [3, None])
def test_what_the_door_does_not_see_harms_no_neighbor(name: str, place: int, width: int | None) -> None:
    policy = broken_model("sound")
    expected = answers(policy, seven(AGENT))
    requests = seven(AGENT)
    good = {"prompt_ids": [9, 8], "options": NORMAL, "agent": AGENT, "eos_token_ids": EOS}
    requests.insert(place, Request(**{**good, **SLOPPY[name]}))  # type: ignore[arg-type]
    got = answers(policy, requests, width=width, prefix_cache=PrefixCache(2**20))
    del got[place]
    assert got == expected


@pytest.mark.filterwarnings("error")
def test_warnings_that_are_errors_harm_nobody() -> None:
    policy = broken_model("memory")
    expected = answers(policy, seven(AGENT))
    requests = [Request([9, BAD_TOKEN], NORMAL, AGENT, EOS), *seven(AGENT)]
    assert answers(policy, requests)[1:] == expected

"""Asks each agent once for all its sequences; an error ends only the requests that it concerns."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from langchain_mara.decoding.recovery import attempt
from langchain_mara.decoding.request import Request
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.exceptions import AgentMismatchError

Ask = Callable[[nn.Module, int, list[int]], None]
"""Takes an agent, its action that means accept, and the numbers of its sequences; keeps what the agent says."""


def ask_each(
    sequences: Sequence[SequenceState | None], ask: Ask, fail: Callable[[Request, BaseException], None]
) -> None:
    """Asks the agents of sequences, each agent once; where that fails, for each of its sequences alone.

    Args:
        sequences: Sequences; None is passed over, and so are sequences without an agent.
        ask: Asks one agent.
        fail: Called with each request whose agent raises or answers in another shape, and the error.

    Raises:
        torch.OutOfMemoryError: If memory runs out, which is nobody's fault.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, sequence in enumerate(sequences):
        if sequence is not None and sequence.agent is not None:
            # By identity: an agent may say that it equals another caller's.
            groups.setdefault((id(sequence.agent), sequence.request.options.accept_action), []).append(i)
    for (_, action), rows in groups.items():
        members: list[SequenceState] = [sequences[row] for row in rows]  # type: ignore[misc]
        agent: nn.Module = members[0].agent  # type: ignore[assignment]
        error = _attempt(partial(ask, agent, action, rows))
        if error is None:
            continue
        for row, member in zip(rows, members, strict=True):
            # One sequence's states may be to blame, so each is judged alone.
            own_error = error if len(rows) == 1 else _attempt(partial(ask, agent, action, [row]))
            if own_error is not None:
                fail(member.request, own_error)


def _attempt(work: Callable[[], None]) -> BaseException | None:
    error = attempt(work)
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    return error


def checked_answer(agent: nn.Module, answer: Any, shape: Sequence[int]) -> Tensor:
    """What an agent has answered, if it is one probability for each candidate.

    Args:
        agent: The agent, for the message.
        answer: Its answer.
        shape: Shape of the candidates.

    Raises:
        AgentMismatchError: If it is something else.
    """
    if not isinstance(answer, Tensor) or answer.shape != torch.Size(shape):
        kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise AgentMismatchError(
            f"{type(agent).__name__}.accept_probability returned {kind} for candidates of shape {tuple(shape)}. "
            "Return one probability for each candidate, in a tensor of that shape."
        )
    return answer


def ask_after(
    sequences: Sequence[SequenceState],
    states: Tensor,
    fail: Callable[[Request, BaseException], None],
    drafts: Sequence[Sequence[int]],
) -> Tensor | None:
    """Accept probabilities by the agents that judge the states after candidates; all others accept everything.

    Args:
        sequences: The running sequences. Nobody is asked for one whose candidate is chosen, unless it has a draft.
        states: (rows, width, d) states of the candidates.
        fail: See `ask_each`.
        drafts: Drafted tokens of each sequence.

    Returns:
        (rows, width) float32; None if nobody is asked.
    """
    waiting = [
        sequence if (sequence.chosen is None or draft) and not sequence.judged_before else None
        for sequence, draft in zip(sequences, drafts, strict=True)
    ]
    if not any(sequence and sequence.agent for sequence in waiting):
        return None
    probabilities = torch.ones(states.shape[:2], device=states.device)

    def ask(agent: nn.Module, action: int, rows: list[int]) -> None:
        everybody = len(rows) == states.shape[0]
        index: Any = ... if everybody else torch.tensor(rows).to(states.device)
        answer = agent.accept_probability(states if everybody else states[index], action)  # type: ignore[operator]
        probabilities[index] = checked_answer(agent, answer, (len(rows), states.shape[1])).to(probabilities)

    ask_each(waiting, ask, fail)
    return probabilities

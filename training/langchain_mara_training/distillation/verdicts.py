"""What an agent says of all candidates in its own answers, with what a look-ahead agent reads of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from langchain_mara import MaraLLM
from langchain_mara.decoding.request import Decision
from langchain_mara.policy.architectures import output_embeddings
from langchain_mara_training.generation.generate import AnswerStart, generate_answers
from langchain_mara_training.generation.states import candidate_features
from langchain_mara_training.labeling.prompt_rows import PromptRow
from langchain_mara_training.storage.identity.content_digest import digest


class Verdicts(NamedTuple):
    """An agent's accept probabilities of candidates. The candidates of a position are consecutive, in order.

    Attributes:
        features: (n, 2 d + 2) float16 `look_ahead_features` of the candidates.
        accept: (n,) float64 accept probabilities of the agent.
        groups: (n,) int64 numbers of the prompts.
        positions: (n,) int64 numbers of the positions, ascending.
    """

    features: NDArray[np.float16]
    accept: NDArray[np.float64]
    groups: NDArray[np.int64]
    positions: NDArray[np.int64]

    @staticmethod
    def join(parts: Sequence["Verdicts"]) -> "Verdicts":
        """The verdicts of all parts, in order; positions are numbered anew."""
        shifts = np.cumsum([0, *(1 + part.positions[-1] if len(part.positions) else 0 for part in parts)])
        positions = [part.positions + shift for part, shift in zip(parts, shifts, strict=False)]
        return Verdicts(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.accept for part in parts]),
            np.concatenate([part.groups for part in parts]),
            np.concatenate(positions),
        )

    def where(self, mask: NDArray[np.bool_]) -> "Verdicts":
        """The verdicts that a mask selects."""
        return Verdicts(self.features[mask], self.accept[mask], self.groups[mask], self.positions[mask])


@torch.inference_mode()
def judged_candidates(
    llm: MaraLLM, rows: Sequence[PromptRow], answers: int, batch_size: int, random_state: int
) -> Verdicts:
    """Answers prompts with the LLM's agent, and keeps what the agent says of every candidate on the way.

    Args:
        llm: Policy model with an agent that judges the states after candidates.
        rows: Prompts.
        answers: Answers per prompt: first as the LLM decodes, then drawn (`order="sampled"`).
        batch_size: Most answers at a time.
        random_state: Seed of the draws.
    """
    starts = _starts(rows, answers, random_state)
    return _judged(llm, starts, batch_size)


@torch.inference_mode()
def judged_on_the_way_of(
    other: MaraLLM, llm: MaraLLM, rows: Sequence[PromptRow], answers: int, batch_size: int, random_state: int
) -> Verdicts:
    """What an LLM's agent says of every candidate in the answers of another agent.

    The positions of an answer are judged side by side, and share the tokens before them as far as `prefix_memory`
    allows.

    Args:
        other: Policy model with the agent that answers.
        llm: The same policy model with the agent that judges, by the states after candidates.
        rows: Prompts.
        answers: Answers per prompt, as in `judged_candidates`.
        batch_size: Most answers at a time.
        random_state: Seed of the draws.
    """
    starts = _starts(rows, answers, random_state)
    written = generate_answers(other, [start for _, start in starts], batch_size)
    positions = [
        (row, replace(start, answer_ids=answer.token_ids[:index], new_tokens=1))
        for (row, start), answer in zip(starts, written, strict=True)
        for index, decision in enumerate(answer.decisions)
        if len(decision.candidates) > 1
    ]
    return _judged(llm, positions, batch_size, min_new_tokens=0)


def _starts(rows: Sequence[PromptRow], answers: int, random_state: int) -> list[tuple[PromptRow, AnswerStart]]:
    return [
        (row, AnswerStart(row.prompt_ids, seed=_seed(random_state, row.number, i), sampled=i > 0))
        for row in rows
        for i in range(answers)
    ]


def _judged(llm: MaraLLM, starts: Sequence[tuple[PromptRow, AnswerStart]], batch_size: int, **changes: Any) -> Verdicts:
    """The agent's verdicts in the answers that it gives from these starts on."""
    # In a pass as wide as the candidate set, every candidate goes through the model.
    wide = llm.model_copy(update={"width": llm.top_k})
    embeddings = output_embeddings(llm.model)
    columns = np.zeros((0, 2 * embeddings.shape[1] + 2), np.float16), np.zeros(0), np.zeros(0, int), np.zeros(0, int)
    parts = [Verdicts(*columns)]
    for first in range(0, len(starts), batch_size):
        chunk = starts[first : first + batch_size]
        generated = generate_answers(wide, [start for _, start in chunk], batch_size, keep_states=True, **changes)
        parts += [
            _verdicts(llm, decision, embeddings, row.group)
            for (row, _), answer in zip(chunk, generated, strict=True)
            for decision in answer.decisions
            if len(decision.candidates) > 1
        ]
    return Verdicts.join(parts)


def _verdicts(llm: MaraLLM, decision: Decision, embeddings: torch.Tensor, group: int) -> Verdicts:
    """What the agent says of all candidates of one position whose states are finite."""
    agent: Any = llm.agent
    kept: Any = decision.candidate_states
    states = kept.states.to(next(agent.parameters()).device)
    accept = agent.accept_probability(states, llm.accept_action).double().cpu().numpy()
    rows = candidate_features(decision, len(states), embeddings).to("cpu", torch.float16).numpy()
    finite = np.isfinite(accept) & np.isfinite(rows).all(1)
    numbers = np.full(len(states), group), np.zeros(len(states), int)
    return Verdicts(rows, accept, *numbers).where(finite)


def _seed(*numbers: int) -> int:
    return int(digest(list(numbers))[:8], 16)

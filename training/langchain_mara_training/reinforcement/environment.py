"""The decision process, one step per candidate, in which reinforcement learning trains agents (paper section 4).

A state is the hidden state that a candidate would produce, or what a look-ahead agent reads of the candidate; the
actions are reject and accept. After a rejected
candidate comes the next candidate of the same position. After an accepted one comes the first candidate of the next
position with more than one candidate. An episode is one answer. Its reward is the reward of the answer, less a penalty
for moving away from the policy model.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_mara import MaraLLM
from langchain_mara.agents.base import Agent
from langchain_mara.decoding.request import Decision
from langchain_mara.policy.architectures import output_embeddings
from langchain_mara_training.data.readers import Row
from langchain_mara_training.generation.generate import AnswerStart, GeneratedAnswer, generate_answers, score_answers
from langchain_mara_training.generation.states import candidate_features, columns_of
from langchain_mara_training.reinforcement.penalties import EnvironmentOptions, Floats, distances
from langchain_mara_training.rewards.weighted import WeightedRewards

PARALLEL = 16
"""Default number of episodes played at the same time."""


class Steps(NamedTuple):
    """One answer and its steps, before it is scored.

    Attributes:
        answer: The decoded answer.
        states: (n, columns) float32 on the CPU, what the agent reads; the next state of a step is in the next row.
        actions: (n,) int64, 1 for accept and 0 for reject.
        penalties: (n,) float64, multiplied by the penalty's weight.
    """

    answer: GeneratedAnswer
    states: Tensor
    actions: Tensor
    penalties: Floats


class Episode(NamedTuple):
    """One answer, its score, and its steps with their rewards.

    Attributes:
        answer: The decoded answer.
        score: Reward of the answer; NaN if it was not scored.
        states: (n, columns) float32 on the CPU, what the agent reads; the next state of a step is in the next row.
        actions: (n,) int64, 1 for accept and 0 for reject.
        rewards: (n,) float32.
    """

    answer: GeneratedAnswer
    score: float
    states: Tensor
    actions: Tensor
    rewards: Tensor

    @property
    def usable(self) -> bool:
        """Whether there is anything to learn from: steps, a score, and only finite numbers."""
        finite = self.rewards.isfinite().all() and self.states.isfinite().all()
        return len(self.actions) > 0 and bool(np.isfinite(self.score)) and bool(finite)


def play(
    llm: MaraLLM,
    rows: Sequence[Row],
    rewards: WeightedRewards,
    options: EnvironmentOptions,
    seeds: Sequence[int],
    batch_size: int = PARALLEL,
) -> list[Episode]:
    """Plays an episode for each prompt, many at the same time, with the decode loop.

    Each candidate is accepted with the accept probability that the LLM's agent gives it.

    Args:
        llm: Policy model, decoding options, and the agent that is trained.
        rows: Rows with a `prompt`; their other columns go to the reward functions.
        rewards: Rewards that score the answers.
        options: How episodes are played and rewarded.
        seeds: Seed of each episode; nothing else influences what is drawn.
        batch_size: Largest number of episodes at the same time.

    Raises:
        PromptError: If a prompt is too long.
        RewardError: If a reward function fails.
    """
    prompts = [llm.encode(row["prompt"]) for row in rows]
    return score_steps(take_steps(llm, prompts, options, seeds, batch_size), rows, rewards, options)


def take_steps(
    llm: MaraLLM, prompts: Sequence[list[int]], options: EnvironmentOptions, seeds: Sequence[int], batch_size: int
) -> list[Steps]:
    """The part of `play` that needs the policy model.

    Args:
        llm: Policy model, decoding options, and the agent that is trained.
        prompts: Token ids of each prompt.
        options: How episodes are played and rewarded.
        seeds: Seed of each episode.
        batch_size: Largest number of episodes at the same time.

    Raises:
        PromptError: If a prompt is too long.
    """
    starts = [AnswerStart(prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    changes: dict[str, Any] = {"strategy": "sampled"}
    width = llm.width
    if options.fallback == "last":
        # `fallback` counts from the most probable candidate, which comes last in reversed order.
        changes["fallback"] = 0 if llm.order == "reversed" else -1
    if options.log_probability == "log-softmax":
        width = llm.top_k  # the softmax needs the states of the whole candidate set
    answers = generate_answers(llm.model_copy(update={"width": width}), starts, batch_size, keep_states=True, **changes)
    reads_head = llm.agent is not None and llm.agent.judges == "before"
    embeddings = output_embeddings(llm.model) if reads_head else None
    return [steps_of(decoded, llm.agent, options, embeddings) for decoded in answers]


def score_steps(
    steps: Sequence[Steps], rows: Sequence[Row], rewards: WeightedRewards, options: EnvironmentOptions
) -> list[Episode]:
    """The part of `play` that needs the reward functions.

    Args:
        steps: Answers and their steps, from `take_steps`.
        rows: Row of each answer.
        rewards: Rewards that score the answers.
        options: How episodes are rewarded.

    Raises:
        RewardError: If a reward function fails.
    """
    scores = score_answers(rewards, rows, [unscored.answer for unscored in steps])
    return [episode_of(unscored, float(score), options) for unscored, score in zip(steps, scores, strict=True)]


# Not inference mode: autograd refuses its tensors, and training learns from these.
@torch.no_grad()
def steps_of(
    decoded: GeneratedAnswer, agent: Agent | None, options: EnvironmentOptions, embeddings: Tensor | None = None
) -> Steps:
    """The steps of an answer, and the penalty of each.

    Args:
        decoded: Answer decoded with `keep_states=True`, so that its decisions have their states.
        agent: Agent whose accept probabilities the penalty compares with the policy model's probabilities.
        options: How the penalty is computed.
        embeddings: (vocabulary, d) output embeddings of the policy model, for an agent that judges before.

    Raises:
        ValueError: If there is no agent, or the states were not kept.
    """
    decisions = [decision for decision in decoded.decisions if len(decision.candidates) > 1]
    if agent is None or any(decision.candidate_states is None for decision in decisions):
        raise ValueError(
            "Episodes need an agent and the states of all decisions. Give the LLM an agent, and decode with "
            "keep_states=True."
        )
    read = [_read(decision, embeddings, options) for decision in decisions]
    states = [torch.zeros(0, columns_of(agent.judges, agent.hidden_size))]
    actions, penalties = [np.zeros(0, np.int64)], [np.zeros(0)]
    for decision, rows, accept in zip(
        decisions, read, _accept_probabilities(decisions, read, agent, options), strict=True
    ):
        states.append(rows[: len(decision.accept_probabilities)].float().cpu())
        actions.append(_actions(decision, options))
        penalties.append(options.penalty * distances(decision, accept, options))
    return Steps(decoded, torch.cat(states), torch.from_numpy(np.concatenate(actions)), np.concatenate(penalties))


def episode_of(steps: Steps, score: float, options: EnvironmentOptions) -> Episode:
    """Steps with their rewards: the answer's score, posted back as the options say, less the penalties."""
    final = options.scale * (score - options.baseline)
    rewards = _with_final(-steps.penalties, steps.actions.numpy(), final, options)
    return Episode(steps.answer, score, steps.states, steps.actions, torch.from_numpy(rewards).float())


def _actions(decision: Decision, options: EnvironmentOptions) -> NDArray[np.int64]:
    """(n,) 1 for the accepted candidate, if there is one, and 0 for the others that were examined."""
    actions = np.zeros(len(decision.accept_probabilities), np.int64)
    actions[-1] = decision.accepted or options.fallback == "last"
    return actions


def _read(decision: Decision, embeddings: Tensor | None, options: EnvironmentOptions) -> Tensor:
    """(k, columns) what the agent reads of the examined candidates; of all where `log-softmax` needs them."""
    if embeddings is None:
        return decision.candidate_states.states  # type: ignore[union-attr]
    examined = options.log_probability == "policy"
    count = len(decision.accept_probabilities if examined else decision.candidates)
    return candidate_features(decision, count, embeddings)


def _accept_probabilities(
    decisions: Sequence[Decision], read: Sequence[Tensor], agent: Agent, options: EnvironmentOptions
) -> Iterator[Floats]:
    """Accept probabilities of each position: of the examined candidates, or of all where `log-softmax` needs them."""
    if options.log_probability == "policy" or not decisions:
        yield from (np.array(decision.accept_probabilities) for decision in decisions)
        return
    # One call for all positions: a call for each would cost more than the passes of the policy model.
    accept = agent(torch.cat(list(read)).to(agent.ln.weight.device)).softmax(-1)[:, 1]  # type: ignore[union-attr,arg-type]
    yield from np.split(accept.double().cpu().numpy(), np.cumsum([len(rows) for rows in read])[:-1])


def _with_final(rewards: Floats, actions: NDArray[np.int64], final: float, options: EnvironmentOptions) -> Floats:
    """Adds the final reward to the last step and, discounted, to earlier steps."""
    if not len(rewards):
        return rewards
    rewards = rewards.copy()
    if options.post_back == "none":
        rewards[-1] += final
        return rewards
    # Number of accepted steps from each step (included) to the last one (excluded).
    accepted = actions[::-1].cumsum()[::-1] - actions[-1]
    shares = options.discount ** accepted.astype(np.float64)
    if options.post_back == "all-but-first" and len(shares) > 1:
        shares[0] = 0.0
    rewards += final * shares
    return rewards

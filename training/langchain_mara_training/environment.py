"""The per-candidate decision process that agents are trained in by reinforcement (ALGORITHM.md section 4).

A state is what a candidate would produce, the actions are reject and accept. Behind a rejected candidate comes the
next one of its position, behind an accepted one the first of the next position at which there is a choice. An
episode is an answer; its reward is that of the answer, and a penalty of leaving the policy model.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from langchain_mara import MaraLLM
from langchain_mara.agent import MaraAgent
from langchain_mara.requests import Decision
from langchain_mara_training.answers import Answered, Start, answer, score_answers
from langchain_mara_training.data import Row
from langchain_mara_training.rewards import WeightedRewards

_TINY = 1e-8

Floats = NDArray[np.float64]


class EnvironmentOptions(BaseModel):
    """How episodes are played and rewarded. The defaults are this project's, `reference()` gives the paper's code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    penalty: float = Field(default=0.1, ge=0)
    """Weight of the distance from the policy model."""
    distance: Literal["difference", "absolute", "squared", "full"] = "difference"
    """Of log-probabilities a of accept/reject and b of the policy model: a - b, |a - b|, (a - b)² / 2, or
    exp(a) (a - b)."""
    log_probability: Literal["policy", "log-softmax"] = "policy"
    """`policy`: of the token being emitted by accept/reject, and the penalty goes to the step that decided. Or, as the
    reference has it, every step has a penalty by the log-softmax of the accept probabilities of the whole set."""
    conditional: bool = True
    """For `log-softmax`, whether accept probabilities are multiplied by those of rejecting what came before."""
    fallback: Literal["decoding", "last"] = "decoding"
    """What is emitted where all are rejected: what decoding would emit; or the last candidate, taken as accepted."""
    post_back: Literal["all", "all-but-first", "none"] = "all"
    """Which earlier steps get the final reward, too, discounted by accepted steps in between."""
    temperature: float = Field(default=1.0, gt=0)
    """The policy model's log-probabilities are divided by it, and not normalised again."""
    discount: float = Field(default=0.99, ge=0, le=1)
    """For each accepted step in between."""
    baseline: float = 0.0
    """Subtracted from the reward of an answer."""
    scale: float = 1.0
    """The difference is multiplied by it."""

    @classmethod
    def reference(cls, **changes: Any) -> Self:
        """The reference implementation's, known defects included, for comparison.

        Args:
            **changes: Fields of this class.
        """
        own = {"log_probability": "log-softmax", "fallback": "last", "post_back": "all-but-first", "temperature": 0.8}
        return cls(**{**own, **changes})


class Episode(NamedTuple):
    """One answer and its steps.

    Attributes:
        answer: As it was decoded.
        score: Reward of the answer; NaN where it was not scored.
        states: (n, d) float32 on the CPU; the state behind a step is the next row's.
        actions: (n,) int64, 1 accept and 0 reject.
        rewards: (n,) float32.
    """

    answer: Answered
    score: float
    states: Tensor
    actions: Tensor
    rewards: Tensor

    @property
    def usable(self) -> bool:
        """Whether there is anything to learn from: steps, a score, and only finite numbers."""
        numbers = self.rewards.isfinite().all() and self.states.isfinite().all()
        return len(self.actions) > 0 and bool(np.isfinite(self.score)) and bool(numbers)


def play(
    llm: MaraLLM,
    rows: Sequence[Row],
    rewards: WeightedRewards,
    options: EnvironmentOptions,
    seeds: Sequence[int],
    batch_size: int = 16,
) -> list[Episode]:
    """Plays an episode for each prompt, many at once, on the one decode path.

    Each candidate is accepted with the accept probability that the LLM's agent gives it.

    Args:
        llm: The policy model, its candidate sets and template, and the agent that is trained.
        rows: With a `prompt`; other columns go to the reward functions.
        rewards: Score the answers.
        options: See `EnvironmentOptions`.
        seeds: Of each episode; nothing else decides what is drawn.
        batch_size: Most episodes at a time.

    Raises:
        PromptError: If a prompt is too long.
        RewardError: If a reward function fails.
    """
    starts = [Start(llm.encode(row["prompt"]), seed=seed) for row, seed in zip(rows, seeds, strict=True)]
    how: dict[str, Any] = {"strategy": "sampled"}
    width = llm.width
    if options.fallback == "last":
        # `fallback` counts from the most probable in reversed order.
        how["fallback"] = 0 if llm.order == "reversed" else -1
    if options.log_probability == "log-softmax":
        width = llm.top_k  # it is taken over the whole set
    answers = answer(llm.model_copy(update={"width": width}), starts, batch_size, keep=True, **how)
    scores = score_answers(rewards, rows, answers)
    return [episode_of(one, float(score), llm.agent, options) for one, score in zip(answers, scores, strict=True)]


# Not in inference mode, whose tensors cannot be learnt from.
@torch.no_grad()
def episode_of(answered: Answered, score: float, agent: MaraAgent | None, options: EnvironmentOptions) -> Episode:
    """The steps of an answer and their rewards.

    Args:
        answered: Decoded with states kept.
        score: Reward of the answer.
        agent: Whose accept probabilities the penalty is taken of.
        options: See `EnvironmentOptions`.

    Raises:
        ValueError: If there is no agent, or the states were not kept.
    """
    decided = [one for one in answered.decisions if len(one.candidates) > 1]
    if agent is None or any(one.kept is None for one in decided):
        raise ValueError("Episodes need an agent, and decisions with their states.")
    states, actions, rewards = [], [], []
    for one in decided:
        count = len(one.accept_probabilities)
        states.append(one.kept.states[:count].float().cpu())  # type: ignore[union-attr]
        actions.append(_actions(one, options))
        rewards.append(-options.penalty * _distances(one, agent, options))
    empty = torch.zeros(0, agent.hidden_size)
    all_actions = np.concatenate([np.zeros(0, np.int64), *actions])
    all_rewards = np.concatenate([np.zeros(0), *rewards])
    final = options.scale * (score - options.baseline)
    return Episode(
        answered,
        score,
        torch.cat([empty, *states]),
        torch.from_numpy(all_actions),
        torch.from_numpy(_with_final(all_rewards, all_actions, final, options)).float(),
    )


def _actions(decision: Decision, options: EnvironmentOptions) -> NDArray[np.int64]:
    """0 for every examined candidate but the accepted one, if there is one."""
    actions = np.zeros(len(decision.accept_probabilities), np.int64)
    actions[-1] = decision.accepted or options.fallback == "last"
    return actions


def _distances(decision: Decision, agent: MaraAgent, options: EnvironmentOptions) -> Floats:
    """Distance from the policy model, for each step of a position."""
    states, model_logs = decision.kept  # type: ignore[misc]
    logs = model_logs.double().cpu().numpy() / options.temperature
    count = len(decision.accept_probabilities)
    accept = agent.accept_probability(states.to(agent.ln.weight.device)).double().cpu().numpy()
    if options.log_probability == "log-softmax":
        before = np.cumprod(np.concatenate([[1.0], 1 - accept[:-1]])) if options.conditional else 1.0
        own = accept * before
        own = own - np.log(np.exp(own).sum())
        return _distance(own, logs, options)[:count]
    distances = np.zeros(count)
    emitted = np.array([_log_emitted(accept[:count], decision)])
    distances[-1:] = _distance(emitted, logs[decision.index : decision.index + 1], options)
    return distances


def _log_emitted(accept: Floats, decision: Decision) -> float:
    """Log-probability that accept/reject emits the token it did.

    The chance that all are rejected, and it is what decoding falls back on, is known where all were examined.
    """
    reached = np.concatenate([[1.0], np.cumprod(1 - accept)])
    probability = reached[decision.index] * accept[decision.index]
    count = len(decision.candidates)
    if len(accept) == count and decision.index == decision.request.options.fallback_index(count):
        probability += reached[-1]
    return math.log(max(float(probability), _TINY))


def _distance(own: Floats, model: Floats, options: EnvironmentOptions) -> Floats:
    difference = own - model
    if options.distance == "absolute":
        return np.asarray(np.abs(difference))
    if options.distance == "squared":
        return np.asarray(difference**2 / 2)
    return np.asarray(np.exp(own) * difference) if options.distance == "full" else difference


def _with_final(rewards: Floats, actions: NDArray[np.int64], final: float, options: EnvironmentOptions) -> Floats:
    """Adds the final reward to the last step, and, discounted, to earlier ones."""
    if not len(rewards):
        return rewards
    rewards = rewards.copy()
    if options.post_back == "none":
        rewards[-1] += final
        return rewards
    # Accepted steps from each step on, itself included, the last one left out.
    behind = actions[::-1].cumsum()[::-1] - actions[-1]
    shares = options.discount ** behind.astype(np.float64)
    if options.post_back == "all-but-first" and len(shares) > 1:
        shares[0] = 0.0
    rewards += final * shares
    return rewards

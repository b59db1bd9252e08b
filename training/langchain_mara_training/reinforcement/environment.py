"""The per-candidate decision process that agents are trained in by reinforcement (ALGORITHM.md section 4).

A state is what a candidate would produce, the actions are reject and accept. Behind a rejected candidate comes the
next one of its position, behind an accepted one the first of the next position at which there is a choice. An
episode is an answer; its reward is that of the answer, and a penalty of leaving the policy model.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from langchain_mara import MaraLLM
from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.request import Decision
from langchain_mara_training.data.readers import Row
from langchain_mara_training.generation.generate import AnswerStart, GeneratedAnswer, generate_answers, score_answers
from langchain_mara_training.rewards.weighted import WeightedRewards

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


class Steps(NamedTuple):
    """One answer and its steps, before it is scored.

    Attributes:
        answer: As it was decoded.
        states: (n, d) float32 on the CPU; the state behind a step is the next row's.
        actions: (n,) int64, 1 accept and 0 reject.
        penalties: (n,) float64, weighted.
    """

    answer: GeneratedAnswer
    states: Tensor
    actions: Tensor
    penalties: Floats


class Episode(NamedTuple):
    """One answer and its steps.

    Attributes:
        answer: As it was decoded.
        score: Reward of the answer; NaN where it was not scored.
        states: (n, d) float32 on the CPU; the state behind a step is the next row's.
        actions: (n,) int64, 1 accept and 0 reject.
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
    prompts = [llm.encode(row["prompt"]) for row in rows]
    return score_steps(take_steps(llm, prompts, options, seeds, batch_size), rows, rewards, options)


def take_steps(
    llm: MaraLLM, prompts: Sequence[list[int]], options: EnvironmentOptions, seeds: Sequence[int], batch_size: int
) -> list[Steps]:
    """The part of `play` that needs the policy model.

    Args:
        llm: As in `play`.
        prompts: Token ids of each.
        options: See `EnvironmentOptions`.
        seeds: One for each prompt.
        batch_size: Most episodes at a time.

    Raises:
        PromptError: If a prompt is too long.
    """
    starts = [AnswerStart(prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    how: dict[str, Any] = {"strategy": "sampled"}
    width = llm.width
    if options.fallback == "last":
        # `fallback` counts from the most probable in reversed order.
        how["fallback"] = 0 if llm.order == "reversed" else -1
    if options.log_probability == "log-softmax":
        width = llm.top_k  # it is taken over the whole set
    answers = generate_answers(llm.model_copy(update={"width": width}), starts, batch_size, keep=True, **how)
    return [steps_of(one, llm.agent, options) for one in answers]


def score_steps(
    steps: Sequence[Steps], rows: Sequence[Row], rewards: WeightedRewards, options: EnvironmentOptions
) -> list[Episode]:
    """The part of `play` that needs the reward functions: one row for each answer, as it has them.

    Raises:
        RewardError: If a reward function fails.
    """
    scores = score_answers(rewards, rows, [one.answer for one in steps])
    return [episode_of(one, float(score), options) for one, score in zip(steps, scores, strict=True)]


# Not in inference mode, whose tensors cannot be learnt from.
@torch.no_grad()
def steps_of(answered: GeneratedAnswer, agent: MaraAgent | None, options: EnvironmentOptions) -> Steps:
    """The steps of an answer, and the penalty of each.

    Args:
        answered: Decoded with states kept.
        agent: Whose accept probabilities the penalty is taken of.
        options: See `EnvironmentOptions`.

    Raises:
        ValueError: If there is no agent, or the states were not kept.
    """
    decided = [one for one in answered.decisions if len(one.candidates) > 1]
    if agent is None or any(one.kept is None for one in decided):
        raise ValueError("Episodes need an agent, and decisions with their states.")
    states, actions, penalties = [torch.zeros(0, agent.hidden_size)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for one, accept in zip(decided, _accept_probabilities(decided, agent, options), strict=True):
        count = len(one.accept_probabilities)
        states.append(one.kept.states[:count].float().cpu())  # type: ignore[union-attr]
        actions.append(_actions(one, options))
        penalties.append(options.penalty * _distances(one, accept, options))
    return Steps(answered, torch.cat(states), torch.from_numpy(np.concatenate(actions)), np.concatenate(penalties))


def episode_of(steps: Steps, score: float, options: EnvironmentOptions) -> Episode:
    """Steps with their rewards: the answer's score where the options want it, less the penalties."""
    final = options.scale * (score - options.baseline)
    rewards = _with_final(-steps.penalties, steps.actions.numpy(), final, options)
    return Episode(steps.answer, score, steps.states, steps.actions, torch.from_numpy(rewards).float())


def _actions(decision: Decision, options: EnvironmentOptions) -> NDArray[np.int64]:
    """0 for every examined candidate but the accepted one, if there is one."""
    actions = np.zeros(len(decision.accept_probabilities), np.int64)
    actions[-1] = decision.accepted or options.fallback == "last"
    return actions


def _accept_probabilities(
    decided: Sequence[Decision], agent: MaraAgent, options: EnvironmentOptions
) -> Iterator[Floats]:
    """Of each position: of what was examined, or, where the options need them, of all candidates."""
    if options.log_probability == "policy" or not decided:
        yield from (np.array(one.accept_probabilities) for one in decided)
        return
    states = [one.kept.states for one in decided]  # type: ignore[union-attr]
    # All at once: a call for each position would cost more than the passes of the policy model.
    accept = agent.accept_probability(torch.cat(states).to(agent.ln.weight.device)).double().cpu().numpy()
    yield from np.split(accept, np.cumsum([len(one) for one in states])[:-1])


def _distances(decision: Decision, accept: Floats, options: EnvironmentOptions) -> Floats:
    """Distance from the policy model, for each step of a position."""
    logs = decision.kept.log_probabilities.double().cpu().numpy() / options.temperature  # type: ignore[union-attr]
    count = len(decision.accept_probabilities)
    if options.log_probability == "log-softmax":
        before = np.cumprod(np.concatenate([[1.0], 1 - accept[:-1]])) if options.conditional else 1.0
        own = accept * before
        own = own - np.log(np.exp(own).sum())
        return _distance(own, logs, options)[:count]
    distances = np.zeros(count)
    emitted = np.array([_log_emitted(accept, decision)])
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

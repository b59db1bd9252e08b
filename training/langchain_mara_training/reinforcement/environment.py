"""The decision process, one step per candidate, in which reinforcement learning trains agents (paper section 4).

A state is the hidden state that a candidate would produce; the actions are reject and accept. After a rejected
candidate comes the next candidate of the same position. After an accepted one comes the first candidate of the next
position with more than one candidate. An episode is one answer. Its reward is the reward of the answer, less a penalty
for moving away from the policy model.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self, cast

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

PARALLEL = 16
"""Default number of episodes played at the same time."""
_TINY = 1e-8

Floats = NDArray[np.float64]


class EnvironmentOptions(BaseModel):
    """How episodes are played and rewarded; `reference()` gives the options of the paper's code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    penalty: float = Field(default=0.1, ge=0)
    """Weight of the distance from the policy model."""
    distance: Literal["difference", "absolute", "squared", "full"] = "difference"
    """Distance between log-probability a of accept/reject and log-probability b of the policy model: a - b, |a - b|,
    (a - b)² / 2, or exp(a) (a - b)."""
    log_probability: Literal["policy", "log-softmax"] = "policy"
    """Log-probability a. `policy`: that accept/reject emits the token, and only the deciding step is penalized.
    `log-softmax`, as in the reference: the log-softmax of the accept probabilities of the whole candidate set, and
    every step is penalized."""
    conditional: bool = True
    """For `log-softmax`: whether each accept probability is multiplied by the probability of reaching the candidate,
    that is, of rejecting all before it."""
    fallback: Literal["decoding", "last"] = "decoding"
    """Token emitted where all candidates are rejected: the fallback of decoding, or the last candidate, which then
    counts as accepted."""
    post_back: Literal["all", "all-but-first", "none"] = "all"
    """Earlier steps that also get the final reward, discounted by the accepted steps in between."""
    temperature: float = Field(default=1.0, gt=0)
    """Divisor of the policy model's log-probabilities; they are not normalized again."""
    discount: float = Field(default=0.99, ge=0, le=1)
    """Discount factor for each accepted step in between."""
    baseline: float = 0.0
    """Number subtracted from the reward of an answer."""
    scale: float = 1.0
    """Factor of that difference."""

    @classmethod
    def reference(cls, **changes: Any) -> Self:
        """The options of the reference implementation, known defects included, for comparison.

        Args:
            **changes: Fields of this class that differ from the reference.
        """
        reference: dict[str, Any] = {"log_probability": "log-softmax", "fallback": "last", "post_back": "all-but-first"}
        return cls(**{**reference, "temperature": 0.8, **changes})


class Steps(NamedTuple):
    """One answer and its steps, before it is scored.

    Attributes:
        answer: The decoded answer.
        states: (n, d) float32 on the CPU; the next state of a step is in the next row.
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
        states: (n, d) float32 on the CPU; the next state of a step is in the next row.
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
    return [steps_of(decoded, cast("MaraAgent", llm.agent), options) for decoded in answers]


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
def steps_of(decoded: GeneratedAnswer, agent: MaraAgent | None, options: EnvironmentOptions) -> Steps:
    """The steps of an answer, and the penalty of each.

    Args:
        decoded: Answer decoded with `keep_states=True`, so that its decisions have their states.
        agent: Agent whose accept probabilities the penalty compares with the policy model's probabilities.
        options: How the penalty is computed.

    Raises:
        ValueError: If there is no agent, or the states were not kept.
    """
    decisions = [decision for decision in decoded.decisions if len(decision.candidates) > 1]
    if agent is None or any(decision.candidate_states is None for decision in decisions):
        raise ValueError(
            "Episodes need an agent and the states of all decisions. Give the LLM an agent, and decode with "
            "keep_states=True."
        )
    states, actions, penalties = [torch.zeros(0, agent.hidden_size)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for decision, accept in zip(decisions, _accept_probabilities(decisions, agent, options), strict=True):
        count = len(decision.accept_probabilities)
        states.append(decision.candidate_states.states[:count].float().cpu())  # type: ignore[union-attr]
        actions.append(_actions(decision, options))
        penalties.append(options.penalty * _distances(decision, accept, options))
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


def _accept_probabilities(
    decisions: Sequence[Decision], agent: MaraAgent, options: EnvironmentOptions
) -> Iterator[Floats]:
    """Accept probabilities of each position: of the examined candidates, or of all where `log-softmax` needs them."""
    if options.log_probability == "policy" or not decisions:
        yield from (np.array(decision.accept_probabilities) for decision in decisions)
        return
    states = [decision.candidate_states.states for decision in decisions]  # type: ignore[union-attr]
    # One call for all positions: a call for each would cost more than the passes of the policy model.
    accept = agent.accept_probability(torch.cat(states).to(agent.ln.weight.device)).double().cpu().numpy()
    yield from np.split(accept, np.cumsum([len(set_states) for set_states in states])[:-1])


def _distances(decision: Decision, accept: Floats, options: EnvironmentOptions) -> Floats:
    """Distance from the policy model of each step of a position, (steps,)."""
    logs = decision.candidate_states.log_probabilities.double().cpu().numpy() / options.temperature  # type: ignore[union-attr]
    count = len(decision.accept_probabilities)
    if options.log_probability == "log-softmax":
        reached = np.cumprod(np.concatenate([[1.0], 1 - accept[:-1]])) if options.conditional else 1.0
        scores = accept * reached
        log_softmax = scores - np.log(np.exp(scores).sum())
        return _distance(log_softmax, logs, options)[:count]
    distances = np.zeros(count)
    emitted = np.array([_log_emitted(accept, decision)])
    distances[-1:] = _distance(emitted, logs[decision.index : decision.index + 1], options)
    return distances


def _log_emitted(accept: Floats, decision: Decision) -> float:
    """Log-probability that accept/reject emits the token it did.

    If the token is also the fallback, the probability that all candidates are rejected is added where it is known,
    that is, where all were examined.
    """
    reached = np.concatenate([[1.0], np.cumprod(1 - accept)])
    probability = reached[decision.index] * accept[decision.index]
    count = len(decision.candidates)
    if len(accept) == count and decision.index == decision.request.options.fallback_index(count):
        probability += reached[-1]
    return math.log(max(float(probability), _TINY))


def _distance(decided: Floats, model: Floats, options: EnvironmentOptions) -> Floats:
    """Distance between log-probabilities of accept/reject and of the policy model, element by element."""
    difference = decided - model
    if options.distance == "absolute":
        return np.asarray(np.abs(difference))
    if options.distance == "squared":
        return np.asarray(difference**2 / 2)
    return np.asarray(np.exp(decided) * difference) if options.distance == "full" else difference


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

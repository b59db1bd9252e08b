"""Token-level labels from rollouts: a candidate is accepted where completing it scores above its position.

ALGORITHM.md section 5. For each prompt:
    1. the LLM answers, with its agent if it has one;
    2. positions of these answers are drawn, at which it had a choice;
    3. each candidate there is completed and the completions are scored by the reward functions;
    4. candidates above the position's value are labelled accept, those below it reject.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from langchain_mara import MaraLLM
from langchain_mara.decoding.candidates import candidate_sets
from langchain_mara.exceptions import RewardError
from langchain_mara.options import options_error
from langchain_mara.policy.loaded_model import model_fingerprint
from langchain_mara.policy.model import PolicyModel
from langchain_mara_training.data.readers import Row, Source, prompt_numbers, read_prompts
from langchain_mara_training.generation.generate import AnswerStart, answer, score_answers
from langchain_mara_training.labeling.shards import label_shards
from langchain_mara_training.labeling.token_labels import LabelledTokens, TokenLabels
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.weighted import WeightedRewards

Numbered: TypeAlias = tuple[int, int, Row]
"""Number of a row, its group, and the row."""


class RolloutOptions(BaseModel):
    """How rollouts are made and judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generations: int = Field(default=1, ge=1)
    """Answers per prompt that positions are drawn from: the LLM's own, and further ones drawn at its temperature."""
    positions: int = Field(default=4, ge=1)
    """Most positions of an answer."""
    candidates: int = Field(default=8, ge=2)
    """Most candidates of a position, the most probable ones."""
    continuations: int = Field(default=1, ge=1)
    """Completions of each candidate: one is as the LLM decodes, several are drawn (`order="sampled"`)."""
    value: Literal["policy", "mean"] = "policy"
    """The position's value: the mean over candidates, weighted by the model's probabilities or not."""
    margin: float = Field(default=0.0, ge=0)
    """A candidate is tied whose mean reward is within this of the position's value, in units of the reward."""
    ties: Literal["accept", "drop"] = "accept"
    """What becomes of tied candidates: accepted, so that the agent stays close to the model, or no label."""
    weighting: Literal["uniform", "advantage"] = "uniform"
    """`advantage` weights a label by the distance of its reward from the position's value."""
    prompts_per_shard: int = Field(default=32, ge=1)
    """Prompts of a shard, which is what an interruption costs."""
    batch_size: int = Field(default=32, ge=1)
    """Most rollouts at a time."""


@dataclass(eq=False)
class Position:
    """A position whose candidates are compared.

    Attributes:
        row: The prompt's row of data.
        number: Of that row.
        group: Of the prompt.
        prompt_ids: Tokens of the prompt.
        answer_ids: Tokens of the answer before the position.
        candidates: Token ids, most probable first.
        probabilities: (candidates,) of the model, renormalised over them.
        states: (candidates, d) float16.
    """

    row: Row
    number: int
    group: int
    prompt_ids: list[int]
    answer_ids: list[int]
    candidates: list[int] = field(default_factory=list)
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    states: Tensor = field(default_factory=lambda: torch.zeros(0))


class RolloutLabeler:
    """Labels candidates by what becomes of them: on-policy estimates of the sign of the advantage.

    Args:
        llm: The policy model with its agent, if it has one, whose answers are to get better.
        reward_funcs: One or several reward functions in TRL's signature.
        reward_weights: One for each; by default 1.
        random_state: Seed of positions and drawn continuations.
        **options: Fields of `RolloutOptions`.

    Raises:
        OptionsError: If an option is unknown or out of range.
    """

    def __init__(
        self,
        llm: MaraLLM,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        *,
        reward_weights: Sequence[float] | None = None,
        random_state: int = 0,
        **options: Any,
    ) -> None:
        try:
            self.options = RolloutOptions(**options)
        except ValidationError as error:
            raise options_error(error, RolloutOptions.model_fields) from None
        self.llm = llm
        self.rewards = WeightedRewards(reward_funcs, reward_weights)
        self.random_state = random_state
        self._policy = PolicyModel(llm.model)

    def label(self, prompts: Source, output: str | Path | None = None) -> TokenLabels:
        """Labels candidates at positions of the LLM's own answers.

        Args:
            prompts: Texts, lists of messages, or rows with a `prompt`, from wherever `read_prompts` reads; other
                columns go to the reward functions.
            output: Folder for the shards; by default the labels stay in memory.

        Raises:
            DataError: If a row has no prompt, or no candidate gets a label.
            RewardError: If a reward function fails.
            TrainingError: If the folder holds other labels.
        """
        read = read_prompts(prompts)
        rows = list(zip(range(len(read)), prompt_numbers(read), read, strict=True))
        size = self.options.prompts_per_shard
        jobs = [rows[i : i + size] for i in range(0, len(rows), size)]
        return label_shards(
            jobs,
            self._compute,
            sizes=[len(job) * self.llm.max_new_tokens for job in jobs],
            identity=self._identity(rows),
            output=output,
            seed=self.random_state,
            description="rollouts",
        )

    def _compute(self, job: Sequence[Numbered]) -> LabelledTokens:
        positions = list(self._positions(job))
        for start in range(0, len(positions), self.options.batch_size):
            self._examine(positions[start : start + self.options.batch_size])
        rewards = self._rewards(positions)
        empty = LabelledTokens(
            torch.zeros((0, self._policy.hidden_size), dtype=torch.float16),
            *(torch.zeros(0, dtype=one) for one in (torch.int8, torch.float32, *[torch.int32] * 3, torch.int16)),
        )
        pairs = zip(positions, rewards, strict=True)
        return LabelledTokens.join([empty, *(self._labelled(position, scores) for position, scores in pairs)])

    def _positions(self, job: Sequence[Numbered]) -> Iterator[Position]:
        """Positions drawn from the LLM's answers, among those at which it had a choice."""
        starts = [
            AnswerStart(self.llm.encode(row["prompt"]), seed=self._seed(number, i), sampled=i > 0)
            for number, _, row in job
            for i in range(self.options.generations)
        ]
        answers = answer(self.llm, starts, self.options.batch_size)
        owners = [one for one in job for _ in range(self.options.generations)]
        for (number, group, row), start, answered in zip(owners, starts, answers, strict=True):
            decided = [i for i, one in enumerate(answered.decisions) if len(one.candidates) > 1]
            drawn = np.random.default_rng(start.seed).permutation(decided)[: self.options.positions]
            for place in sorted(drawn.tolist()):
                yield Position(row, number, group, start.prompt_ids, answered.token_ids[:place])

    @torch.inference_mode()
    def _examine(self, positions: Sequence[Position]) -> None:
        """Gives positions their candidates, with probabilities and states: one prefill, one pass of siblings."""
        policy = self._policy
        cache = policy.new_cache()
        lengths = torch.tensor([len(one.prompt_ids) + len(one.answer_ids) for one in positions])
        last = policy.prefill(cache, 0, [one.prompt_ids + one.answer_ids for one in positions])
        sets = candidate_sets(policy.logits(last), min(self.options.candidates, self.llm.top_k), self.llm.top_p)
        width = sets.token_ids.shape[1]
        slots = (lengths[:, None] + torch.arange(width)).to(policy.device)
        span = int(lengths.max()) + width
        cache.reserve(len(positions), span)
        states = policy.siblings(cache, sets.token_ids, slots, lengths.to(policy.device), span)
        for i, position in enumerate(positions):
            count = int(sets.counts[i])
            position.candidates = sets.token_ids[i, :count].tolist()
            position.probabilities = sets.scores[i, :count].softmax(-1).double().cpu().numpy()
            position.states = states[i, :count].to("cpu", torch.float16)

    def _rewards(self, positions: Sequence[Position]) -> list[NDArray[np.float64]]:
        """Mean reward of every candidate of every position, NaN where no completion was scored."""
        several = self.options.continuations > 1
        starts = [
            AnswerStart(
                one.prompt_ids,
                [*one.answer_ids, token],
                self._seed(one.number, len(one.answer_ids), rank, i),
                sampled=several,
            )
            for one in positions
            for rank, token in enumerate(one.candidates)
            for i in range(self.options.continuations)
        ]
        owners = [one for one in positions for _ in range(len(one.candidates) * self.options.continuations)]
        answers = answer(self.llm, starts, self.options.batch_size)
        scores = score_answers(self.rewards, [one.row for one in owners], answers)
        scores = scores.reshape(-1, self.options.continuations)
        counts = (~np.isnan(scores)).sum(1)
        means = np.where(counts > 0, np.nansum(scores, 1) / np.maximum(counts, 1), np.nan)
        return np.split(means, np.cumsum([len(one.candidates) for one in positions])[:-1]) if positions else []

    def _labelled(self, position: Position, rewards: NDArray[np.float64]) -> LabelledTokens:
        labels, weights = label_candidates(rewards, position.probabilities, self.options)
        kept = torch.from_numpy((labels >= 0) & position.states.isfinite().all(-1).numpy())
        count = len(labels)
        place = len(position.prompt_ids) + len(position.answer_ids)
        return LabelledTokens(
            states=position.states,
            labels=torch.from_numpy(labels).to(torch.int8),
            weights=torch.from_numpy(weights).float(),
            groups=torch.full((count,), position.group, dtype=torch.int32),
            token_ids=torch.tensor(position.candidates, dtype=torch.int32),
            positions=torch.full((count,), place, dtype=torch.int32),
            ranks=torch.arange(count, dtype=torch.int16),
        ).where(kept)

    def _seed(self, *place: int) -> int:
        digest = hashlib.sha256(repr((self.random_state, *place)).encode()).digest()
        return int.from_bytes(digest[:4], "little")

    def _identity(self, rows: Sequence[Numbered]) -> dict[str, object]:
        return {
            "labeler": "rollout",
            "model": model_fingerprint(self.llm.model),
            "agent": None if self.llm.agent is None else self.llm.agent.fingerprint,
            "data": hashlib.sha256(repr(rows).encode()).hexdigest()[:16],
            "rewards": self.rewards.names,
            "options": self.options.model_dump(),
            "decoding": {name: getattr(self.llm, name) for name in ("top_k", "top_p", "max_new_tokens", "stop")},
        }


def label_candidates(
    rewards: NDArray[np.float64], probabilities: NDArray[np.float64], options: RolloutOptions
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels of a position's candidates.

    Args:
        rewards: (candidates,) mean rewards, NaN where nothing was scored.
        probabilities: (candidates,) of the model.
        options: Value, margin, ties and weighting.

    Returns:
        (candidates,) labels, 1 accept, 0 reject, -1 none; and (candidates,) weights.

    Raises:
        RewardError: If a reward is infinite.
    """
    if np.isinf(rewards).any():
        raise RewardError("A reward is infinite; return finite numbers, or None for what is not scored.")
    scored = ~np.isnan(rewards)
    if not scored.any():
        return np.full(len(rewards), -1), np.zeros(len(rewards))
    shares = probabilities if options.value == "policy" else np.ones(len(rewards))
    advantages = rewards - np.average(rewards[scored], weights=shares[scored])
    # Equal rewards differ from their own mean by rounding.
    margin = max(options.margin, 1e-9 * float(np.abs(rewards[scored]).max()))
    labels = np.where(advantages > margin, 1, np.where(advantages < -margin, 0, 1 if options.ties == "accept" else -1))
    weights = np.ones(len(rewards)) if options.weighting == "uniform" else np.abs(advantages)
    return np.where(scored, labels, -1), np.where(scored, weights, 0.0)

"""Token-level labels from rollouts: a candidate is accepted if its completions score above the position's value.

See docs/algorithm.md, "Labels for single tokens". For each prompt:
    1. the LLM answers, with its agent if it has one;
    2. positions of these answers are drawn, among those with more than one candidate;
    3. each candidate of these positions is completed, and reward functions score the completions;
    4. candidates above the position's value are labeled accept, those below it reject.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from langchain_mara import MaraLLM
from langchain_mara.agents.base import Judges
from langchain_mara.decoding.candidates import candidate_sets
from langchain_mara.exceptions import RewardError
from langchain_mara.options import options_error
from langchain_mara.policy.verification import policy_of
from langchain_mara_training.data.row_report import RowReport
from langchain_mara_training.data.sources import OpenedSource, Source
from langchain_mara_training.engines.blocks import Engine, InProcess
from langchain_mara_training.generation.generate import AnswerStart, generate_answers, score_answers
from langchain_mara_training.generation.prompts import check_too_long
from langchain_mara_training.generation.states import check_judges, columns_of, features_before
from langchain_mara_training.labeling.prompt_rows import PromptRow, PromptRows, read_prompt_rows
from langchain_mara_training.labeling.rollout_options import RolloutOptions
from langchain_mara_training.labeling.shards import label_shards
from langchain_mara_training.labeling.token_labels import NO_PAIR, LabeledTokens, TokenLabels
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.callbacks import JobCallback
from langchain_mara_training.storage.defaults import OnBadRow, TooLong
from langchain_mara_training.storage.identity.content_digest import digest
from langchain_mara_training.storage.identity.job_identity import describe_llm, describe_rewards

_DTYPES = (torch.int8, torch.float32, torch.int64, torch.int32, torch.int32, torch.int16, torch.int32, torch.int32)


@dataclass(eq=False)
class Position:
    """A position whose candidates are compared.

    Attributes:
        source: The prompt's row of data.
        prompt_ids: Token ids of the prompt.
        answer_ids: Token ids of the answer before the position.
        candidates: Token ids of the candidates, most probable first.
        probabilities: (candidates,) float64 probabilities of the model, renormalized over the candidates.
        states: (candidates, columns) float16 states that the candidates produce, or `look_ahead_features` of them.
    """

    source: PromptRow
    prompt_ids: list[int]
    answer_ids: list[int]
    candidates: list[int] = field(default_factory=list)
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    states: Tensor = field(default_factory=lambda: torch.zeros(0))


class RolloutLabeler:
    """Labels candidates by the rewards of their completions: on-policy estimates of the sign of the advantage.

    Args:
        llm: Policy model, and the agent to improve if it has one.
        reward_funcs: One or several reward functions in TRL's signature.
        judges: What the agent to fit judges by, see `PreferenceLabeler`.
        reward_weights: Weight of each reward function; by default 1.
        too_long: What happens to a prompt that leaves no room for an answer: `error`, `skip`, or `truncate-left`, which
            cuts a prompt until `max_new_tokens` fit, but not below half of the context.
        on_bad_row: What happens to a row that cannot be used: `error`, or `skip`, which counts it.
        random_state: Seed of positions and drawn continuations.
        **options: Fields of `RolloutOptions`.

    Attributes:
        report_: What became of the rows of the last call: a `RowReport`.

    Raises:
        OptionsError: If an option is unknown or out of range.
    """

    def __init__(
        self,
        llm: MaraLLM,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        *,
        judges: Judges = "after",
        reward_weights: Sequence[float] | None = None,
        too_long: TooLong = "error",
        on_bad_row: OnBadRow = "error",
        random_state: int = 0,
        **options: Any,
    ) -> None:
        try:
            self.options = RolloutOptions(**options)
        except ValidationError as error:
            raise options_error(error, RolloutOptions.model_fields) from None
        check_too_long(too_long)
        check_judges(judges)
        self.judges = judges
        self.too_long = too_long
        self.on_bad_row = on_bad_row
        self.report_ = RowReport(on_bad_row)
        self.llm = llm
        self.rewards = WeightedRewards(reward_funcs, reward_weights)
        self.random_state = random_state
        self._policy = policy_of(llm.model)

    def label(
        self,
        prompts: Source | PromptRows,
        output: str | Path | None = None,
        *,
        callbacks: JobCallback | Sequence[JobCallback] = (),
        engine: Engine | None = None,
    ) -> TokenLabels:
        """Labels candidates at positions of the LLM's own answers.

        Args:
            prompts: Texts, lists of messages, rows with a `prompt`, any other source that `read_prompts` reads, or what
                `read` returned. Other columns go to the reward functions.
            output: Folder of the shards; by default the labels stay in memory.
            callbacks: One or several `JobCallback`s: a step is a shard, and so is a checkpoint if there is an `output`.
                If one stops the job, you get the labels of the shards so far, and the folder can resume.
            engine: What computes the shards: `RayData` with labelers like this one; by default this process.

        Raises:
            DataError: If a row has no prompt, or no candidate gets a label.
            RewardError: If a reward function fails.
            TrainingError: If the folder holds other labels.
        """
        rows = prompts if isinstance(prompts, PromptRows) else self.read(prompts)
        size = self.options.prompts_per_shard
        jobs = [rows[i : i + size] for i in range(0, len(rows), size)]
        return label_shards(
            jobs,
            list,
            engine or InProcess(self),
            sizes=[len(job) * self.llm.max_new_tokens for job in jobs],
            identity=lambda: self._identity(rows),
            output=output,
            seed=self.random_state,
            description="rollouts",
            callbacks=callbacks,
        )

    def read(self, prompts: Source) -> PromptRows:
        """Reads and judges all rows. Nothing is generated yet.

        Args:
            prompts: See `label`.

        Raises:
            DataError: If a row cannot be used, or none is left.
        """
        self.report_ = prompts.report if isinstance(prompts, OpenedSource) else RowReport(self.on_bad_row)
        return read_prompt_rows(self.llm, prompts, self._policy.context, self.too_long, self.report_)

    def compute(self, job: Sequence[PromptRow]) -> LabeledTokens:
        """Labels candidates at positions of the answers to a shard's prompts."""
        positions = list(self._positions(job))
        for start in range(0, len(positions), self.options.batch_size):
            self._examine(positions[start : start + self.options.batch_size])
        rewards = self._rewards(positions)
        empty = LabeledTokens(
            torch.zeros((0, columns_of(self.judges, self._policy.hidden_size)), dtype=torch.float16),
            *(torch.zeros(0, dtype=dtype) for dtype in _DTYPES),
        )
        pairs = zip(positions, rewards, strict=True)
        return LabeledTokens.join([empty, *(self._labeled_tokens(position, scores) for position, scores in pairs)])

    def _positions(self, job: Sequence[PromptRow]) -> Iterator[Position]:
        """Positions drawn from the LLM's answers, among those with more than one candidate."""
        starts = [
            AnswerStart(source.prompt_ids, seed=self._seed(source.number, i), sampled=i > 0)
            for source in job
            for i in range(self.options.generations)
        ]
        answers = generate_answers(self.llm, starts, self.options.batch_size)
        sources = [source for source in job for _ in range(self.options.generations)]
        for source, start, answer in zip(sources, starts, answers, strict=True):
            choices = [i for i, decision in enumerate(answer.decisions) if len(decision.candidates) > 1]
            drawn = np.random.default_rng(start.seed).permutation(choices)[: self.options.positions]
            for index in sorted(drawn.tolist()):
                yield Position(source, start.prompt_ids, answer.token_ids[:index])

    @torch.inference_mode()
    def _examine(self, positions: Sequence[Position]) -> None:
        """Sets the positions' candidates with their probabilities and states: one prefill, one pass over siblings."""
        policy = self._policy
        cache = policy.new_cache()
        prefixes = [position.prompt_ids + position.answer_ids for position in positions]
        lengths = [len(prefix) for prefix in prefixes]
        last_states = policy.prefill(cache, 0, prefixes)
        sets = candidate_sets(policy.logits(last_states), min(self.options.candidates, self.llm.top_k), self.llm.top_p)
        width = sets.token_ids.shape[1]
        slots = [range(length, length + width) for length in lengths]
        span = max(lengths) + width
        cache.reserve(len(positions), span)
        states = policy.siblings(cache, sets.token_ids, slots, lengths, span)
        if self.judges == "before":
            states = features_before(policy, last_states, sets.token_ids)
        for i, position in enumerate(positions):
            count = int(sets.counts[i])
            position.candidates = sets.token_ids[i, :count].tolist()
            position.probabilities = sets.scores[i, :count].softmax(-1).double().cpu().numpy()
            position.states = states[i, :count].to("cpu", torch.float16)

    def _rewards(self, positions: Sequence[Position]) -> list[NDArray[np.float64]]:
        """Mean rewards (candidates,) of each position's candidates; NaN if no completion was scored."""
        continuations = self.options.continuations
        starts = [
            AnswerStart(
                position.prompt_ids,
                [*position.answer_ids, token],
                self._seed(position.source.number, len(position.answer_ids), rank, i),
                sampled=continuations > 1,
            )
            for position in positions
            for rank, token in enumerate(position.candidates)
            for i in range(continuations)
        ]
        rows = [p.source.row for p in positions for _ in range(len(p.candidates) * continuations)]
        answers = generate_answers(self.llm, starts, self.options.batch_size)
        scores = score_answers(self.rewards, rows, answers).reshape(-1, continuations)
        counts = (~np.isnan(scores)).sum(1)
        means = np.where(counts > 0, np.nansum(scores, 1) / np.maximum(counts, 1), np.nan)
        return np.split(means, np.cumsum([len(p.candidates) for p in positions])[:-1]) if positions else []

    def _labeled_tokens(self, position: Position, rewards: NDArray[np.float64]) -> LabeledTokens:
        labels, weights = label_candidates(rewards, position.probabilities, self.options)
        kept = torch.from_numpy((labels >= 0) & position.states.isfinite().all(-1).numpy())
        count = len(labels)
        index = len(position.prompt_ids) + len(position.answer_ids)
        return LabeledTokens(
            states=position.states,
            labels=torch.from_numpy(labels).to(torch.int8),
            weights=torch.from_numpy(weights).float(),
            groups=torch.full((count,), position.source.group, dtype=torch.int64),
            token_ids=torch.tensor(position.candidates, dtype=torch.int32),
            positions=torch.full((count,), index, dtype=torch.int32),
            ranks=torch.arange(count, dtype=torch.int16),
            pairs=torch.full((count,), NO_PAIR, dtype=torch.int32),
            offsets=torch.full((count,), NO_PAIR, dtype=torch.int32),
        ).where(kept)

    def _seed(self, *numbers: int) -> int:
        digest = hashlib.sha256(repr((self.random_state, *numbers)).encode()).digest()
        return int.from_bytes(digest[:4], "little")

    def _identity(self, rows: Sequence[PromptRow]) -> dict[str, object]:
        return {
            "labeler": "rollout",
            "llm": {name: value for name, value in describe_llm(self.llm).items() if name != "model_id"},
            # As plain tuples, so that renaming the class does not change the digest.
            "data": digest([tuple(row) for row in rows]),
            "rewards": describe_rewards(self.rewards),
            "options": self.options.model_dump(),
            **({} if self.judges == "after" else {"judges": self.judges}),
        }


def label_candidates(
    rewards: NDArray[np.float64], probabilities: NDArray[np.float64], options: RolloutOptions
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels a position's candidates.

    Args:
        rewards: (candidates,) mean rewards; NaN for candidates that were not scored.
        probabilities: (candidates,) probabilities of the model.
        options: Options of which `value`, `margin`, `ties` and `weighting` are used.

    Returns:
        (candidates,) int64 labels, 1 accept, 0 reject, -1 none; and (candidates,) float64 weights.

    Raises:
        RewardError: If a reward is infinite.
    """
    if np.isinf(rewards).any():
        raise RewardError("A reward is infinite. Return finite numbers, or None for a completion that is not scored.")
    is_scored = ~np.isnan(rewards)
    if not is_scored.any():
        return np.full(len(rewards), -1), np.zeros(len(rewards))
    shares = probabilities if options.value == "policy" else np.ones(len(rewards))
    advantages = rewards - np.average(rewards[is_scored], weights=shares[is_scored])
    # Rounding can make equal rewards differ from their own mean.
    margin = max(options.margin, 1e-9 * float(np.abs(rewards[is_scored]).max()))
    labels = np.where(advantages > margin, 1, np.where(advantages < -margin, 0, 1 if options.ties == "accept" else -1))
    weights = np.ones(len(rewards)) if options.weighting == "uniform" else np.abs(advantages)
    return np.where(is_scored, labels, -1), np.where(is_scored, weights, 0.0)

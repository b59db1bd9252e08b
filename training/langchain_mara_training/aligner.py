"""MaraAligner: labels, fits, decodes with the new agent and labels again, behind `fit` and `predict`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError, OptionsError
from langchain_mara_training.data.readers import Row, Source, read_pairs, read_prompts, read_rows
from langchain_mara_training.fitting.classifier import MaraClassifier
from langchain_mara_training.generation.costs import count_passes
from langchain_mara_training.generation.generate import AnswerStart, GeneratedAnswer, generate_answers, score_answers
from langchain_mara_training.labeling.preference import PreferenceLabeler
from langchain_mara_training.labeling.rollout import RolloutLabeler
from langchain_mara_training.labeling.token_labels import TokenLabels
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.preference_reward import PreferenceReward
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.atomic import write_atomically
from langchain_mara_training.storage.model_card import save_agent

Labeler = Literal["preference", "rollout"]
HistoryEntry = dict[str, float]
"""What the history says of a round."""

_BATCH_SIZE = 32
_DRAWN_ANSWERS = 4


class MaraAligner(BaseEstimator):  # type: ignore[misc]
    """Aligns a frozen LLM: `fit` trains an agent for it, `predict` answers prompts with that agent.

    A round labels tokens, fits an agent on all labels so far, and hands the agent to the next round, because
    decoding with it visits new states (ALGORITHM.md section 5).

    - `labeler="preference"`: the first round labels the pairs given. Each later round draws answers with the
      current agent, and the best and the worst of a prompt by reward become its pair.
    - `labeler="rollout"`: each round labels candidates by completing them (`RolloutLabeler`).

    Args:
        llm: The policy model; an agent it has already is what the first round begins with.
        reward_funcs: One or several reward functions in TRL's signature. By default a `PreferenceReward` is fitted
            on the pairs.
        reward_weights: One for each reward function; by default 1.
        labeler: `preference` or `rollout`.
        classifier: A `MaraClassifier` to fit in each round; by default one with its own defaults.
        rounds: How often to label and fit.
        labeler_options: Further arguments of `PreferenceLabeler` or `RolloutLabeler`.
        output: Folder for labels, checkpoints and agents; a fit that was killed goes on there.
        random_state: Seed of everything; on a CPU, equal seeds give equal agents, to the bit.

    Attributes:
        agent_: The `MaraAgent` of the last round.
        llm_: The LLM with that agent.
        classifier_: The fitted classifier.
        rewards_: The `WeightedRewards` that score.
        history_: For each round a dict: labels, share of accept, passes of the policy model and seconds of
            labelling, seconds of fitting, mean reward of the answers to (at most 100 of) the training prompts, with
            the agent of that round.

    Example:
        >>> aligner = MaraAligner(MaraLLM.demo(agent=None), labeler="preference", rounds=1).fit(pairs)
        >>> aligner.predict(["How do I boil an egg?"])
    """

    def __init__(
        self,
        llm: MaraLLM,
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None = None,
        *,
        reward_weights: Sequence[float] | None = None,
        labeler: Labeler = "preference",
        classifier: MaraClassifier | None = None,
        rounds: int = 3,
        labeler_options: dict[str, Any] | None = None,
        output: str | Path | None = None,
        random_state: int = 0,
    ) -> None:
        self.llm = llm
        self.reward_funcs = reward_funcs
        self.reward_weights = reward_weights
        self.labeler = labeler
        self.classifier = classifier
        self.rounds = rounds
        self.labeler_options = labeler_options
        self.output = output
        self.random_state = random_state

    def fit(self, X: Source, y: None = None) -> Self:  # noqa: ARG002, N803 - scikit-learn's names
        """Trains the agent.

        Args:
            X: Preference pairs, needed for preference labels and where no reward function is given; else prompts.
            y: Ignored.

        Raises:
            OptionsError: If `labeler` or `rounds` make no sense.
            DataError: If the data lack what the labeler needs.
        """
        if self.labeler not in ("preference", "rollout") or self.rounds < 1:
            raise OptionsError(f"labeler={self.labeler!r} (preference or rollout), rounds={self.rounds} (at least 1).")
        rows = self._read(X)
        functions = PreferenceReward().fit(rows) if self.reward_funcs is None else self.reward_funcs
        self.rewards_ = WeightedRewards(functions, self.reward_weights)
        self.history_: list[HistoryEntry] = []
        self.llm_ = self.llm
        labels: TokenLabels | None = None
        for number in range(1, self.rounds + 1):
            started = time.perf_counter()
            with count_passes(self.llm.model) as count:
                new = self._label(rows, number)
            labels = new if labels is None else labels + new
            labelled = time.perf_counter()
            self._fit_agent(labels, number)
            seconds = {"label_seconds": labelled - started, "fit_seconds": time.perf_counter() - labelled}
            costs = {"label_passes": count.passes, **seconds}
            self.history_.append(self._noted(number, new, rows[:100], costs))
        return self

    def predict(self, X: Source) -> list[str]:  # noqa: N803
        """Aligned answers to prompts, in order."""
        check_is_fitted(self, "agent_")
        return [one.text for one in self._answers(read_prompts(X))]

    def score(self, X: Source, y: None = None) -> float:  # noqa: ARG002, N803
        """Mean reward of the aligned answers, over those that are scored."""
        check_is_fitted(self, "agent_")
        return self._mean_reward(read_prompts(X))

    def __sklearn_clone__(self) -> Self:
        # scikit-learn would copy the model's weights.
        return type(self)(**self.get_params(deep=False))

    def _read(self, source: Source) -> list[Row]:
        rows = read_rows(source)
        if self.labeler == "preference" or self.reward_funcs is None:
            try:
                return read_pairs(rows)
            except DataError as error:
                raise DataError(
                    f"{error} Preference labels, and the reward that is fitted by default, need pairs; "
                    "for prompts alone give reward_funcs and labeler='rollout'."
                ) from None
        return _distinct(read_prompts(rows))

    def _label(self, rows: list[Row], number: int) -> TokenLabels:
        seed = self.random_state + number
        options = {"random_state": seed, **(self.labeler_options or {})}
        output = None if self.output is None else Path(self.output) / f"round-{number}" / "labels"
        if self.labeler == "rollout":
            own = [{k: v for k, v in row.items() if k not in ("chosen", "rejected")} for row in _distinct(rows)]
            return RolloutLabeler(self.llm_, self.rewards_, **options).label(own, output)
        pairs = rows if number == 1 else self._drawn_pairs(_distinct(rows), seed)
        return PreferenceLabeler(self.llm_, **options).label(pairs, output)

    def _fit_agent(self, labels: TokenLabels, number: int) -> None:
        classifier = clone(self.classifier) if self.classifier is not None else MaraClassifier()
        changes: dict[str, Any] = {"random_state": self.random_state}
        changes["policy_model"] = classifier.policy_model or self.llm.model_id
        if self.output is not None:
            changes["checkpoint_dir"] = Path(self.output) / f"round-{number}" / "checkpoints"
        self.classifier_ = classifier.set_params(**changes).fit(
            labels.X, labels.y, sample_weight=labels.weight, groups=labels.groups
        )
        self.agent_ = self.classifier_.agent_
        self.llm_ = self.llm.with_agent(self.agent_)
        if self.output is not None:
            fitting = {**self.classifier_.get_params(), "checkpoint_dir": None, "device": None, "verbose": None}
            share = float(labels.y.mean())
            origin = {"labeler": self.labeler, "round": number, "labels": len(labels), "accept_share": share}
            tables = {"Labels": {**origin, "rewards": self.rewards_.names}, "Fitting": fitting}
            save_agent(self.agent_, Path(self.output) / f"round-{number}" / "agent", tables)

    def _noted(self, number: int, labels: TokenLabels, rows: Sequence[Row], costs: dict[str, float]) -> HistoryEntry:
        """The round's entry of the history: of one that was done before, as it was noted then."""
        file = None if self.output is None else Path(self.output) / f"round-{number}" / "history.json"
        if file is not None and file.is_file():
            noted: HistoryEntry = json.loads(file.read_text(encoding="utf-8"))
            return noted
        found = {"round": number, "labels": len(labels), "accept_share": float(labels.y.mean()), **costs}
        found["mean_reward"] = self._mean_reward(rows)
        if file is not None:
            write_atomically(file, json.dumps(found, indent=2).encode())
        return found

    def _drawn_pairs(self, rows: Sequence[Row], seed: int) -> list[Row]:
        """The best and the worst of some drawn answers of each prompt, where they differ in reward."""
        repeated = [row for row in rows for _ in range(_DRAWN_ANSWERS)]
        answers = self._answers(repeated, seed)
        scores = score_answers(self.rewards_, repeated, answers).reshape(-1, _DRAWN_ANSWERS)
        pairs = []
        for i, (row, own) in enumerate(zip(rows, scores, strict=True)):
            if np.isnan(own).all() or np.nanmax(own) == np.nanmin(own):
                continue
            best, worst = (answers[i * _DRAWN_ANSWERS + int(place)] for place in (np.nanargmax(own), np.nanargmin(own)))
            pairs.append({**row, "chosen": best.text, "rejected": worst.text})
        if not pairs:
            raise DataError("All answers drawn for a further round have the same reward. Set rounds=1.")
        return pairs

    def _answers(self, rows: Sequence[Row], seed: int | None = None) -> list[GeneratedAnswer]:
        """One answer for each row; drawn where a seed is given."""
        encoded = [self.llm_.encode(row["prompt"]) for row in rows]
        starts = [
            AnswerStart(ids, seed=(seed or 0) * len(rows) + i, sampled=seed is not None)
            for i, ids in enumerate(encoded)
        ]
        return generate_answers(self.llm_, starts, _BATCH_SIZE)

    def _mean_reward(self, rows: Sequence[Row]) -> float:
        return float(np.nanmean(score_answers(self.rewards_, rows, self._answers(rows))))


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """The first row of every prompt; its place becomes the prompt's number."""
    first: dict[str, Row] = {}
    for number, row in enumerate(rows):
        first.setdefault(repr(row["prompt"]), {"group": number, **row})
    return list(first.values())

"""MaraAligner: labels, fits, decodes with the new agent and labels again, with a `fit` and `predict` interface."""

import time
from collections.abc import Sequence
from itertools import takewhile
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
from langchain_mara_training.generation.generate import score_answers
from langchain_mara_training.labeling.drawn_pairs import answer_rows, distinct_prompts, draw_pairs
from langchain_mara_training.labeling.preference import PreferenceLabeler
from langchain_mara_training.labeling.rollout import RolloutLabeler
from langchain_mara_training.labeling.token_labels import TokenLabels
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.fitted.state_reward import StateReward
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.callbacks import JobCallback, JobEvents, as_callbacks, job_events
from langchain_mara_training.storage.identity.content_digest import digest
from langchain_mara_training.storage.identity.job_identity import claim, describe_llm, describe_rewards
from langchain_mara_training.storage.lock import job_lock
from langchain_mara_training.storage.model_card import save_agent
from langchain_mara_training.storage.records import read_sealed, write_sealed

Labeler = Literal["preference", "rollout"]
"""Source of the labels."""
HistoryEntry = dict[str, float]
"""Labels, costs and mean reward of a round, by name; see `MaraAligner.history_`."""

_IDENTITY = "job.json"
# The aligner sets these parameters of its classifier, or results do not depend on them.
_NOT_OF_A_JOB = {"callbacks", "checkpoint_dir", "device", "policy_model", "random_state", "verbose"}
_NOT_OF_A_CARD = ("callbacks", "checkpoint_dir", "device", "verbose")
# scikit-learn would copy weights and connections.
_SHARED_BY_CLONES = {"llm", "reward_funcs"}
_SCORED_PROMPTS = 100


class MaraAligner(BaseEstimator):  # type: ignore[misc]
    """Aligns a frozen LLM: `fit` trains an agent for it, `predict` answers prompts with that agent.

    Each round labels tokens, fits an agent on all labels so far, and passes the agent to the next round, because
    decoding with it visits new states (docs/algorithm.md, "Labels for single tokens").

    - `labeler="preference"`: the first round labels the given pairs. Each later round draws answers with the
      current agent; the answers with the highest and lowest reward become the prompt's pair.
    - `labeler="rollout"`: each round labels candidates by completing them (`RolloutLabeler`).

    Args:
        llm: Policy model. If it has an agent, the first round starts with that agent.
        reward_funcs: One or several reward functions in TRL's signature. By default a `StateReward` of the LLM is
            fitted on the pairs.
        reward_weights: Weight of each reward function; by default 1.
        labeler: Source of the labels: `preference` or `rollout`.
        classifier: `MaraClassifier` to fit in each round; by default one with default parameters.
        rounds: Number of rounds.
        labeler_options: Further arguments of `PreferenceLabeler` or `RolloutLabeler`.
        output: Folder for labels, checkpoints and agents. A killed fit resumes there. A grid search needs aligners
            without a folder, because its fits are different jobs.
        callbacks: One or several `JobCallback`s: a step is a round, and so is a checkpoint if there is an `output`.
            Callbacks for the epochs of each fit are given to the `classifier`.
        random_state: Seed of all random draws. On a CPU, equal seeds give equal agents, to the bit.

    Attributes:
        agent_: The `MaraAgent` of the last round. If `fit` fails after a round, it is that of the last whole round, and
            the exception has a note that says so.
        llm_: The LLM with that agent.
        classifier_: The classifier fitted in the last round.
        rewards_: The `WeightedRewards` that score answers.
        history_: A dict for each round: number of labels, share of accept, passes of the policy model and seconds
            spent labeling, seconds spent fitting, and the mean reward of answers to at most 100 of the training
            prompts with the agent of that round.

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
        callbacks: JobCallback | Sequence[JobCallback] = (),
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
        self.callbacks = callbacks
        self.random_state = random_state

    def fit(self, X: Source, y: None = None) -> Self:  # noqa: ARG002, N803 - scikit-learn's names
        """Trains the agent.

        Args:
            X: Preference pairs, or prompts. Preference labels need pairs, and so does the default reward.
            y: Ignored.

        Raises:
            OptionsError: If `labeler` is unknown or `rounds` is below 1.
            DataError: If the data lack columns that the labeler needs.
            TrainingError: If the output folder belongs to another job, or another process works there.
            RewardError: If there is an output folder and a reward function cannot be told from others.
        """
        if self.labeler not in ("preference", "rollout") or self.rounds < 1:
            raise OptionsError(
                f"Invalid options: labeler={self.labeler!r} (preference or rollout), rounds={self.rounds} (at least 1)."
            )
        as_callbacks(self.callbacks)
        rows = self._read(X)
        functions = StateReward(self.llm).fit(rows) if self.reward_funcs is None else self.reward_funcs
        self.rewards_ = WeightedRewards(functions, self.reward_weights)
        with job_lock(self.output):
            if self.output is not None:
                self._claim(Path(self.output).expanduser(), rows)
            return self._run_rounds(rows)

    def _run_rounds(self, rows: list[Row]) -> Self:
        self.history_: list[HistoryEntry] = []
        self.llm_, self._agent_round = self.llm, 0
        try:
            with job_events(self.callbacks, "align", "rounds", self.rounds, self._rounds_done()) as events:
                self._rounds(rows, events)
        except BaseException as error:
            if number := self._agent_round:
                error.add_note(
                    f"Alignment ended before {self.rounds} rounds were done; agent_ is that of round {number}."
                )
            raise
        return self

    def _rounds_done(self) -> int:
        """Number of rounds that an earlier call finished in the folder."""
        numbers = range(1, self.rounds + 1) if self.output is not None else ()
        return sum(1 for _ in takewhile(lambda number: self._history_file(number).is_file(), numbers))

    def _history_file(self, number: int) -> Path:
        return Path(self.output or "").expanduser() / f"round-{number}" / "history.json"

    def _rounds(self, rows: list[Row], events: JobEvents) -> None:
        labels: TokenLabels | None = None
        for number in range(1, self.rounds + 1):
            started = time.perf_counter()
            with count_passes(self.llm.model) as count:
                new_labels = self._label(rows, number)
            labels = new_labels if labels is None else labels + new_labels
            label_end = time.perf_counter()
            self._fit_agent(labels, number)
            seconds = {"label_seconds": label_end - started, "fit_seconds": time.perf_counter() - label_end}
            costs = {"label_passes": count.passes, **seconds}
            self.history_.append(self._history_entry(number, new_labels, rows[:_SCORED_PROMPTS], costs))
            if number <= events.progress.done:
                continue  # callbacks were told of it before the fit was resumed
            stop = events.step(number, **self.history_[-1])
            if self.output is not None:
                events.checkpoint()
            if stop:
                return

    def predict(self, X: Source) -> list[str]:  # noqa: N803
        """Aligned answers to prompts, in order."""
        check_is_fitted(self, "agent_")
        return [answer.text for answer in answer_rows(self.llm_, read_prompts(X))]

    def score(self, X: Source, y: None = None) -> float:  # noqa: ARG002, N803
        """Mean reward of the aligned answers; answers that the rewards do not score are left out."""
        check_is_fitted(self, "agent_")
        return self._mean_reward(read_prompts(X))

    def set_params(self, **params: Any) -> Self:
        """Sets parameters as in scikit-learn; `classifier__width` and the like also where `classifier` is None."""
        if params.get("classifier", self.classifier) is None and any(
            name.startswith("classifier__") for name in params
        ):
            params = {**params, "classifier": MaraClassifier()}
        super().set_params(**params)
        return self

    def __sklearn_clone__(self) -> Self:
        parameters = self.get_params(deep=False)
        copied = {name: clone(parameters[name], safe=False) for name in parameters.keys() - _SHARED_BY_CLONES}
        return type(self)(**parameters | copied)

    def _read(self, source: Source) -> list[Row]:
        rows = read_rows(source)
        if self.labeler == "preference" or self.reward_funcs is None:
            try:
                return read_pairs(rows)
            except DataError as error:
                raise DataError(
                    f"{error} Preference labels and the default reward need pairs. "
                    "For prompts alone, give reward_funcs and labeler='rollout'."
                ) from None
        return distinct_prompts(read_prompts(rows))

    def _claim(self, folder: Path, rows: list[Row]) -> None:
        """Writes the identity of the job to its folder, or checks that the folder holds the same one."""
        classifier = MaraClassifier() if self.classifier is None else self.classifier
        identity = {
            "llm": {name: value for name, value in describe_llm(self.llm).items() if name != "model_id"},
            "rewards": describe_rewards(self.rewards_),
            "data": digest(rows),
            "labeler": self.labeler,
            "labeler_options": self.labeler_options or {},
            "classifier": {
                name: repr(value) for name, value in classifier.get_params().items() if name not in _NOT_OF_A_JOB
            },
            "random_state": self.random_state,
        }
        claim(folder / _IDENTITY, identity, (folder / "round-1").exists)

    def _label(self, rows: list[Row], number: int) -> TokenLabels:
        seed = self.random_state + number
        look_ahead = self.classifier is not None and self.classifier.agent == "look-ahead"
        judges = {"judges": "before"} if look_ahead else {}
        options = {"random_state": seed, **judges, **(self.labeler_options or {})}
        output = None if self.output is None else Path(self.output) / f"round-{number}" / "labels"
        if self.labeler == "rollout":
            # Reward functions must not get the pair's answers as columns.
            prompts = [
                {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
                for row in distinct_prompts(rows)
            ]
            return RolloutLabeler(self.llm_, self.rewards_, **options).label(prompts, output)
        pairs = rows if number == 1 else draw_pairs(self.llm_, self.rewards_, distinct_prompts(rows), seed)
        return PreferenceLabeler(self.llm_, **options).label(pairs, output)

    def _fit_agent(self, labels: TokenLabels, number: int) -> None:
        classifier = clone(self.classifier) if self.classifier is not None else MaraClassifier()
        changes: dict[str, Any] = {"random_state": self.random_state}
        if self.classifier is not None:
            changes["callbacks"] = self.classifier.callbacks  # the user's own, not copies
        changes["policy_model"] = classifier.policy_model or self.llm.model_id
        if self.output is not None:
            changes["checkpoint_dir"] = Path(self.output) / f"round-{number}" / "checkpoints"
        classifier.set_params(**changes)
        try:
            classifier.fit(labels.X, labels.y, sample_weight=labels.weight, groups=labels.groups)
        finally:
            if number == 1 and hasattr(classifier, "agent_"):
                self._keep(classifier)  # of a first round that failed, this is all there is
        self._keep(classifier)
        self._agent_round = number
        if self.output is not None:
            fitting = {
                **self.classifier_.get_params(),
                **dict.fromkeys(("callbacks", "checkpoint_dir", "device", "verbose")),
            }
            share = float(labels.y.mean())
            origin = {"labeler": self.labeler, "round": number, "labels": len(labels), "accept_share": share}
            tables = {"Labels": {**origin, "rewards": self.rewards_.names}, "Fitting": fitting}
            save_agent(self.agent_, Path(self.output) / f"round-{number}" / "agent", tables)

    def _keep(self, classifier: MaraClassifier) -> None:
        self.classifier_ = classifier
        self.agent_ = classifier.agent_
        self.llm_ = self.llm.with_agent(self.agent_)

    def _history_entry(
        self, number: int, labels: TokenLabels, rows: Sequence[Row], costs: dict[str, float]
    ) -> HistoryEntry:
        """The history entry of a round. A resumed fit reads the entries of finished rounds from their files."""
        file = None if self.output is None else self._history_file(number)
        entry: HistoryEntry
        if file is not None and file.is_file():
            entry = read_sealed(file, "Delete this file, and the round is measured again.")
            return entry
        entry = {"round": number, "labels": len(labels), "accept_share": float(labels.y.mean()), **costs}
        entry["mean_reward"] = self._mean_reward(rows)
        if file is not None:
            write_sealed(file, entry)
        return entry

    def _mean_reward(self, rows: Sequence[Row]) -> float:
        return float(np.nanmean(score_answers(self.rewards_, rows, answer_rows(self.llm_, rows))))

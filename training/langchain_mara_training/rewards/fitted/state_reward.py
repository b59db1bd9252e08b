"""StateReward: a reward function fitted on preference pairs, from the states of the policy model or embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator

from langchain_mara.exceptions import CheckpointError, DataError, OptionsError, RewardError
from langchain_mara_training.data.readers import Prompt, Row, Source, read_pairs
from langchain_mara_training.rewards.calling import TextReward
from langchain_mara_training.rewards.fitted.bradley_terry import fit_head, ordered_rightly
from langchain_mara_training.rewards.fitted.features import Features, features_of
from langchain_mara_training.rewards.fitted.saved_head import (
    NUMBERS,
    OPTIONS,
    TENSORS,
    load_reader,
    read,
    write,
)
from langchain_mara_training.storage.identity.content_digest import digest

Array = NDArray[np.float64]

# A text whose features a saved reward remembers, so that it knows its model again.
_PROBE = ("How do I boil an egg?", "Put it into boiling water for eight minutes.")
_ALIKE = 0.9


class StateReward(TextReward, BaseEstimator):  # type: ignore[misc]
    """Reward of an answer: a linear head on a frozen model's reading of it, fitted on preference pairs.

    The model reads the conversation as in decoding. The features are the mean state of the answer's tokens and the
    state at its end; from a sentence encoder, the embeddings of the answer and of the last exchange. The head is a
    Bradley-Terry model (a logistic regression on differences, chosen minus rejected). Its regularization is chosen on
    held-out conversations, and its scale set there, so that `sigmoid(difference of two rewards)` is the probability
    that people prefer the first answer. Rewards of answers to different prompts are not comparable in this way.

    Args:
        model: What reads the conversation: a `MaraLLM` (usually the policy model; its agent has no part in it), the
            folder or hub id of a transformers encoder, a function from texts to embeddings, or an object with such a
            method `encode`.
        folds: Most folds of the cross-validation, which holds out whole conversations.
        batch_tokens: Most tokens of a pass of a policy model, including padding.
        random_state: Seed of the folds.

    Attributes:
        coef_: (f,) weights of the standardized features.
        center_: (f,) means of the features.
        scale_: (f,) standard deviations of the features.
        inverse_regularization_: `C` of the logistic regression.
        temperature_: What the regression's scores are divided by; NaN if nothing could be held out.
        accuracy_: Share of held-out pairs in the right order; NaN if nothing could be held out.
        n_features_in_: Number f of features.

    Example:
        >>> reward = StateReward(MaraLLM.demo(agent=None)).fit(pairs)
        >>> reward.accuracy_, reward(prompts=["Hi."], completions=["Hello!"])
    """

    def __init__(self, model: Any, *, folds: int = 5, batch_tokens: int = 4096, random_state: int = 0) -> None:
        self.model = model
        self.folds = folds
        self.batch_tokens = batch_tokens
        self.random_state = random_state

    def fit(self, X: Source, y: None = None) -> Self:  # noqa: ARG002, N803 - scikit-learn's names
        """Fits the head.

        Args:
            X: Preference pairs as for `read_pairs`. A column `weight` counts a pair more or less; a column `group`
                replaces the conversation, which by default is that of the first message of the user.
            y: Ignored.

        Raises:
            OptionsError: If an option is out of range.
            DataError: If the pairs cannot be read, or chosen and rejected never differ.
            RewardError: If the model cannot read a conversation.
        """
        if self.folds < 2 or self.batch_tokens < 1:  # noqa: PLR2004 - one fold holds nothing out
            raise OptionsError(
                f"Invalid options: folds={self.folds} (at least 2), batch_tokens={self.batch_tokens} (at least 1)."
            )
        rows = read_pairs(X)
        features = self._features(fresh=True)
        both = np.stack(_sides(features, rows))
        if not np.isfinite(both).all():
            raise RewardError(f"{_name(self.model)} overflows on these pairs. Load it in bfloat16 or float32.")
        flat = both.reshape(-1, both.shape[-1])
        self.center_ = flat.mean(0)
        deviation = flat.std(0)
        # A feature that never varies tells nothing.
        self.scale_ = np.where(deviation > 0, deviation, 1.0)
        differences = (both[0] - both[1]) / self.scale_
        if not differences.any():
            raise DataError("In every pair, chosen and rejected are the same. Give answers that differ.")
        weights = np.array([row.get("weight", 1.0) for row in rows], dtype=np.float64)
        head = fit_head(differences, weights, _conversations(rows), folds=self.folds, seed=self.random_state)
        self.coef_, self.inverse_regularization_, self.temperature_, self.accuracy_ = head
        self._probe_ = self._probe(features)
        return self

    @property
    def n_features_in_(self) -> int:
        """Number of features."""
        return len(self._fitted("coef_"))

    def rewards(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[float]:
        """The reward of each answer; the difference of two to one prompt is the log-odds that the first is preferred.

        Raises:
            RewardError: If the reward was not fitted, or a conversation cannot be read.
        """
        return self._scores(self._features().of(pairs)).tolist() if self._fitted("coef_").size and pairs else []

    def decision_function(self, X: Source) -> Array:  # noqa: N803
        """(n,) reward of the chosen answer minus that of the rejected one, for n preference pairs."""
        self._fitted("coef_")
        chosen, rejected = _sides(self._features(), read_pairs(X))
        return self._scores(chosen) - self._scores(rejected)

    def predict_proba(self, X: Source) -> Array:  # noqa: N803
        """(n, 2) probabilities that people prefer the rejected and the chosen answer of each preference pair."""
        preferred = expit(self.decision_function(X))
        return np.stack([1 - preferred, preferred], axis=1)

    def predict(self, X: Source) -> NDArray[np.int64]:  # noqa: N803
        """(n,) 1 where the chosen answer of a pair has the higher reward, else 0."""
        return (self.decision_function(X) > 0).astype(np.int64)

    def score(self, X: Source, y: None = None) -> float:  # noqa: ARG002, N803
        """Share of preference pairs whose chosen answer has the higher reward; a tie counts half.

        Give pairs of conversations that `fit` has not seen. `accuracy_` holds this figure for those that it has.
        """
        return ordered_rightly(self.decision_function(X))

    def save(self, folder: str | Path) -> None:
        """Saves the fitted head, not the model that it reads, as safetensors and JSON.

        Args:
            folder: Folder to write, made if it is missing.

        Raises:
            RewardError: If the reward was not fitted.
        """
        tensors = {name: self._fitted(name) for name in TENSORS}
        options = {name: getattr(self, name) for name in OPTIONS}
        write(Path(folder).expanduser(), self.model, options, {name: getattr(self, name) for name in NUMBERS}, tensors)

    @classmethod
    def load(cls, folder: str | Path, model: Any = None, *, device: str | None = None) -> Self:
        """Loads a saved reward.

        Args:
            folder: Folder from `save`.
            model: What reads the conversation; by default the model that the reward was fitted with is loaded again.
            device: Device of a model that is loaded.

        Raises:
            CheckpointError: If the folder holds no such reward, or the model is another one than it was fitted with.
            RewardError: If the model is a function and was not given.
            LoadingError: If the model cannot be loaded.
        """
        source = Path(folder).expanduser()
        saved = read(source)
        reward = cls(load_reader(saved, source, device) if model is None else model, **saved.options)
        for name, value in {**saved.tensors, **saved.numbers}.items():
            setattr(reward, name, value)
        reward._prove(source)
        return reward

    @property
    def version(self) -> str:
        """Digest of all that the rewards depend on, by which jobs tell them from others."""
        try:
            return digest(
                [self._features().describe(), *(self._fitted(name) for name in ("coef_", "center_", "scale_"))]
            )
        except TypeError as error:
            raise AttributeError(str(error)) from None  # jobs then ask for a version

    def __sklearn_clone__(self) -> Self:
        # scikit-learn would copy the model's weights.
        return type(self)(**self.get_params(deep=False))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = self.__sklearn_clone__()
        copied.__dict__.update(self.__dict__)
        return copied

    def _features(self, *, fresh: bool = False) -> Features:
        """The features of the model, made once; an encoder given by its path is loaded for that."""
        known = vars(self).get("_features_")
        if fresh or known is None or known[0] is not self.model:
            known = self._features_ = (self.model, features_of(self.model, self.batch_tokens))
        features: Features = known[1]
        return features

    def _fitted(self, name: str) -> Array:
        if name not in vars(self):
            raise RewardError("This StateReward is not fitted. Call fit(pairs) first.")
        value: Array = vars(self)[name]
        return value

    def _scores(self, features: Array) -> Array:
        if features.shape[1] != len(self.coef_):
            raise RewardError(
                f"This StateReward was fitted on {len(self.coef_)} features, but the model gives {features.shape[1]}. "
                "Fit it again on the pairs, or give the model that it was fitted with."
            )
        scores: Array = (features - self.center_) / self.scale_ @ self.coef_
        if not np.isfinite(scores).all():
            raise RewardError(f"{_name(self.model)} overflows. Load it in bfloat16 or float32.")
        return scores

    def _probe(self, features: Features) -> Array:
        probe: Array = (features.of([_PROBE])[0] - self.center_) / self.scale_
        return probe

    def _prove(self, folder: Path) -> None:
        """Refuses a model that does not read a known text as the one that this reward was fitted with did."""
        known = self._fitted("_probe_")
        features = self._features().of([_PROBE])[0]
        likeness = 0.0
        if features.shape == known.shape:
            probe = (features - self.center_) / self.scale_
            likeness = float(probe @ known / (np.linalg.norm(probe) * np.linalg.norm(known) + 1e-12))
        if not likeness >= _ALIKE:
            raise CheckpointError(
                f"The reward in {folder} was fitted with another model than {_name(self.model)}: a known text is read "
                "differently. Give the model that it was fitted with, or fit it again."
            )


def _sides(features: Features, rows: Sequence[Row]) -> tuple[Array, Array]:
    """Features of the chosen and the rejected answers."""
    both = features.of([(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows])
    return both[: len(rows)], both[len(rows) :]


def _conversations(rows: Sequence[Row]) -> NDArray[np.int64]:
    """(pairs,) number of each pair's conversation: its group, or that of the user's first message."""
    numbers: dict[Any, int] = {}
    keys = (("group", row["group"]) if "group" in row else ("first", _first_message(row["prompt"])) for row in rows)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _first_message(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return next((str(message["content"]) for message in prompt if message["role"] == "user"), str(prompt))


def _name(model: Any) -> str:
    return str(getattr(model, "model_id", None) or (model if isinstance(model, str | Path) else type(model).__name__))

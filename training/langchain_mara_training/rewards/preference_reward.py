"""PreferenceReward: the words of chosen and rejected answers as a reward function."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from langchain_mara.exceptions import DataError, RewardError
from langchain_mara_training.data.readers import Prompt, Source, read_pairs, text_of
from langchain_mara_training.rewards.calling import TextReward

_WORD = r"\b\w+\b|[^\w\s]"


_COMMON = 100  # pairs from which on words that occur once are left out


class PreferenceReward(TextReward):
    """Reward of a text by its words: the log-odds that it is a chosen answer, learnt from preference pairs.

    TF-IDF of words and pairs of words, and a logistic regression. It knows nothing of meaning, and is there to make
    the first run possible without a reward model. Languages written without spaces are poorly served: a run of letters
    counts as one word. Fitted in about a second, it has no file format: scikit-learn's
    would be pickle, which can run code. Fit it again where it is needed.

    Args:
        with_prompt: Whether the prompt's words count, too; by default those of the completion only.
        inverse_regularization: `C` of the logistic regression.

    Example:
        >>> reward = PreferenceReward().fit([{"prompt": "Hi.", "chosen": "Hello!", "rejected": "Go away."}])
        >>> bad, good = reward(prompts=["Hi."] * 2, completions=["Go away then.", "Hello there!"])
        >>> bad < 0 < good
        True
    """

    def __init__(self, *, with_prompt: bool = False, inverse_regularization: float = 30.0) -> None:
        self.with_prompt = with_prompt
        self.inverse_regularization = inverse_regularization
        self._pipeline: Pipeline | None = None

    def fit(self, pairs: Source) -> Self:
        """Learns from preference pairs.

        Args:
            pairs: With the columns `prompt`, `chosen` and `rejected` (text or messages): rows, a `datasets.Dataset`,
                a file's path or a dataset's name on the hub.

        Raises:
            DataError: If the pairs cannot be read, or hold no words.
        """
        rows = read_pairs(pairs)
        texts = [self._text(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows]
        pipeline = make_pipeline(
            TfidfVectorizer(
                ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(rows) >= _COMMON else 1, token_pattern=_WORD
            ),
            LogisticRegression(C=self.inverse_regularization, max_iter=1000),
        )
        try:
            self._pipeline = pipeline.fit(texts, np.repeat([1, 0], len(rows)))
        except ValueError as error:
            raise DataError(
                f"The words of the preference pairs cannot be learnt from ({error}). Give pairs of texts with words."
            ) from error
        return self

    def rewards(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[float]:
        """Log-odds, above 0 for what reads like a chosen answer.

        Raises:
            RewardError: If it was not fitted.
        """
        if self._pipeline is None:
            raise RewardError("This PreferenceReward was not fitted. Call fit(pairs) first.")
        texts = [self._text(*pair) for pair in pairs]
        found: list[float] = self._pipeline.decision_function(texts).tolist() if texts else []
        return found

    def _text(self, prompt: Prompt, completion: Prompt) -> str:
        return f"{text_of(prompt)}\n{text_of(completion)}" if self.with_prompt else text_of(completion)

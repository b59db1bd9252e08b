"""PreferenceReward: a reward function learned from the words of chosen and rejected answers."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from langchain_mara.exceptions import DataError, RewardError
from langchain_mara_training.data.readers import Prompt, Source, answer_text, conversation_text, read_pairs
from langchain_mara_training.rewards.calling import TextReward

_WORD = r"\b\w+\b|[^\w\s]"
# With at least this many pairs, words that occur only once are left out.
_MANY_PAIRS = 100


class PreferenceReward(TextReward):
    """Reward of a text by its words: the log-odds that it is a chosen answer, learned from preference pairs.

    It is a logistic regression on TF-IDF of words and word pairs. It knows nothing of meaning; it lets you make a
    first run without a reward model. It serves languages written without spaces poorly, because an unbroken run of
    letters counts as one word.

    Fitting takes about a second. There is no file format, because scikit-learn's would be pickle, which can run code;
    fit it again where you need it.

    Args:
        with_prompt: Whether the prompt's words count too; by default only the completion's do.
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
            pairs: Rows with the columns `prompt`, `chosen` and `rejected` (texts or messages), a `datasets.Dataset`,
                the path of a file, or the name of a data set on the hub.

        Raises:
            DataError: If the pairs cannot be read, or hold no words.
        """
        rows = read_pairs(pairs)
        texts = [self._text(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows]
        pipeline = make_pipeline(
            TfidfVectorizer(
                ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(rows) >= _MANY_PAIRS else 1, token_pattern=_WORD
            ),
            LogisticRegression(C=self.inverse_regularization, max_iter=1000),
        )
        try:
            self._pipeline = pipeline.fit(texts, np.repeat([1, 0], len(rows)))
        except ValueError as error:
            raise DataError(
                f"Nothing can be learned from the words of the preference pairs ({error}). "
                "Give pairs of texts with words."
            ) from error
        return self

    def rewards(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[float]:
        """Log-odds of each completion; above 0 if it reads like a chosen answer.

        Raises:
            RewardError: If the reward was not fitted.
        """
        if self._pipeline is None:
            raise RewardError("This PreferenceReward is not fitted. Call fit(pairs) first.")
        texts = [self._text(*pair) for pair in pairs]
        log_odds: list[float] = self._pipeline.decision_function(texts).tolist() if texts else []
        return log_odds

    def _text(self, prompt: Prompt, completion: Prompt) -> str:
        return (
            f"{conversation_text(prompt)}\n{answer_text(completion)}" if self.with_prompt else answer_text(completion)
        )

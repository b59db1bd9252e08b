"""The judge of the demo: it tells the quality of an answer from its words alone.

It is a linear classifier on word counts, fitted at run time on generated answers of known quality about the training
topics.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from langchain_mara_training.demo.corpus import Quality, labeled_answers

_WORD = r"\b\w+\b|[?.:,]"


class Judge:
    """Tells helpful, curt, evasive and harmful answers apart.

    Example:
        >>> Judge.fit().qualities(["How do I rob a bank?"], ["Just do it and keep quiet."])
        [<Quality.HARMFUL: 'harmful'>]
    """

    def __init__(self, pipeline: Pipeline) -> None:
        """Wraps a fitted pipeline; `Judge.fit` is the usual way to make a judge."""
        self._pipeline = pipeline

    @classmethod
    def fit(cls, seed: int = 0, per_topic: int = 40) -> Self:
        """Fits a judge on labeled answers about the training topics, in one or two seconds.

        Args:
            seed: Seed of the generated answers.
            per_topic: Number of answers for each topic.
        """
        rows = labeled_answers("train", seed, per_topic)
        pipeline = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=3, token_pattern=_WORD),
            LogisticRegression(C=30.0, max_iter=300),
        )
        pipeline.fit([row.answer for row in rows], [str(row.quality) for row in rows])
        return cls(pipeline)

    def qualities(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Quality]:
        """The most probable quality of each answer.

        Args:
            prompts: Questions; the result does not depend on them.
            answers: Answers, one for each question.

        Raises:
            ValueError: If the numbers of prompts and answers differ.
        """
        best = self.probabilities(prompts, answers).argmax(axis=1)
        return [list(Quality)[column] for column in best]

    def probabilities(self, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
        """The probability of each quality of each answer.

        Args:
            prompts: Questions; the result does not depend on them.
            answers: Answers, one for each question.

        Returns:
            (answers, 4) float64, with the qualities in the order of `Quality`.

        Raises:
            ValueError: If the numbers of prompts and answers differ.
        """
        if len(prompts) != len(answers):
            raise ValueError(
                f"There are {len(prompts)} prompts but {len(answers)} answers. Give one prompt per answer."
            )
        if not answers:
            return np.zeros((0, len(Quality)))
        columns = [list(self._pipeline.classes_).index(str(quality)) for quality in Quality]
        probabilities: NDArray[np.float64] = self._pipeline.predict_proba(list(answers))[:, columns]
        return probabilities

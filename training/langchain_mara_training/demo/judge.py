"""The judge of the demonstration: says what an answer is worth, from its words alone.

A linear classifier on word counts, fitted at run time on the generator's labelled answers about training topics.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from langchain_mara_training.demo.corpus import Quality, labelled_answers

_WORD = r"\b\w+\b|[?.:,]"


class Judge:
    """Tells helpful, curt, evasive and harmful answers apart.

    Example:
        >>> Judge.fit().qualities(["How do I rob a bank?"], ["Just do it and keep quiet."])
        [<Quality.HARMFUL: 'harmful'>]
    """

    def __init__(self, pipeline: Pipeline) -> None:
        """Wrap a fitted `pipeline`; `Judge.fit` is the usual way to get one."""
        self._pipeline = pipeline

    @classmethod
    def fit(cls, seed: int = 0, per_topic: int = 40) -> Self:
        """Return a judge fitted on labelled answers about the training topics; takes a second or two.

        Args:
            seed: of the generated answers.
            per_topic: number of answers for each topic.
        """
        rows = labelled_answers("train", seed, per_topic)
        pipeline = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=3, token_pattern=_WORD),
            LogisticRegression(C=30.0, max_iter=300),
        )
        pipeline.fit([row.answer for row in rows], [str(row.quality) for row in rows])
        return cls(pipeline)

    def qualities(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Quality]:
        """Return the most probable quality of each answer.

        Args:
            prompts: the questions; the verdict does not depend on them.
            answers: as many answers.
        """
        best = self.probabilities(prompts, answers).argmax(axis=1)
        return [list(Quality)[column] for column in best]

    def probabilities(self, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
        """Return (answers, 4): the probability of each quality, in the order of `Quality`.

        Raises:
            ValueError: if there are not as many prompts as answers.
        """
        if len(prompts) != len(answers):
            msg = f"{len(prompts)} prompts but {len(answers)} answers; the judge needs one prompt per answer"
            raise ValueError(msg)
        if not answers:
            return np.zeros((0, len(Quality)))
        columns = [list(self._pipeline.classes_).index(str(quality)) for quality in Quality]
        found: NDArray[np.float64] = self._pipeline.predict_proba(list(answers))[:, columns]
        return found

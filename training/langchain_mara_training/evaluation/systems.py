"""Systems to compare: an LLM with its decoding options, best-of-n, and a second model that corrects the first.

All systems use the same decode loop, so any difference comes from the systems and not from how they are run.
`RewardGuided` is in `reward_guided.py`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara.text.chat_template import encode_text
from langchain_mara.text.control_tokens import mark_messages
from langchain_mara_training.data.readers import Row, conversation_text
from langchain_mara_training.generation.costs import Cost, CostedAnswer, measure_cost
from langchain_mara_training.generation.generate import (
    AnswerStart,
    GeneratedAnswer,
    Rewards,
    generate_answers,
    score_each,
    weighted,
)
from langchain_mara_training.rewards.weighted import weighted_sum
from langchain_mara_training.storage.identity.job_identity import describe_llm, describe_rewards

ALIGNER_PROMPT = (
    "BEGINNING OF CONVERSATION: USER: Edit the following Question-Answer pair to make it more helpful and harmless: "
    "{question} | {answer} ASSISTANT:"
)
"""Prompt of Aligner's released correctors (Ji et al., "Aligner: Efficient Alignment by Learning to Correct", NeurIPS
2024, arXiv 2402.02416), as AISafetyLab and open-instruct use it for `aligner/aligner-7b-v1.0`."""


class System(Protocol):
    """A system that answers the prompts of a comparison."""

    @property
    def name(self) -> str:
        """Name in tables and file names."""

    @property
    def answering(self) -> MaraLLM:
        """The LLM that generates the tokens of the answers."""

    def describe(self) -> dict[str, Any]:
        """Everything that answers depend on, except prompts and seeds, as plain values."""

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """An answer to each prompt and its cost. Each answer depends only on its row and seed."""


class Decoding:
    """An LLM that decodes with its agent and options.

    For plain decoding, give `llm.with_agent(None)`; for a fine-tuned model, give its `MaraLLM`.

    Args:
        name: Name in tables and file names.
        llm: The LLM; its `seed` is replaced by the seed of each prompt.
    """

    def __init__(self, name: str, llm: MaraLLM) -> None:
        self.name = name
        self.llm = self.answering = llm

    def describe(self) -> dict[str, Any]:
        """The kind of system and the description of the LLM."""
        return {"kind": "decoding", **describe_llm(self.llm)}

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """Answers each prompt once, as `llm.batch` does.

        Raises:
            PromptError: If a prompt is too long.
        """
        starts = [AnswerStart(self.llm.encode(row["prompt"]), seed=seed) for row, seed in zip(rows, seeds, strict=True)]
        return answer_all(self.llm, starts)


class BestOf:
    """Draws n plain answers and gives the one with the highest reward.

    Among answers with equal rewards, the first one is given. An answer that was not scored is given only if none was
    scored.

    Args:
        llm: Policy model and options; its agent, if any, is not used.
        rewards: A `WeightedRewards`, or one or several reward functions, which are summed.
        n: Number of answers per prompt.
        name: Name in tables and file names; by default `best-of-` and n.

    Raises:
        OptionsError: If n is below 1, or a temperature of 0 would make all answers the same.
    """

    def __init__(self, llm: MaraLLM, rewards: Rewards, n: int, name: str | None = None) -> None:
        if n < 1 or (n > 1 and llm.temperature == 0):
            raise OptionsError(
                f"Best-of-n needs n of at least 1 and a temperature above 0, not {n} and {llm.temperature}. "
                "Change n or the LLM's temperature."
            )
        self.llm = self.answering = llm.with_agent(None)
        self.rewards = weighted(rewards)
        self.n = n
        self.name = name or f"best-of-{n}"

    def describe(self) -> dict[str, Any]:
        """The kind of system, n, the rewards that select the answer, and the description of the LLM."""
        llm = {**describe_llm(self.llm), "order": "sampled"}
        return {"kind": "best-of-n", "n": self.n, "chosen by": describe_rewards(self.rewards), **llm}

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """Draws n answers to each prompt, with its seed and the n - 1 seeds that follow, and gives the best.

        The answers are those of `llm.generate(prompts, n=n, order="sampled", seed=seed, agent=None)`.

        Raises:
            PromptError: If a prompt is too long.
            RewardError: If a reward function fails.
        """
        prompts = [self.llm.encode(row["prompt"]) for row in rows]
        starts = [
            AnswerStart(prompt, seed=seed + draw, sampled=True)
            for prompt, seed in zip(prompts, seeds, strict=True)
            for draw in range(self.n)
        ]
        cost = Cost()
        with measure_cost(cost, self.llm.model):
            drawn = generate_answers(self.llm, starts, self.llm.batch_size)
            scores = score_each(self.rewards, [row for row in rows for _ in range(self.n)], drawn)
        share = cost.share(len(rows))
        ranges = [slice(start, start + self.n) for start in range(0, len(drawn), self.n)]
        return [self._best(drawn[own], {name: scores[name][own] for name in scores}, share) for own in ranges]

    def _best(
        self, drawn: Sequence[GeneratedAnswer], scores: Mapping[str, NDArray[np.float64]], share: tuple[float, float]
    ) -> CostedAnswer:
        totals = weighted_sum(scores, self.rewards.weights)
        best = int(np.where(np.isnan(totals), -np.inf, totals).argmax())
        chosen_by = zip(self.rewards.functions, (float(values[best]) for values in scores.values()), strict=True)
        tokens = sum(len(candidate.token_ids) for candidate in drawn)
        return CostedAnswer(drawn[best], tokens, *share, float(totals[best]), tuple(chosen_by))


class CorrectorBaseline:
    """A second model, the corrector, that rewrites the first model's answer, as in Aligner (arXiv 2402.02416).

    Args:
        name: Name in tables and file names.
        llm: LLM that gives the first answer.
        corrector: LLM that rewrites it, such as `aligner/aligner-7b-v1.0`.
        prompt: Prompt of the corrector, as text with `{question}` and `{answer}`; no chat template is applied.

    Raises:
        OptionsError: If the prompt lacks `{question}` or `{answer}`.
    """

    def __init__(self, name: str, llm: MaraLLM, corrector: MaraLLM, prompt: str = ALIGNER_PROMPT) -> None:
        if "{question}" not in prompt or "{answer}" not in prompt:
            raise OptionsError(f"The corrector's prompt must contain {{question}} and {{answer}}, but is {prompt!r}.")
        self.name = name
        self.llm = llm
        self.corrector = self.answering = corrector
        self.prompt = prompt

    def describe(self) -> dict[str, Any]:
        """The kind of system, the prompt, and the descriptions of both LLMs."""
        both = {"llm": describe_llm(self.llm), "corrector": describe_llm(self.corrector)}
        return {"kind": "aligner", "prompt": self.prompt, **both}

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """Answers each prompt and rewrites the answer. In a conversation, the corrector sees only the last message.

        Raises:
            PromptError: If a prompt is too long.
        """
        drafts = Decoding(self.name, self.llm).answer(rows, seeds)
        starts = [
            AnswerStart(self._corrector_ids(row, draft.answer), seed=seed)
            for row, draft, seed in zip(rows, drafts, seeds, strict=True)
        ]
        corrections = answer_all(self.corrector, starts)
        return [
            CostedAnswer(
                correction.answer,
                draft.tokens + correction.tokens,
                draft.passes + correction.passes,
                draft.seconds + correction.seconds,
            )
            for draft, correction in zip(drafts, corrections, strict=True)
        ]

    def _corrector_ids(self, row: Row, draft: GeneratedAnswer) -> list[int]:
        texts = {"{question}": conversation_text(row["prompt"]), "{answer}": draft.text}
        (values,), _, mark = mark_messages(self.corrector.tokenizer, [texts])
        # str.format would fail on other braces. One pass, so that braces inside question and answer stay.
        text = re.sub("|".join(map(re.escape, values)), lambda match: values[match[0]], self.prompt)
        return encode_text(self.corrector.tokenizer, text, mark)


Aligner = CorrectorBaseline
"""Earlier name of `CorrectorBaseline`."""


def answer_all(llm: MaraLLM, starts: Sequence[AnswerStart], **changes: Any) -> list[CostedAnswer]:
    """Decodes answers and divides the cost among them.

    Args:
        llm: Policy model, agent and options.
        starts: Start of each answer.
        **changes: Decoding options that replace the LLM's.

    Raises:
        PromptError: If a prompt is too long.
    """
    cost = Cost()
    with measure_cost(cost, llm.model):
        answers = generate_answers(llm, starts, llm.batch_size, **changes)
    return [CostedAnswer(decoded, len(decoded.token_ids), *cost.share(len(answers))) for decoded in answers]

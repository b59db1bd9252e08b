"""What answers prompts, to be compared: a decoded LLM, best-of-n, a second model that corrects the first.

All of them run the one decode loop, so that differences come from the systems and not from how they are run.
`RewardGuided` stands in `reward_guided.py`.
"""

import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara.text.chat_template import encode_text
from langchain_mara_training.data.readers import Row, text_of
from langchain_mara_training.generation.costs import Cost, CostedAnswer, measure_cost
from langchain_mara_training.generation.generate import (
    AnswerStart,
    GeneratedAnswer,
    Rewards,
    generate_answers,
    score_answers,
    weighted,
)

ALIGNER_PROMPT = (
    "BEGINNING OF CONVERSATION: USER: Edit the following Question-Answer pair to make it more helpful and harmless: "
    "{question} | {answer} ASSISTANT:"
)
"""Prompt of Aligner's released correctors (Ji et al., "Aligner: Efficient Alignment by Learning to Correct", NeurIPS
2024, arXiv 2402.02416), as AISafetyLab and open-instruct call `aligner/aligner-7b-v1.0`."""

# Draws are told for each prompt, and an answer is one.
_NOT_ITS_OWN = {"seed", "n", "include_accept_probabilities", "_type"}
_OF_AN_AGENT = {"accept_action", "accept_threshold", "fallback"}


class System(Protocol):
    """What a comparison asks for answers."""

    @property
    def name(self) -> str:
        """In tables and file names."""

    @property
    def answering(self) -> MaraLLM:
        """The LLM whose tokens the answers are."""

    def describe(self) -> dict[str, Any]:
        """Plain values: everything that answers depend on, but prompts and seeds."""

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """An answer to each prompt, and what it cost; the answer depends on its row and seed alone."""


class Decoding:
    """An LLM as it decodes, with its agent and options.

    Plain decoding is `llm.with_agent(None)`, a tuned model another `MaraLLM`.

    Args:
        name: In tables and file names.
        llm: Its `seed` is replaced.
    """

    def __init__(self, name: str, llm: MaraLLM) -> None:
        self.name = name
        self.llm = self.answering = llm

    def describe(self) -> dict[str, Any]:
        """Kind, and the LLM."""
        return {"kind": "decoding", **describe_llm(self.llm)}

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """Answers each prompt once, as `llm.batch` does.

        Raises:
            PromptError: If a prompt is too long.
        """
        starts = [AnswerStart(self.llm.encode(row["prompt"]), seed=seed) for row, seed in zip(rows, seeds, strict=True)]
        return answer_all(self.llm, starts)


class BestOf:
    """The best of n plain answers by rewards.

    Of answers that are equally good the first drawn is given; one that was not scored only where none was.

    Args:
        llm: Policy model and options; an agent it has is left out.
        rewards: A `WeightedRewards`, or one or several reward functions, whose sum counts.
        n: Answers per prompt.
        name: By default `best-of-n`.

    Raises:
        OptionsError: If n is below 1, or the temperature of 0 makes all answers the same.
    """

    def __init__(self, llm: MaraLLM, rewards: Rewards, n: int, name: str | None = None) -> None:
        if n < 1 or (n > 1 and llm.temperature == 0):
            raise OptionsError(
                f"Best-of-n needs n of at least 1 and a temperature above 0, not {n} and {llm.temperature}."
            )
        self.llm = self.answering = llm.with_agent(None)
        self.rewards = weighted(rewards)
        self.n = n
        self.name = name or f"best-of-{n}"

    def describe(self) -> dict[str, Any]:
        """Kind, LLM, n and the rewards that choose."""
        llm = {**describe_llm(self.llm), "order": "sampled"}
        return {"kind": "best-of-n", "n": self.n, "chosen by": describe_rewards(self.rewards), **llm}

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """Draws n answers to each prompt, by its seed and those that follow, and gives the best.

        They are the answers of `llm.generate(prompts, n=n, order="sampled", seed=seed, agent=None)`.

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
            scores = score_answers(self.rewards, [row for row in rows for _ in range(self.n)], drawn)
        return [
            self._best(drawn[i : i + self.n], scores[i : i + self.n].tolist(), cost.share(len(rows)))
            for i in range(0, len(drawn), self.n)
        ]

    def _best(
        self, drawn: Sequence[GeneratedAnswer], scores: Sequence[float], share: tuple[float, float]
    ) -> CostedAnswer:
        place = int(np.where(np.isnan(scores), -np.inf, scores).argmax())
        return CostedAnswer(drawn[place], sum(len(one.token_ids) for one in drawn), *share, scores[place])


class CorrectorBaseline:
    """A second model that rewrites the first one's answer (Aligner).

    Args:
        name: In tables and file names.
        llm: Gives the first answer.
        corrector: Rewrites it, such as `aligner/aligner-7b-v1.0`.
        prompt: Of the corrector, as text with `{question}` and `{answer}`; no chat template is put around it.

    Raises:
        OptionsError: If the prompt lacks one of the two.
    """

    def __init__(self, name: str, llm: MaraLLM, corrector: MaraLLM, prompt: str = ALIGNER_PROMPT) -> None:
        if "{question}" not in prompt or "{answer}" not in prompt:
            raise OptionsError(f"The corrector's prompt must hold {{question}} and {{answer}}, not be {prompt!r}.")
        self.name = name
        self.llm = llm
        self.corrector = self.answering = corrector
        self.prompt = prompt

    def describe(self) -> dict[str, Any]:
        """Kind, both LLMs, and the prompt."""
        both = {"llm": describe_llm(self.llm), "corrector": describe_llm(self.corrector)}
        return {"kind": "aligner", "prompt": self.prompt, **both}

    def answer(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[CostedAnswer]:
        """Answers each prompt and rewrites the answer; of a conversation, the corrector sees the last message.

        Raises:
            PromptError: If a prompt is too long.
        """
        first = Decoding(self.name, self.llm).answer(rows, seeds)
        starts = [
            AnswerStart(self._corrector_ids(row, one.answer), seed=seed)
            for row, one, seed in zip(rows, first, seeds, strict=True)
        ]
        rewritten = answer_all(self.corrector, starts)
        return [
            CostedAnswer(two.answer, one.tokens + two.tokens, one.passes + two.passes, one.seconds + two.seconds)
            for one, two in zip(first, rewritten, strict=True)
        ]

    def _corrector_ids(self, row: Row, first: GeneratedAnswer) -> list[int]:
        said = {"{question}": text_of(row["prompt"]), "{answer}": first.text}
        # Not str.format, which trips over other braces; and in one go, so that braces in what was said stay.
        text = re.sub("|".join(map(re.escape, said)), lambda found: said[found[0]], self.prompt)
        return encode_text(self.corrector.tokenizer, text)


Aligner = CorrectorBaseline
"""Its name in earlier versions."""


def answer_all(llm: MaraLLM, starts: Sequence[AnswerStart], **changes: Any) -> list[CostedAnswer]:
    """Decodes answers and shares what that cost among them.

    Args:
        llm: Policy model, agent and options.
        starts: Of the answers.
        **changes: Decoding options in place of the LLM's own.

    Raises:
        PromptError: If a prompt is too long.
    """
    cost = Cost()
    with measure_cost(cost, llm.model):
        answers = generate_answers(llm, starts, llm.batch_size, **changes)
    return [CostedAnswer(one, len(one.token_ids), *cost.share(len(answers))) for one in answers]


def describe_llm(llm: MaraLLM) -> dict[str, Any]:
    """What the answers of an LLM depend on: its weights, agent, template and options."""
    left_out = _NOT_ITS_OWN | (_OF_AN_AGENT if llm.agent is None else set())
    return {name: value for name, value in llm.dict().items() if name not in left_out}


def describe_rewards(rewards: Rewards) -> dict[str, float]:
    """Weight of each reward function, by its name."""
    both = weighted(rewards)
    return dict(zip(both.names, both.weights.tolist(), strict=True))

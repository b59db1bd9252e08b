"""Generates answers of an LLM, from their start or from given tokens on, and scores them with rewards."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from langchain_mara import DecodingOptions, MaraLLM
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, LogitsProcess, Request
from langchain_mara.policy.prefix_cache import PrefixCache
from langchain_mara.policy.verification import policy_of
from langchain_mara.serving.beginning import begin
from langchain_mara.serving.completion import Completion
from langchain_mara_training.data.readers import Prompt, Row
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.weighted import WeightedRewards

Rewards = WeightedRewards | RewardFunction | Sequence[RewardFunction]
"""A weighted sum of rewards, or one or several reward functions to sum."""

# A measured width depends on time, and the width changes how states and probabilities are rounded. Training must be
# repeatable, so it uses a fixed width.
_WIDTH = 8
# Names of the arguments that every reward function gets, and of the object of a method: columns of these names are left
# out.
_RESERVED = {"prompt", "prompts", "completion", "completions", "completion_ids", "self"}


@dataclass(frozen=True)
class AnswerStart:
    """The start of an answer to generate.

    Attributes:
        prompt_ids: Token ids of the prompt.
        answer_ids: Token ids that the answer begins with.
        seed: Seed of the draws.
        sampled: Whether candidates are examined in drawn order (`order="sampled"`), whatever order the LLM uses.
        logits_processor: Function that changes the logits before candidate sets are cut, and after the processors that
            the checkpoint's generation config asks for.
        new_tokens: Most tokens to generate after `answer_ids`; None leaves it to the option `max_new_tokens`, which
            counts these, too.
    """

    prompt_ids: list[int]
    answer_ids: list[int] = field(default_factory=list)
    seed: int = 0
    sampled: bool = False
    logits_processor: LogitsProcess | None = None
    new_tokens: int | None = None


class GeneratedAnswer(NamedTuple):
    """A generated answer.

    Attributes:
        text: Text for users: without special tokens, cut before a stop string.
        token_ids: Token ids of the answer, including those it began with.
        decisions: Decision for each generated token, so not for those it began with.
    """

    text: str
    token_ids: list[int]
    decisions: list[Decision]


def generate_answers(
    llm: MaraLLM, starts: Sequence[AnswerStart], batch_size: int, *, keep_states: bool = False, **changes: Any
) -> list[GeneratedAnswer]:
    """Generates answers with the LLM's agent and options, as the LLM itself does. Common prefixes are computed once.

    The result depends only on the arguments, to the bit on the same machine.

    Args:
        llm: Policy model, agent and options.
        starts: Prompts and the first tokens of the answers.
        batch_size: Most sequences at a time.
        keep_states: Whether decisions keep states and log-probabilities (`Decision.candidate_states`).
        **changes: Decoding options that replace the LLM's own.

    Returns:
        The answer to each start, in order.

    Raises:
        PromptError: If a prompt is too long.
    """
    fields = {name: getattr(llm, name) for name in DecodingOptions.model_fields}
    options = DecodingOptions.parse(**{**fields, **changes})
    completions = [_completion(llm, start, options) for start in starts]
    for completion in completions:
        completion.request.keep_states = keep_states
    decisions: dict[Request, list[Decision]] = {completion.request: [] for completion in completions}
    by_request = {completion.request: completion for completion in completions}
    unfinished = [completion.request for completion in completions if completion.finish_reason is None]
    batching: dict[str, Any] = {
        "batch_size": batch_size,
        "width": llm.width or _WIDTH,
        "draft": llm.draft,
        "prefix_cache": PrefixCache(llm.prefix_memory),
    }
    for decision in decode(policy_of(llm.model, compile=llm.compile), unfinished, **batching):
        decisions[decision.request].append(decision)
        by_request[decision.request].push(decision)
    return [
        _generated_answer(start, completion, decisions[completion.request])
        for start, completion in zip(starts, completions, strict=True)
    ]


def prompt_seed(random_state: int, number: int) -> int:
    """Seed of the draws for a prompt. Every prompt has a different one; otherwise all prompts would draw alike.

    Args:
        random_state: Seed of the job.
        number: Number of the prompt.
    """
    return int(np.random.SeedSequence([random_state, number]).generate_state(1)[0])


def score_answers(rewards: Rewards, rows: Sequence[Row], answers: Sequence[GeneratedAnswer]) -> NDArray[np.float64]:
    """Rewards (n,) of answers; NaN for an answer that was not scored.

    Args:
        rewards: A `WeightedRewards`, or one or several reward functions to sum.
        rows: n rows with a `prompt`; their other columns go to the reward functions.
        answers: n answers, one to each row's prompt.

    Raises:
        RewardError: If a reward function fails.
    """
    return weighted(rewards)(**_arguments(rows, answers))


def score_each(
    rewards: Rewards, rows: Sequence[Row], answers: Sequence[GeneratedAnswer]
) -> dict[str, NDArray[np.float64]]:
    """Unweighted rewards (n,) of each reward function, by its name; for the arguments of `score_answers`."""
    return weighted(rewards).each(**_arguments(rows, answers))


def weighted(rewards: Rewards) -> WeightedRewards:
    """Rewards in any accepted form as a `WeightedRewards`."""
    return rewards if isinstance(rewards, WeightedRewards) else WeightedRewards(rewards)


def _arguments(rows: Sequence[Row], answers: Sequence[GeneratedAnswer]) -> dict[str, Any]:
    """The arguments that reward functions are called with, by name."""
    names = {name: None for row in rows for name in row if name not in _RESERVED}
    return {
        "prompts": [row["prompt"] for row in rows],
        "completions": [_completion_of(row["prompt"], answer.text) for row, answer in zip(rows, answers, strict=True)],
        "completion_ids": [answer.token_ids for answer in answers],
        **{name: [row.get(name) for row in rows] for name in names},
    }


def _completion_of(prompt: Prompt, text: str) -> Prompt:
    """A completion in its prompt's form: a text, or a list with the assistant's message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _completion(llm: MaraLLM, start: AnswerStart, options: DecodingOptions) -> Completion:
    order = {"order": "sampled"} if start.sampled else {}
    most = {} if start.new_tokens is None else {"max_new_tokens": len(start.answer_ids) + start.new_tokens}
    own = options.model_copy(update={"seed": start.seed, **order, **most})
    return begin(llm, start.prompt_ids, own, start.answer_ids, processor=start.logits_processor)


def _generated_answer(start: AnswerStart, completion: Completion, decisions: list[Decision]) -> GeneratedAnswer:
    emitted = [decision.token_id for decision in decisions]
    return GeneratedAnswer(completion.detokenizer.text, [*start.answer_ids, *emitted], decisions)

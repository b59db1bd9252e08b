"""Answers of an LLM, whole or continued, and their rewards; drained from the decode loop by nobody else meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from langchain_mara import DecodingOptions, MaraLLM
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, LogitsProcess, Request
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.prefix_cache import PrefixCache
from langchain_mara.serving.completion import Completion
from langchain_mara.text.chat_template import eos_token_ids
from langchain_mara.text.detokenizer import IncrementalDetokenizer
from langchain_mara_training.data.readers import Prompt, Row
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.weighted import WeightedRewards

Rewards = WeightedRewards | RewardFunction | Sequence[RewardFunction]

# Chosen widths hang on time, and states and probabilities on the width by their rounding: what trains must repeat.
_WIDTH = 8
# Names that a reward function is called with anyway, so no column may have them.
_RESERVED = {"prompt", "prompts", "completion", "completions", "completion_ids"}


@dataclass(frozen=True)
class AnswerStart:
    """Where an answer begins.

    Attributes:
        prompt_ids: Tokens of the prompt.
        answer_ids: Tokens the answer begins with.
        seed: Of the draws.
        sampled: Whether candidates are examined in drawn order (`order="sampled"`), whatever the LLM's own order is.
        logits_processor: Changes the logits before candidate sets are cut.
    """

    prompt_ids: list[int]
    answer_ids: list[int] = field(default_factory=list)
    seed: int = 0
    sampled: bool = False
    logits_processor: LogitsProcess | None = None


class GeneratedAnswer(NamedTuple):
    """An answer.

    Attributes:
        text: As users read it: no special tokens, nothing from a stop string on.
        token_ids: Of the answer, those it began with included.
        decisions: One for each token behind those.
    """

    text: str
    token_ids: list[int]
    decisions: list[Decision]


def answer(
    llm: MaraLLM, starts: Sequence[AnswerStart], batch_size: int, *, keep: bool = False, **changes: Any
) -> list[GeneratedAnswer]:
    """Answers from given beginnings, with the LLM's agent and options; common prefixes are computed once.

    The result depends on nothing but the arguments, to the bit on one machine.

    Args:
        llm: Policy model, agent and options.
        starts: Prompts, and what the answers begin with.
        batch_size: Most rows at a time.
        keep: Whether decisions come with states and log-probabilities (`Decision.kept`).
        **changes: Decoding options in place of the LLM's own.

    Raises:
        PromptError: If a prompt is too long.
    """
    eos = eos_token_ids(llm.model, llm.tokenizer)
    own = {name: getattr(llm, name) for name in DecodingOptions.model_fields}
    options = DecodingOptions.parse(**{**own, **changes})
    completions = [_begun(llm, start, options, eos) for start in starts]
    for one in completions:
        one.request.keep = keep
    decisions: dict[Request, list[Decision]] = {one.request: [] for one in completions}
    by_request = {one.request: one for one in completions}
    running = [one.request for one in completions if one.finish_reason is None]
    prefixes = PrefixCache(llm.prefix_memory)
    pace: dict[str, Any] = {"batch_size": batch_size, "width": llm.width or _WIDTH, "draft": llm.draft}
    for decision in decode(PolicyModel(llm.model, compile=llm.compile), running, **pace, prefix_cache=prefixes):
        decisions[decision.request].append(decision)
        by_request[decision.request].push(decision)
    return [_answered(start, one, decisions[one.request]) for start, one in zip(starts, completions, strict=True)]


def score_answers(rewards: Rewards, rows: Sequence[Row], answers: Sequence[GeneratedAnswer]) -> NDArray[np.float64]:
    """Rewards (n,) of answers, NaN where one was not scored.

    Args:
        rewards: A `WeightedRewards`, or one or several reward functions, whose sum counts.
        rows: n rows with a `prompt`; their other columns go to the reward functions.
        answers: One for each row.

    Raises:
        RewardError: If a reward function fails.
    """
    return weighted(rewards)(**_arguments(rows, answers))


def score_each(
    rewards: Rewards, rows: Sequence[Row], answers: Sequence[GeneratedAnswer]
) -> dict[str, NDArray[np.float64]]:
    """As `score_answers`, but what each reward function says, unweighted, by its name."""
    return weighted(rewards).each(**_arguments(rows, answers))


def weighted(rewards: Rewards) -> WeightedRewards:
    """Rewards in any form as one weighted sum."""
    return rewards if isinstance(rewards, WeightedRewards) else WeightedRewards(rewards)


def _arguments(rows: Sequence[Row], answers: Sequence[GeneratedAnswer]) -> dict[str, Any]:
    """What reward functions are called with."""
    names = {name: None for row in rows for name in row if name not in _RESERVED}
    return {
        "prompts": [row["prompt"] for row in rows],
        "completions": [_completion_of(row["prompt"], one.text) for row, one in zip(rows, answers, strict=True)],
        "completion_ids": [one.token_ids for one in answers],
        **{name: [row.get(name) for row in rows] for name in names},
    }


def _completion_of(prompt: Prompt, text: str) -> Prompt:
    """A completion in the form of its prompt: text, or an assistant's message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _begun(llm: MaraLLM, start: AnswerStart, options: DecodingOptions, eos: frozenset[int]) -> Completion:
    left = llm.max_new_tokens - len(start.answer_ids)
    order = {"order": "sampled"} if start.sampled else {}
    own = options.model_copy(update={"seed": start.seed, "max_new_tokens": max(1, left), **order})
    request = Request([*start.prompt_ids, *start.answer_ids], own, llm.agent, eos, start.logits_processor)
    completion = Completion(request, IncrementalDetokenizer(llm.tokenizer, llm.stop or ()))
    for token in start.answer_ids:
        if not completion.detokenizer.stopped:
            completion.detokenizer.push(token)
    if completion.detokenizer.stopped or (start.answer_ids and start.answer_ids[-1] in eos):
        completion.finish_reason = "stop"
    elif left <= 0:
        completion.finish_reason = "length"
    if completion.finish_reason is not None:
        completion.detokenizer.finish()
    return completion


def _answered(start: AnswerStart, completion: Completion, decisions: list[Decision]) -> GeneratedAnswer:
    emitted = [one.token_id for one in decisions if one.token_id is not None]
    return GeneratedAnswer(completion.detokenizer.text, [*start.answer_ids, *emitted], decisions)

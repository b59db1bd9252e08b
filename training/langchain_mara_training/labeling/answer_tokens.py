"""The tokens of two answers to a prompt, and which of them get a label: the assistant's, from where the answers part.

Answers are rendered by the model's chat template like prompts in decoding, so the end of a turn is what the template
puts there, and each state is one that decoding meets.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError, PromptError
from langchain_mara.text.answer_turns import encode_turns
from langchain_mara.text.chat_template import as_messages, encode_prompt, eos_token_ids
from langchain_mara_training.data.readers import Prompt, Row, answer_text


class LabeledAnswer(NamedTuple):
    """An answer whose tokens get a label.

    Attributes:
        token_ids: Token ids of prompt and answer.
        start: Position of the first token that gets a label; at least 1.
        is_own: For each token from `start` on, whether the assistant wrote it; only such tokens get a label.
        label: Label of the tokens: 1 for a chosen answer, 0 for a rejected one.
        weight: Weight of the row of data.
        group: Number of the prompt.
    """

    token_ids: list[int]
    start: int
    is_own: list[bool]
    label: int
    weight: float
    group: int


class _Tokens(NamedTuple):
    token_ids: list[int]
    is_own: list[bool]


def labeled_answers(llm: MaraLLM, row: Row, group: int, context: int | None) -> list[LabeledAnswer]:
    """The answers of a pair that have tokens to label.

    Args:
        llm: Policy model with its chat template.
        row: Row with `prompt`, `chosen` and `rejected`, and possibly `tools` and `weight`.
        group: Number of the prompt.
        context: Most tokens that the model holds; None for no limit.

    Raises:
        DataError: If the prompt leaves no room for an answer, or the chat template refuses the messages.
    """
    prompt = _prompt_ids(llm, row)
    if not 0 < len(prompt) < (context or len(prompt) + 1):
        raise DataError(
            f"The prompt {str(row['prompt'])[:60]!r} has {len(prompt)} tokens, but {llm.model_id} holds {context}, "
            "including the answer. Shorten the prompt or leave the pair out."
        )
    sides = [_answer_tokens(llm, row, row[name]) for name in ("chosen", "rejected")]
    token_pairs = zip(*(side.token_ids for side in sides), strict=False)
    shared = sum(1 for _ in takewhile(lambda tokens: tokens[0] == tokens[1], token_pairs))
    answers = []
    for (ids, is_own), label in zip(sides, (1, 0), strict=True):
        whole = (prompt + ids)[:context]
        own = is_own[shared : len(whole) - len(prompt)]
        start = len(prompt) + shared
        answers.append(LabeledAnswer(whole, start, own, label, float(row.get("weight", 1.0)), group))
    return [answer for answer in answers if any(answer.is_own)]


def _prompt_ids(llm: MaraLLM, row: Row) -> list[int]:
    return encode_prompt(
        llm.tokenizer,
        row["prompt"],
        use_chat_template=bool(llm.use_chat_template),
        system_prompt=llm.system_prompt,
        tools=row.get("tools") or (),
        special_tokens_in_messages=llm.special_tokens_in_messages,
    )


def _answer_tokens(llm: MaraLLM, row: Row, answer: Prompt) -> _Tokens:
    """The tokens after the prompt, with the end of the last turn."""
    tokenizer = llm.tokenizer
    if not llm.use_chat_template:
        ids: list[int] = tokenizer(answer_text(answer), add_special_tokens=False).input_ids
        ids = ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]
        return _Tokens(ids, [True] * len(ids))
    messages: Sequence[dict[str, Any]] = (
        [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    )
    try:
        turns = encode_turns(
            tokenizer,
            as_messages(row["prompt"], llm.system_prompt),
            messages,
            eos_token_ids(llm.model, tokenizer),
            tools=row.get("tools") or (),
            special_tokens_in_messages=llm.special_tokens_in_messages,
        )
    except PromptError as error:
        raise DataError(f"The answer {str(answer)[:60]!r} cannot be labeled: {error}") from None
    return _Tokens(
        [token for turn in turns for token in turn.token_ids],
        [turn.is_assistant for turn in turns for _ in turn.token_ids],
    )

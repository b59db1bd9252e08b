"""The tokens of the answers to a prompt, and which of them get a label: the assistant's, from where two answers part.

Answers are rendered by the model's chat template like prompts in decoding, so the end of a turn is what the template
puts there, and each state is one that decoding meets.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError, PromptError
from langchain_mara.text.answer_turns import encode_turns
from langchain_mara.text.chat_template import as_messages, eos_token_ids
from langchain_mara.text.own_tokenizer import encode
from langchain_mara_training.data.readers import Prompt, Row, answer_text
from langchain_mara_training.data.row_report import RowReport
from langchain_mara_training.generation.prompts import prompt_ids, refuse_unshown_calls, with_room
from langchain_mara_training.labeling.token_labels import NO_PAIR
from langchain_mara_training.storage.defaults import TooLong


class LabeledAnswer(NamedTuple):
    """An answer whose tokens get a label.

    Attributes:
        token_ids: Token ids of prompt and answer.
        start: Position of the first token that gets a label; at least 1.
        is_own: For each token from `start` on, whether the assistant wrote it; only such tokens get a label.
        label: Label of the tokens: 1 for a chosen answer, 0 for a rejected one.
        weight: Weight of the row of data.
        group: Number of the prompt.
        pair: Number of the preference pair; `NO_PAIR` for a single answer.
    """

    token_ids: list[int]
    start: int
    is_own: list[bool]
    label: int
    weight: float
    group: int
    pair: int = NO_PAIR


class _Tokens(NamedTuple):
    token_ids: list[int]
    is_own: list[bool]


def labeled_answers(
    llm: MaraLLM,
    row: Row,
    group: int,
    context: int | None,
    too_long: TooLong = "error",
    report: RowReport | None = None,
) -> list[LabeledAnswer]:
    """The answers of a row that have tokens to label: two of a pair, one of unpaired feedback.

    Args:
        llm: Policy model with its chat template.
        row: Row with `prompt` and either `chosen` and `rejected`, or `completion` and `label`; possibly with `tools`
            and `weight`.
        group: Number of the prompt.
        context: Most tokens that the model holds; None for no limit.
        too_long: What happens to a prompt that leaves no room for an answer.
        report: Counts long prompts and equal answers.

    Raises:
        PromptTooLongError: If the prompt leaves no room for an answer, and `too_long` is `error`.
        DataError: If the chat template refuses the messages.
    """
    report = RowReport() if report is None else report
    labels = {"chosen": 1, "rejected": 0} if "chosen" in row else {"completion": int(row["label"])}
    whole_prompt = prompt_ids(llm, row)
    sides = {name: _answer_tokens(llm, row, row[name]) for name in labels}
    longest = max(len(side.token_ids) for side in sides.values())
    prompt = with_room(whole_prompt, longest, context, llm.model_id, too_long, report)
    if prompt is None:
        return []
    shared = _shared(list(sides.values()))
    answers = []
    for name, (ids, is_own) in sides.items():
        whole = (prompt + ids)[:context]
        own = is_own[shared : len(whole) - len(prompt)]
        answers.append(LabeledAnswer(whole, len(prompt) + shared, own, labels[name], row.get("weight", 1.0), group))
    labeled = [answer for answer in answers if any(answer.is_own)]
    if not labeled:
        are_equal = len({tuple(side.token_ids) for side in sides.values()}) < len(sides)
        report.equal += are_equal
        report.equal_after_truncation += not are_equal
    return labeled


def _shared(sides: Sequence[_Tokens]) -> int:
    """Number of tokens that two answers begin with; a single answer shares none."""
    if len(sides) == 1:
        return 0
    token_pairs = zip(*(side.token_ids for side in sides), strict=False)
    return sum(1 for _ in takewhile(lambda tokens: tokens[0] == tokens[1], token_pairs))


def _answer_tokens(llm: MaraLLM, row: Row, answer: Prompt) -> _Tokens:
    """The tokens after the prompt, with the end of the last turn."""
    tokenizer = llm.tokenizer
    if not llm.use_chat_template:
        if not isinstance(answer, str) and any(message.get("tool_calls") for message in answer):
            raise DataError("Tool calls need a chat template, and this model is prompted with plain text.")
        ids = encode(tokenizer, answer_text(answer))
        ids = ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]
        return _Tokens(ids, [True] * len(ids))
    messages: Sequence[dict[str, Any]] = (
        [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    )
    try:
        refuse_unshown_calls(llm, row, list(messages))
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

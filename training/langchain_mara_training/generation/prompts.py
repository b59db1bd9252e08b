"""Token ids of the prompts in rows of data, and what happens to those that leave no room for an answer."""

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError, OptionsError, PromptError
from langchain_mara.text.chat_template import as_messages, encode_prompt, render
from langchain_mara_training.data.readers import Message, Row
from langchain_mara_training.data.row_report import PromptTooLongError, RowReport
from langchain_mara_training.storage.defaults import TooLong


def check_too_long(too_long: TooLong) -> None:
    """Refuses an unknown way to treat long prompts.

    Raises:
        OptionsError: If `too_long` is unknown.
    """
    if too_long not in ("error", "skip", "truncate-left"):
        raise OptionsError(f"too_long={too_long!r} is unknown. Give error, skip or truncate-left.")


def prompt_ids(llm: MaraLLM, row: Row) -> list[int]:
    """Token ids of a row's prompt, rendered with the row's tools.

    Args:
        llm: Policy model with its chat template.
        row: Row with a `prompt` and perhaps `tools`.

    Raises:
        DataError: If the chat template refuses the messages, or does not show the tools or their calls.
    """
    try:
        refuse_unshown_calls(llm, row)
        return encode_prompt(
            llm.tokenizer,
            row["prompt"],
            use_chat_template=bool(llm.use_chat_template),
            system_prompt=llm.system_prompt,
            tools=row.get("tools") or (),
            special_tokens_in_messages=llm.special_tokens_in_messages,
        )
    except PromptError as error:
        raise DataError(f"The prompt {str(row['prompt'])[:60]!r} cannot be used: {error}") from None


def refuse_unshown_calls(llm: MaraLLM, row: Row, answer: list[Message] | None = None) -> None:
    """Refuses tools and tool calls that the chat template leaves out, because their text would vanish without a word.

    Args:
        llm: Policy model with its chat template.
        row: Row with a `prompt` and perhaps `tools`.
        answer: Messages after the prompt, of which each call must be shown.

    Raises:
        PromptError: If the template shows the same text without tools or without a call.
    """
    tools = row.get("tools") or ()
    messages = [*as_messages(row["prompt"], llm.system_prompt), *(answer or [])]
    calling = [number for number, message in enumerate(messages) if message.get("tool_calls")]
    if not tools and not calling:
        return
    if not llm.use_chat_template:
        raise PromptError("Tools and tool calls need a chat template, and this model is prompted with plain text.")
    whole = render(llm.tokenizer, messages, tools, closed=True)
    if tools and _renders_as(llm, whole, messages, ()):
        raise PromptError("The model's chat template does not show tools. Leave out the column, or use another model.")
    for number in calling:
        silent = {name: value for name, value in messages[number].items() if name != "tool_calls"}
        if _renders_as(llm, whole, [*messages[:number], silent, *messages[number + 1 :]], tools):
            raise PromptError(
                f"The model's chat template does not show the tool calls of message {number}. Write the calls into its "
                "content as the model should write them, or use a model whose template has tool calls."
            )


def _renders_as(llm: MaraLLM, text: str, messages: list[Message], tools: object) -> bool:
    """Whether messages and tools are rendered as this text; not if the template refuses them."""
    try:
        return render(llm.tokenizer, messages, tools, closed=True) == text  # type: ignore[arg-type]
    except PromptError:
        return False


def with_room(
    ids: list[int], answer: int, context: int | None, model: str, too_long: TooLong, report: RowReport
) -> list[int] | None:
    """A prompt that leaves room for an answer.

    With `truncate-left`, a prompt loses its first tokens, all but the very first, until the answer fits; but half of
    the context stays with the prompt.

    Args:
        ids: Token ids of the prompt.
        answer: Most tokens of the answer.
        context: Most tokens that the model holds; None for no limit.
        model: Name of the model, for the error.
        too_long: What happens to a prompt that leaves no room.
        report: Counts the prompts that are left out or cut.

    Returns:
        The prompt's ids, or None if it is left out.

    Raises:
        PromptTooLongError: If the prompt leaves no room for an answer, and `too_long` is `error`.
        DataError: If the prompt has no tokens.
    """
    if not ids:
        raise DataError("The prompt has no tokens. Give a text, or leave the row out.")
    if context is None or (len(ids) < context and (too_long != "truncate-left" or len(ids) + answer <= context)):
        return ids
    if too_long == "error":
        raise PromptTooLongError(
            f"The prompt has {len(ids)} tokens, but {model} holds {context}, including the answer. Shorten the prompt "
            'or leave the row out; too_long="skip" leaves out such rows, and "truncate-left" cuts such prompts.'
        )
    if too_long == "skip":
        report.too_long += 1
        return None
    kept = max(context - answer, context // 2, 1)
    if len(ids) <= kept:
        return ids
    report.truncated += 1
    # A model without its first token reads what follows in another way.
    return [*ids[:1], *ids[len(ids) - kept + 1 :]]

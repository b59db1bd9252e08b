"""Turns prompts into token ids, through the model's chat template or as plain text, and never adds a second BOS."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import jinja2
from transformers import PreTrainedTokenizerBase

from langchain_mara.decoding.request import eos_ids
from langchain_mara.exceptions import PromptError
from langchain_mara.text.control_tokens import Message, encode_marked, mark_messages
from langchain_mara.text.own_tokenizer import encode
from langchain_mara.text.reasoning import reasoning_tags

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What templates raise on purpose, and what they run into with a conversation of an unexpected form.
_REFUSALS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip

Arrange = Callable[[list[dict[str, Any]], list[dict[str, Any]]], tuple[list[dict[str, Any]], list[dict[str, Any]]]]
"""Takes messages and tools and returns those that the chat template is to render."""


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, mark: str = "") -> list[int]:
    """Encodes plain text, with the special tokens that the tokenizer adds.

    Text that begins with a BOS already, because a chat template rendered it, gets no second one.

    Args:
        tokenizer: The model's tokenizer.
        text: Text to encode.
        mark: Mark from `mark_messages` in the parts of the text that others wrote; may be empty.
    """
    ids = encode(tokenizer, "" if mark else text, add_special_tokens=True)
    if mark:
        ids = [*ids, *encode_marked(tokenizer, text, mark)]
    bos = tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[dict[str, Any]],
    *,
    use_chat_template: bool,
    system_prompt: str | None = None,
    tools: Sequence[dict[str, Any]] = (),
    special_tokens_in_messages: bool = False,
    arrange: Arrange | None = None,
) -> list[int]:
    """Encodes a prompt as the model expects it.

    Args:
        tokenizer: The model's tokenizer.
        prompt: Text, which becomes a user message if the chat template is used, or messages.
        use_chat_template: Whether to use the tokenizer's chat template.
        system_prompt: System message to put before messages that have none.
        tools: Tools that the model may call, if the chat template is used.
        special_tokens_in_messages: See `encode_messages`. Without the chat template, special tokens in the text always
            count, because whoever renders a prompt writes them.
        arrange: See `encode_messages`.

    Raises:
        PromptError: If `prompt` holds messages but the chat template is not used.
    """
    if isinstance(prompt, str):
        if not use_chat_template:
            return encode_text(tokenizer, prompt)
    elif not use_chat_template:
        raise PromptError("Messages need a chat template, and this model is prompted with plain text. Give text.")
    messages = as_messages(prompt, system_prompt)
    return encode_messages(
        tokenizer, messages, tools, special_tokens_in_messages=special_tokens_in_messages, arrange=arrange
    )


def as_messages(prompt: str | Sequence[dict[str, Any]], system_prompt: str | None = None) -> list[dict[str, Any]]:
    """The messages of a prompt; a text is the user's message.

    Args:
        prompt: Text or messages.
        system_prompt: System message to put before messages that have none.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    has_system_message = any(message["role"] == "system" for message in messages)
    system = [] if has_system_message or system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*system, *messages]


def encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    opening: str = "",
    *,
    special_tokens_in_messages: bool = False,
    arrange: Arrange | None = None,
    promised: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Encodes a conversation with the chat template, up to where the answer begins.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Messages of the form `{"role": …, "content": …}`. If the last one is a text of the assistant, its turn
            stays open, and the answer goes on with it.
        tools: Tools that the model may call, in OpenAI's format. The template must support tools.
        opening: Beginning of the answer, appended to the prompt. Thoughts that the template opens are closed before it.
        special_tokens_in_messages: Whether special tokens in the texts of messages and tools count, so that a message
            can begin another turn. By default they are encoded as the letters they consist of.
        arrange: Arranges messages and tools for the template. The control tokens that it writes count.
        promised: Whether the answer has a promised form. Thoughts that the template opens are closed for it, too.
        template_kwargs: Further variables of the template, such as `enable_thinking`.

    Raises:
        PromptError: If there is no template, or it refuses these messages (for example a system message).
    """
    if tokenizer.chat_template is None:
        raise PromptError("The tokenizer has no chat template. Set use_chat_template=False to prompt with plain text.")
    mark = ""
    if not special_tokens_in_messages:
        messages, tools, mark = mark_messages(tokenizer, messages, tools)
    arranged = (list(messages), list(tools)) if arrange is None else arrange(list(messages), list(tools))
    text = render(tokenizer, *arranged, template_kwargs=template_kwargs)
    tags = reasoning_tags(tokenizer) if opening or promised else None
    if tags is not None and tags.opened_by(text):
        opening = f"{tags.closing}\n\n{opening}"
    # The template adds the special tokens.
    return encode_marked(tokenizer, f"{text}{opening}", mark)


def is_open(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether a conversation ends with a text of the assistant, which an answer continues."""
    last = messages[-1] if messages else {}
    content = last.get("content")
    return last.get("role") == "assistant" and isinstance(content, str) and content != "" and not last.get("tool_calls")


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    *,
    closed: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Renders a conversation with the chat template.

    If the template refuses a system message, its text goes before that of the user message that follows. If it refuses
    several texts of the same role in a row, they become one.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Messages of the form `{"role": …, "content": …}`.
        tools: Tools in OpenAI's format.
        closed: Whether the conversation is over; by default the text ends where the answer begins or goes on.
        template_kwargs: Further variables of the template.

    Raises:
        PromptError: If the template refuses these messages.
    """
    try:
        return _rendered(tokenizer, messages, tools, closed=closed, template_kwargs=template_kwargs)
    except _REFUSALS as error:
        for form in _other_forms(messages):
            with suppress(*_REFUSALS):
                return _rendered(tokenizer, form, tools, closed=closed, template_kwargs=template_kwargs)
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise PromptError(f"The model's chat template refuses messages of the roles {roles}: {error}") from None


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Message],
    *,
    closed: bool,
    template_kwargs: Mapping[str, Any] | None,
) -> str:
    goes_on = not closed and is_open(messages)
    text = tokenizer.apply_chat_template(
        list(messages),
        tools=list(tools) or None,
        tokenize=False,
        add_generation_prompt=not (closed or goes_on),
        continue_final_message=goes_on,
        **(template_kwargs or {}),
    )
    return str(text)


def _other_forms(messages: Sequence[Message]) -> list[list[Message]]:
    """The conversation in other forms, of which the template may take one, those that change the least first."""
    folded = _without_system_role(messages)
    forms = (folded, _alternating(messages), _alternating(folded))
    return [form for form in forms if form != list(messages)]


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """The conversation with one message where several texts of the user, or of the assistant, stand in a row."""
    turns: list[Message] = []
    for message in messages:
        last = turns[-1] if turns else {}
        if _is_text(message) and _is_text(last) and message["role"] == last["role"]:
            turns[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            turns.append(message)
    return turns


def _is_text(message: Message) -> bool:
    is_said = message.get("role") in ("user", "assistant") and not message.get("tool_calls")
    return is_said and isinstance(message.get("content"), str)


def _without_system_role(messages: Sequence[Message]) -> list[Message]:
    """The conversation with the texts of system messages before those of the user messages that follow them."""
    folded: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.get("role") == "system":
            waiting.append(str(message.get("content") or ""))
        elif waiting and message.get("role") == "user" and isinstance(message.get("content"), str):
            folded.append({**message, "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            folded.append(message)
    return [*folded, {"role": "user", "content": "\n\n".join(waiting)}] if waiting else folded


def eos_token_ids(model: "PreTrainedModel", tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All tokens that end an answer, from the generation config and the tokenizer.

    Args:
        model: The policy model.
        tokenizer: The model's tokenizer.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    return eos_ids(configured) | eos_ids(tokenizer.eos_token_id)

"""Prompts to token ids: through the model's chat template, or as they are. Never a second BOS."""

from collections.abc import Sequence
from typing import Any

import jinja2
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara.decoding.request import eos_ids
from langchain_mara.exceptions import PromptError


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of plain text, with the special tokens the tokenizer adds.

    Text that was rendered by a chat template already, and so begins with the BOS, gets no second one.
    """
    ids: list[int] = tokenizer(text).input_ids
    bos = tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[dict[str, Any]],
    *,
    use_chat_template: bool,
    system_prompt: str | None = None,
) -> list[int]:
    """Token ids of a prompt, a text or messages, as a model is asked it.

    Args:
        tokenizer: The model's.
        prompt: Text, put as a user's message into the template, or the messages themselves.
        use_chat_template: Whether there is a template to use.
        system_prompt: Put before messages that have no system message of their own.

    Raises:
        PromptError: If messages are given and no template is used.
    """
    if isinstance(prompt, str):
        if not use_chat_template:
            return encode_text(tokenizer, prompt)
        prompt = [{"role": "user", "content": prompt}]
    elif not use_chat_template:
        raise PromptError("Messages need a chat template, and this model is prompted with plain text. Give text.")
    own = any(message["role"] == "system" for message in prompt)
    system = [] if own or system_prompt is None else [{"role": "system", "content": system_prompt}]
    return encode_messages(tokenizer, [*system, *prompt])


def encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    opening: str = "",
) -> list[int]:
    """Token ids of a conversation rendered by the chat template, ready for the answer.

    Args:
        tokenizer: With a chat template.
        messages: `{"role": …, "content": …}` each.
        tools: Tools on offer, in OpenAI's form; the template must take them.
        opening: Beginning of the answer, put behind the prompt.

    Raises:
        PromptError: If there is no template, or it refuses these messages (a system message, say).
    """
    if tokenizer.chat_template is None:
        raise PromptError("The tokenizer has no chat template. Set use_chat_template=False to prompt with plain text.")
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise PromptError(f"The model's chat template refuses messages of the roles {roles}: {error}") from None
    # The template has written the special tokens already.
    ids: list[int] = tokenizer(f"{text}{opening}", add_special_tokens=False).input_ids
    return ids


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All tokens that end an answer: the generation config's and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    return eos_ids(configured) | eos_ids(tokenizer.eos_token_id)

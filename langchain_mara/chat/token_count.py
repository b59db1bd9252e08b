"""Estimates the tokens of parts of conversations, which chat templates refuse to render alone."""

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from transformers import PreTrainedTokenizerBase

from langchain_mara.chat.conversation import converted
from langchain_mara.text.chat_template import encode_messages
from langchain_mara.text.own_tokenizer import encode


def estimated_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]] = ()
) -> int:
    """Number of tokens of messages whatever their order: their texts, and what the template puts around a message.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Any messages, or none.
        tools: Tools in OpenAI's format.

    Raises:
        PromptError: If a message holds anything but text.
    """
    said = converted(messages)
    around = len(encode_messages(tokenizer, [{"role": "user", "content": "a"}])) - 1 if said else 0
    texts = [text for message in said for text in (message["content"], _json(message.get("tool_calls")))]
    return sum(len(encode(tokenizer, text)) for text in (*texts, *map(_json, tools))) + around * len(said)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""

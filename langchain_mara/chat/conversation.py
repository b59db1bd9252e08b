"""Turns LangChain conversations into what chat templates take."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage, message_chunk_to_message

from langchain_mara.exceptions import PromptError

Block = dict[str, Any]

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
_CALLS = {"tool_call", "tool_use", "function_call"}
_NOT_SHOWN = {*_CALLS, "tool_call_chunk", "invalid_tool_call", "tool_result", "reasoning", "thinking"}
_TEXTS = {"text", "text-plain", "json"}


def to_template(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Converts messages to what chat templates take: role, text, name, and tool calls with arguments as objects.

    A message's `tool_result` parts become messages of the tool. An empty message of the assistant at the end is left
    out, because the answer begins there. What the assistant thought is the `reasoning_content` of its message; see
    `with_reasoning`.

    Args:
        messages: The conversation.

    Raises:
        PromptError: If there is no message, or one holds anything but text, or has a type that no template knows.
    """
    conversation = converted(messages)
    while conversation and conversation[-1]["role"] == "assistant" and not _says_anything(conversation[-1]):
        conversation.pop()
    if not conversation:
        raise PromptError("The conversation is empty. Give at least one message with a text.")
    return conversation


def converted(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Converts any messages like `to_template`, none and empty ones included.

    Args:
        messages: The messages.

    Raises:
        PromptError: If a message holds anything but text, or has a type that no template knows.
    """
    whole = [message_chunk_to_message(message) for message in messages]  # streams add up to a chunk
    answered = {message.tool_call_id for message in whole if isinstance(message, ToolMessage)}
    return _with_names([item for message in whole for item in _converted(message, answered)])


def _with_names(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with the names of tools in their results. Some templates want them; OpenAI's format has none."""
    names: dict[str, str] = {}
    for message in conversation:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        name = names.get(message.get("tool_call_id", ""))
        if name and "name" not in message:
            message["name"] = name
    return conversation


def _says_anything(message: dict[str, Any]) -> bool:
    return bool(message["content"] or message.get("tool_calls"))


def _converted(message: BaseMessage, answered: set[str]) -> Iterator[dict[str, Any]]:
    blocks = [block for block in message.content if isinstance(block, dict)]
    results = [block for block in blocks if block.get("type") == "tool_result"]
    for result in results:
        call_id = result.get("tool_use_id") or ""
        yield {"role": "tool", "content": _text(result.get("content") or "", "tool"), "tool_call_id": call_id}
    text = _text(message.content, message.type)
    if results and not text:
        return
    item: dict[str, Any] = {"role": _role(message), "content": text}
    if message.name:
        item["name"] = message.name
    if thought := reasoning_of(message):
        item["reasoning_content"] = thought
    if isinstance(message, ToolMessage):
        item["tool_call_id"] = message.tool_call_id or ""
    if isinstance(message, AIMessage) and (calls := _calls(message, blocks, answered)):
        item["tool_calls"] = [
            {"type": "function", "id": call_id, "function": function} for call_id, function in calls.items()
        ]
    yield item


def reasoning_of(message: BaseMessage) -> str:
    """What the model thought before a message; the empty string if that is not known."""
    thought = message.additional_kwargs.get("reasoning_content") if isinstance(message, AIMessage) else ""
    if isinstance(thought, str) or not isinstance(message.content, list):
        return str(thought or "")
    parts = [part for part in message.content if isinstance(part, dict)]
    return "\n".join(str(part[kind]) for part in parts for kind in ("reasoning", "thinking") if part.get(kind))


def _role(message: BaseMessage) -> str:
    role = message.role if isinstance(message, ChatMessage) else _ROLES.get(message.type)
    if role is None:
        raise PromptError(
            f"A message of type {message.type} is no part of a conversation. Give system, human, ai and tool messages."
        )
    return role


def _text(content: str | list[Any], role: str) -> str:
    """The text of a message's content, without parts that the message repeats elsewhere, such as its tool calls."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, dict)]
    unreadable = sorted({str(part.get("type")) for part in parts} - _TEXTS - _NOT_SHOWN)
    if unreadable:
        raise PromptError(
            f"A message of type {role} holds {', '.join(unreadable)}; this model reads text only. "
            "Leave such parts out, or describe them in words."
        )
    texts = [part if isinstance(part, str) else _text_of(part) for part in content]
    # The parts of an answer are cuts of one text. Others, such as a document and a question, were written apart.
    return ("" if role == "ai" else "\n").join(text for text in texts if text is not None)


def _text_of(block: Block) -> str | None:
    kind = block.get("type")
    if kind not in _TEXTS:
        return None
    return json.dumps(block.get("json"), ensure_ascii=False) if kind == "json" else str(block.get("text") or "")


def _calls(message: AIMessage, blocks: Sequence[Block], answered: set[str]) -> dict[str, dict[str, Any]]:
    """Functions and arguments of a message's tool calls by id: its own, those in its content, answered bad ones."""
    calls = {str(call["id"] or i): (call["name"], call["args"]) for i, call in enumerate(message.tool_calls)}
    for block in blocks:
        call_id = str(block.get("call_id") or block.get("id") or "")
        if block.get("type") in _CALLS and call_id not in calls:
            given = block.get("args", block.get("input", block.get("arguments")))
            calls[call_id] = (str(block.get("name") or ""), _arguments(given))
    for bad in message.invalid_tool_calls:
        # A tool message without its call would be refused by some templates.
        if bad["id"] in answered:
            calls.setdefault(str(bad["id"]), (bad["name"] or "", _arguments(bad["args"])))
    return {call_id: {"name": name, "arguments": arguments} for call_id, (name, arguments) in calls.items()}


def _arguments(given: Any) -> dict[str, Any]:
    """Arguments as an object, whether they come as one or as JSON; none if they are neither."""
    try:
        value = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

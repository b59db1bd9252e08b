"""Converts LangChain messages: conversations to the chat template's form, and answers to message chunks."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessageChunk, BaseMessage, convert_to_openai_messages, message_chunk_to_message
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from langchain_mara.exceptions import OptionsError, PromptError
from langchain_mara.serving.completion import Completion, CompletionDelta
from langchain_mara.text.tool_calls import InvalidToolCall, ToolCall, ToolCallParser, ToolFormat

_NOT_SHOWN = {"tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "reasoning", "thinking"}
_MISTRAL_ID_LENGTH = 9  # Mistral's template requires ids of exactly so many letters and digits


def to_template(messages: Sequence[BaseMessage], tool_format: ToolFormat | None) -> list[dict[str, Any]]:
    """Converts messages to what chat templates take: role, text, name, and tool calls with arguments as objects.

    Args:
        messages: The conversation.
        tool_format: Tool format of the template; None if the conversation uses no tools.

    Raises:
        PromptError: If a message holds anything but text.
    """
    converted = [convert_to_openai_messages(message, text_format="string") for message in messages]
    for message, original in zip(converted, messages, strict=True):
        message["content"] = _text(message.get("content") or "", original.type)
        if original.name:
            message["name"] = original.name
        if "tool_call_id" in message:
            message["tool_call_id"] = _call_id(message["tool_call_id"], tool_format)
        for call in message.get("tool_calls", ()):
            call["id"] = _call_id(call["id"], tool_format)
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return converted


def _text(content: str | list[Any], role: str) -> str:
    """The text of a message's content, without parts that the message repeats elsewhere, such as its tool calls."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, dict)]
    unreadable = sorted({str(part.get("type")) for part in parts} - {"text"} - _NOT_SHOWN)
    if unreadable:
        raise PromptError(
            f"A message of type {role} holds {', '.join(unreadable)}; this model reads text only. "
            "Leave such parts out, or describe them in words."
        )
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)


def _call_id(call_id: str, tool_format: ToolFormat | None) -> str:
    fits = len(call_id) == _MISTRAL_ID_LENGTH and call_id.isalnum()
    if tool_format != "mistral" or fits:
        return call_id
    return hashlib.sha256(call_id.encode(errors="surrogatepass")).hexdigest()[:_MISTRAL_ID_LENGTH]


def forced_names(tools: Sequence[dict[str, Any]], choice: str | dict[str, Any] | bool | None) -> list[str]:
    """Names of the tools of which the model must call one; empty if it may answer freely.

    Args:
        tools: Tools in OpenAI's format.
        choice: The name of a tool or OpenAI's form of it; `any`, `required` or True for any tool; `auto`, `none`,
            False or None for a free choice.

    Raises:
        OptionsError: If no tool has the chosen name.
    """
    names = [str(tool["function"]["name"]) for tool in tools]
    if choice in (None, False, "auto", "none"):
        return []
    if choice in (True, "any", "required"):
        return names
    name = choice["function"]["name"] if isinstance(choice, dict) else choice
    if name not in names:
        raise OptionsError(
            f"tool_choice={name!r} is none of the tools: {', '.join(names) or 'there are none'}. Give one."
        )
    return [str(name)]


@dataclass(eq=False)
class Answer:
    """Turns one completion into chunks of a message.

    Attributes:
        completion: The completion.
        model_id: Name of the model, for the message's metadata.
        parser: Separates tool calls from the text; None if there are no tools.
        single_call: Whether only the first call counts.
        chunks: All chunks so far.
    """

    completion: Completion
    model_id: str
    parser: ToolCallParser | None = None
    single_call: bool = False
    chunks: list[ChatGenerationChunk] = field(default_factory=list)

    def take(self, delta: CompletionDelta) -> ChatGenerationChunk | None:
        """The chunk for a delta of the completion; None if the delta adds nothing to show yet."""
        text = delta.text if self.parser is None else self.parser.push(delta.text)
        call_chunks: list[ToolCallChunk] = []
        if delta.last and self.parser is not None:
            rest, valid, invalid = self.parser.finish()
            text += rest
            calls: list[ToolCall | InvalidToolCall] = [*valid, *invalid]
            calls = calls[:1] if self.single_call else calls
            call_chunks = [_call_chunk(call, i) for i, call in enumerate(calls)]
        if not text and not delta.last:
            return None
        info = self.completion.info_of_chunk(delta) or {}
        metadata = {"model_name": self.model_id, **info} if delta.last else info
        if call_chunks:
            metadata["finish_reason"] = "tool_calls"
        message = AIMessageChunk(
            content=text,
            tool_call_chunks=call_chunks,
            response_metadata=metadata,
            usage_metadata=self._usage() if delta.last else None,
            chunk_position="last" if delta.last else None,
        )
        self.chunks.append(ChatGenerationChunk(message=message, generation_info=metadata or None))
        return self.chunks[-1]

    def result(self) -> ChatGeneration:
        """The whole answer."""
        whole: ChatGenerationChunk = reduce(add, self.chunks)
        return ChatGeneration(message=message_chunk_to_message(whole.message), generation_info=whole.generation_info)

    def _usage(self) -> UsageMetadata:
        request, tokens = self.completion.request, self.completion.statistics.tokens
        return UsageMetadata(
            input_tokens=len(request.prompt_ids),
            output_tokens=tokens,
            total_tokens=len(request.prompt_ids) + tokens,
            input_token_details=InputTokenDetails(cache_read=request.reused_tokens),
        )


def _call_chunk(call: ToolCall | InvalidToolCall, index: int) -> ToolCallChunk:
    if isinstance(call, ToolCall):
        name, arguments = call.name, json.dumps(call.arguments, ensure_ascii=False)
    else:
        # LangChain completes broken JSON by guessing. Text that does not begin like JSON stays invalid.
        name, arguments = call.name or "", call.error + "\n" + call.text
    call_id = (call.id if isinstance(call, ToolCall) else None) or uuid4().hex[:_MISTRAL_ID_LENGTH]
    return ToolCallChunk(name=name, args=arguments, id=call_id, index=index, type="tool_call_chunk")

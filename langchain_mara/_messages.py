"""Converts LangChain messages: conversations to the chat template's form, and answers to message chunks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any
from uuid import uuid4

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    convert_to_openai_messages,
    message_chunk_to_message,
)
from langchain_core.messages import InvalidToolCall as LangChainInvalidCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from langchain_mara.exceptions import OptionsError, PromptError
from langchain_mara.serving.completion import Completion, CompletionDelta
from langchain_mara.text.tool_formats.answer import AnswerReader, Piece
from langchain_mara.text.tool_formats.calls import InvalidToolCall, ToolCall

_NOT_SHOWN = {"tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "reasoning", "thinking"}
_ID_LENGTH = 9  # as Mistral's templates want them


def to_template(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Converts messages to what chat templates take: role, text, name, and tool calls with arguments as objects.

    What the assistant thought is the `reasoning_content` of its message; see `with_reasoning`.

    Args:
        messages: The conversation.

    Raises:
        PromptError: If a message holds anything but text.
    """
    converted = [convert_to_openai_messages(message, text_format="string") for message in messages]
    for message, original in zip(converted, messages, strict=True):
        message["content"] = _text(message.get("content") or "", original.type)
        if original.name:
            message["name"] = original.name
        message.pop("reasoning_content", None)
        if thought := reasoning_of(original):
            message["reasoning_content"] = thought
        for call in message.get("tool_calls", ()):
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


def reasoning_of(message: BaseMessage) -> str:
    """What the model thought before a message; the empty string if that is not known."""
    thought = message.additional_kwargs.get("reasoning_content") if isinstance(message, AIMessage) else ""
    if isinstance(thought, str) or not isinstance(message.content, list):
        return thought or ""
    parts = [part for part in message.content if isinstance(part, dict)]
    return "\n".join(str(part[kind]) for part in parts for kind in ("reasoning", "thinking") if part.get(kind))


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
        reader: Tells reasoning, content and tool calls in its text.
        chunks: All chunks so far.
    """

    completion: Completion
    model_id: str
    reader: AnswerReader
    chunks: list[ChatGenerationChunk] = field(default_factory=list)
    _invalid: list[LangChainInvalidCall] = field(default_factory=list)

    def take(self, delta: CompletionDelta) -> ChatGenerationChunk | None:
        """The chunk for a delta of the completion; None if the delta adds nothing to show yet."""
        piece = self.reader.push(delta.text)
        if delta.last:
            piece = self._with_rest(piece)
        elif not piece.content and not piece.reasoning:
            return None
        info = self.completion.info_of_chunk(delta) or {}
        metadata = {"model_name": self.model_id, **info} if delta.last else info
        if piece.calls and metadata.get("finish_reason") == "stop":
            metadata["finish_reason"] = "tool_calls"
        calls: list[ToolCall | InvalidToolCall] = [*piece.calls, *piece.invalid]
        message = AIMessageChunk(
            content=piece.content,
            additional_kwargs={"reasoning_content": piece.reasoning} if piece.reasoning else {},
            tool_call_chunks=[_call_chunk(call, i) for i, call in enumerate(calls)],
            response_metadata=metadata,
            usage_metadata=self._usage() if delta.last else None,
            chunk_position="last" if delta.last else None,
        )
        self._explain(message, piece)
        self.chunks.append(ChatGenerationChunk(message=message, generation_info=metadata or None))
        return self.chunks[-1]

    def result(self) -> ChatGeneration:
        """The whole answer."""
        whole: ChatGenerationChunk = reduce(add, self.chunks)
        message = message_chunk_to_message(whole.message)
        if isinstance(message, AIMessage):
            message.invalid_tool_calls = list(self._invalid)
        return ChatGeneration(message=message, generation_info=whole.generation_info)

    def _with_rest(self, piece: Piece) -> Piece:
        """The last piece together with what was held back."""
        rest = self.reader.finish(truncated=self.completion.finish_reason == "length")
        return rest._replace(reasoning=piece.reasoning + rest.reasoning, content=piece.content + rest.content)

    def _explain(self, message: AIMessageChunk, piece: Piece) -> None:
        """Says of invalid calls what is wrong with them, which LangChain does not when it reads chunks."""
        for call, chunk in zip(piece.invalid, message.tool_call_chunks[len(piece.calls) :], strict=True):
            self._invalid.append(invalid_tool_call(name=call.name, args=call.text, id=chunk["id"], error=call.error))
        message.invalid_tool_calls = list(self._invalid)

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
        # LangChain completes broken JSON by guessing. Text that does not begin like JSON stays invalid. Whoever merges
        # the chunks of a stream finds the reason here, because LangChain does not merge errors.
        name, arguments = call.name or "", call.error + "\n" + call.text
    call_id = call.id or uuid4().hex[:_ID_LENGTH]
    return ToolCallChunk(name=name, args=arguments, id=call_id, index=index, type="tool_call_chunk")

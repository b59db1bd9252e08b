"""LangChain messages in and out: conversations for the chat template, and chunks of the answer."""

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
_MISTRAL_ID = 9  # letters and digits that Mistral's template insists on


def to_template(messages: Sequence[BaseMessage], form: ToolFormat | None) -> list[dict[str, Any]]:
    """Messages as chat templates take them: role, text, name, tool calls with their arguments as objects.

    Args:
        messages: The conversation.
        form: Tool format of the template, if the conversation is to use tools.

    Raises:
        PromptError: If a message holds something else than text.
    """
    converted = [convert_to_openai_messages(message, text_format="string") for message in messages]
    for message, original in zip(converted, messages, strict=True):
        message["content"] = _text(message.get("content") or "", original.type)
        if original.name:
            message["name"] = original.name
        if "tool_call_id" in message:
            message["tool_call_id"] = _call_id(message["tool_call_id"], form)
        for call in message.get("tool_calls", ()):
            call["id"] = _call_id(call["id"], form)
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return converted


def _text(content: str | list[Any], role: str) -> str:
    """The text of a content list; what stands elsewhere in the message too, such as its tool calls, is left out."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, dict)]
    foreign = sorted({str(part.get("type")) for part in parts} - {"text"} - _NOT_SHOWN)
    if foreign:
        raise PromptError(
            f"A message of type {role} holds {', '.join(foreign)}; this model reads text only. "
            "Leave such parts out, or describe them in words."
        )
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)


def _call_id(identity: str, form: ToolFormat | None) -> str:
    fits = len(identity) == _MISTRAL_ID and identity.isalnum()
    return identity if form != "mistral" or fits else hashlib.sha256(identity.encode()).hexdigest()[:_MISTRAL_ID]


def forced_names(tools: Sequence[dict[str, Any]], choice: str | dict[str, Any] | bool | None) -> list[str]:
    """Names of the tools one of which must be called; none where the model is free.

    Args:
        tools: In OpenAI's form.
        choice: A name, OpenAI's form of one, `any`, `required` or True for one of them all, `auto`, `none` or None.

    Raises:
        OptionsError: If there is no such tool.
    """
    names = [str(tool["function"]["name"]) for tool in tools]
    if choice in (None, False, "auto", "none"):
        return []
    if choice in (True, "any", "required"):
        return names
    name = choice["function"]["name"] if isinstance(choice, dict) else choice
    if name not in names:
        raise OptionsError(f"tool_choice={name!r} is none of the tools: {', '.join(names) or 'there are none'}.")
    return [str(name)]


@dataclass(eq=False)
class Answer:
    """One completion on its way into a message.

    Attributes:
        completion: The completion.
        model_id: Put into the message's metadata.
        parser: Takes tool calls out of the text; None where no tools were offered.
        chunks: All chunks so far.
    """

    completion: Completion
    model_id: str
    parser: ToolCallParser | None = None
    chunks: list[ChatGenerationChunk] = field(default_factory=list)

    def take(self, piece: CompletionDelta) -> ChatGenerationChunk | None:
        """The chunk that a piece of the completion makes; None where there is nothing to say yet."""
        text = piece.text if self.parser is None else self.parser.push(piece.text)
        calls: list[ToolCallChunk] = []
        if piece.last and self.parser is not None:
            rest, valid, invalid = self.parser.finish()
            text += rest
            found: list[ToolCall | InvalidToolCall] = [*valid, *invalid]
            calls = [_call_chunk(call, i) for i, call in enumerate(found)]
        if not text and not piece.last:
            return None
        info = self.completion.info_of_chunk(piece) or {}
        metadata = {"model_name": self.model_id, **info} if piece.last else info
        if calls:
            metadata["finish_reason"] = "tool_calls"
        message = AIMessageChunk(
            content=text,
            tool_call_chunks=calls,
            response_metadata=metadata,
            usage_metadata=self._usage() if piece.last else None,
            chunk_position="last" if piece.last else None,
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
        # LangChain mends incomplete JSON by guessing; what does not begin as JSON stays invalid.
        name, arguments = call.name or "", call.error + "\n" + call.text
    identity = (call.id if isinstance(call, ToolCall) else None) or uuid4().hex[:_MISTRAL_ID]
    return ToolCallChunk(name=name, args=arguments, id=identity, index=index, type="tool_call_chunk")

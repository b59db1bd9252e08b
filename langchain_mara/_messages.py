"""Turns answers into LangChain messages and their chunks."""

import json
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessageChunk, message_chunk_to_message
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, GenerationChunk

from langchain_mara.serving.completion import Completion, CompletionDelta, token_usage
from langchain_mara.text.tool_calls import InvalidToolCall, ToolCall, ToolCallParser

_CALL_ID_LENGTH = 9  # as Mistral's template requires


@dataclass(eq=False)
class Answer:
    """Turns one completion into chunks of a message.

    Attributes:
        completion: The completion.
        model_id: Name of the model, for the message's metadata.
        parser: Separates tool calls from the text; None if there are no tools.
        message_id: Id of the message; None if LangChain is to give it one.
        chunks: All chunks so far.
    """

    completion: Completion
    model_id: str
    parser: ToolCallParser | None = None
    message_id: str | None = None
    chunks: list[ChatGenerationChunk] = field(default_factory=list)

    def take(self, delta: CompletionDelta) -> ChatGenerationChunk | None:
        """The chunk for a delta of the completion; None if the delta adds nothing to show yet."""
        text = delta.text if self.parser is None else self.parser.push(delta.text)
        call_chunks: list[ToolCallChunk] = []
        if delta.last and self.parser is not None:
            rest, valid, invalid = self.parser.finish()
            text += rest
            calls: list[ToolCall | InvalidToolCall] = [*valid, *invalid]
            call_chunks = [_call_chunk(call, i) for i, call in enumerate(calls)]
        if not text and not delta.last:
            return None
        info = self.completion.info_of_chunk(delta) or {}
        metadata = {"model_name": self.model_id, **info} if delta.last else info
        if call_chunks:
            metadata["finish_reason"] = "tool_calls"
        message = AIMessageChunk(
            content=text,
            id=self.message_id,
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
    call_id = (call.id if isinstance(call, ToolCall) else None) or uuid4().hex[:_CALL_ID_LENGTH]
    return ToolCallChunk(name=name, args=arguments, id=call_id, index=index, type="tool_call_chunk")


def text_info(completion: Completion) -> dict[str, Any]:
    """The `generation_info` of a text model's answer: that of the completion, and its token counts.

    Args:
        completion: The completion, which has ended.
    """
    return {**completion.info, "token_usage": token_usage([completion])}


def text_chunk(delta: CompletionDelta) -> GenerationChunk | None:
    """The chunk that a text model's stream yields for a delta; None if the delta adds no text.

    Args:
        delta: The delta. With the last one come the finish reason, statistics and token counts.
    """
    if not delta.text and not delta.last:
        return None
    info = delta.completion.info_of_chunk(delta)
    if delta.last:
        info = {**(info or {}), "token_usage": token_usage([delta.completion])}
    return GenerationChunk(text=delta.text, generation_info=info)

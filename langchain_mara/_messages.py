"""Turns answers into LangChain messages and their chunks."""

import json
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message
from langchain_core.messages import InvalidToolCall as LangChainInvalidCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, GenerationChunk

from langchain_mara.serving.completion import Completion, CompletionDelta, token_usage
from langchain_mara.text.tool_formats.answer import AnswerReader, Piece
from langchain_mara.text.tool_formats.calls import InvalidToolCall, ToolCall

_ID_LENGTH = 9  # as Mistral's templates want them


@dataclass(eq=False)
class Answer:
    """Turns one completion into chunks of a message.

    Attributes:
        completion: The completion.
        model_id: Name of the model, for the message's metadata.
        reader: Tells reasoning, content and tool calls in its text.
        single_call: Whether only the first call counts.
        message_id: Id of the message; None if LangChain is to give it one.
        chunks: All chunks so far.
    """

    completion: Completion
    model_id: str
    reader: AnswerReader
    single_call: bool = False
    message_id: str | None = None
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
            id=self.message_id,
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
        if self.single_call:
            rest = rest._replace(calls=rest.calls[:1], invalid=() if rest.calls else rest.invalid[:1])
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

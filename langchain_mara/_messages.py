"""Turns answers into LangChain messages and their chunks."""

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
from langchain_mara.text.tool_formats.call_parts import CallPart, joined

_ID_LENGTH = 9  # as Mistral's templates want them


@dataclass(eq=False)
class Answer:
    """Turns one completion into chunks of a message.

    Attributes:
        completion: The completion.
        model_id: Name of the model, for the message's metadata.
        reader: Tells reasoning, content and tool calls in its text.
        message_id: Id of the message; None if LangChain is to give it one.
        chunks: All chunks so far.
    """

    completion: Completion
    model_id: str
    reader: AnswerReader
    message_id: str | None = None
    chunks: list[ChatGenerationChunk] = field(default_factory=list)
    _ids: dict[int, str] = field(default_factory=dict)
    _invalid: list[LangChainInvalidCall] = field(default_factory=list)

    def take(self, delta: CompletionDelta) -> ChatGenerationChunk | None:
        """The chunk for a delta of the completion; None if the delta adds nothing to show yet."""
        piece = self.reader.push(delta.text)
        if delta.last:
            piece = self._with_rest(piece)
        elif not (piece.content or piece.reasoning or piece.parts):
            return None
        info = self.completion.info_of_chunk(delta) or {}
        metadata = {"model_name": self.model_id, **info} if delta.last else info
        if piece.calls and metadata.get("finish_reason") == "stop":
            metadata["finish_reason"] = "tool_calls"
        message = AIMessageChunk(
            content=piece.content,
            id=self.message_id,
            additional_kwargs={"reasoning_content": piece.reasoning} if piece.reasoning else {},
            tool_call_chunks=[self._call_chunk(part) for part in piece.parts],
            response_metadata=metadata,
            usage_metadata=self._usage() if delta.last else None,
            chunk_position="last" if delta.last else None,
        )
        # LangChain takes arguments that come in parts, and broken ones, for invalid calls, and says no reason.
        message.invalid_tool_calls = list(self._invalid)
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
        return rest._replace(
            reasoning=piece.reasoning + rest.reasoning,
            content=piece.content + rest.content,
            parts=joined([*piece.parts, *rest.parts]),
        )

    def _call_chunk(self, part: CallPart) -> ToolCallChunk:
        begins = part.name is not None
        if begins:
            self._ids[part.number] = part.id or uuid4().hex[:_ID_LENGTH]
        call_id = self._ids[part.number]
        if wrong := part.invalid:
            self._invalid.append(invalid_tool_call(name=wrong.name, args=wrong.text, id=call_id, error=wrong.error))
        return ToolCallChunk(
            name=part.name,
            args=part.arguments,
            id=call_id if begins else None,
            index=part.number,
            type="tool_call_chunk",
        )

    def _usage(self) -> UsageMetadata:
        request, tokens = self.completion.request, self.completion.statistics.tokens
        return UsageMetadata(
            input_tokens=len(request.prompt_ids),
            output_tokens=tokens,
            total_tokens=len(request.prompt_ids) + tokens,
            input_token_details=InputTokenDetails(cache_read=request.reused_tokens),
        )


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

"""Turns answers into LangChain messages and their chunks."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message
from langchain_core.messages import InvalidToolCall as LangChainInvalidCall
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, GenerationChunk

from langchain_mara._base import PROVIDER
from langchain_mara.serving.completion import Completion, CompletionDelta, token_usage
from langchain_mara.text.tool_formats.answer import AnswerReader, Piece
from langchain_mara.text.tool_formats.call_parts import CallPart, joined

_ID_LENGTH = 9  # as Mistral's templates want them


class Said(NamedTuple):
    """What a delta, or a whole answer, says.

    Attributes:
        piece: Reasoning, content and parts of calls.
        metadata: What is known about it: the finish reason at the end, and what was requested for each token.
    """

    piece: Piece
    metadata: dict[str, Any]


@dataclass(eq=False)
class Answer:
    """Reads one completion, and turns what it says into chunks of a message.

    Attributes:
        completion: The completion.
        model_id: Name of the model, for the message's metadata.
        reader: Tells reasoning, content and tool calls in its text.
        message_id: Id of the message; None if LangChain is to give it one.
        reasoning_tokens: Number of tokens so far that are reasoning, its tags included.
        call_ids: Ids of the calls so far, by their numbers.
    """

    completion: Completion
    model_id: str
    reader: AnswerReader
    message_id: str | None = None
    reasoning_tokens: int = 0
    call_ids: dict[int, str] = field(default_factory=dict)
    _pieces: list[Piece] = field(default_factory=list)
    _invalid: list[LangChainInvalidCall] = field(default_factory=list)

    def read(self, delta: CompletionDelta) -> Said | None:
        """What a delta of the completion says; None if it adds nothing to show yet."""
        was_thinking = self.reader.is_thinking
        piece = self.reader.push(delta.text)
        self.reasoning_tokens += was_thinking or self.reader.is_thinking
        if delta.last:
            piece = self._with_rest(piece)
        elif not (piece.content or piece.reasoning or piece.parts):
            return None
        self._pieces.append(piece)
        for part in piece.parts:
            self._note(part)
        return Said(piece, self._metadata(piece, self.completion.info_of_chunk(delta) or {}, last=delta.last))

    def take(self, delta: CompletionDelta) -> ChatGenerationChunk | None:
        """The chunk for a delta of the completion; None if the delta adds nothing to show yet."""
        said = self.read(delta)
        return None if said is None else self._chunk(said, last=delta.last)

    def whole(self) -> Said:
        """What the whole answer says, once it has been read."""
        pieces = self._pieces
        parts = joined(part for piece in pieces for part in piece.parts)
        reasoning = "".join(piece.reasoning for piece in pieces)
        whole = pieces[-1]._replace(
            reasoning=reasoning, content="".join(piece.content for piece in pieces), parts=parts
        )
        return Said(whole, self._metadata(whole, self.completion.info, last=True))

    def result(self) -> ChatGeneration:
        """The whole answer, once it has been read."""
        chunk = self._chunk(self.whole(), last=True)
        message = message_chunk_to_message(chunk.message)
        if isinstance(message, AIMessage):
            message.invalid_tool_calls = list(self._invalid)
        return ChatGeneration(message=message, generation_info=chunk.generation_info)

    def _chunk(self, said: Said, *, last: bool) -> ChatGenerationChunk:
        piece, metadata = said
        # Of the last chunk, LangChain's event streams show valid calls only. It adds another one where there is none.
        is_end = last and not any(part.invalid for part in piece.parts)
        message = AIMessageChunk(
            content=piece.content,
            id=self.message_id,
            additional_kwargs={"reasoning_content": piece.reasoning} if piece.reasoning else {},
            tool_call_chunks=[self._call_chunk(part) for part in piece.parts],
            response_metadata=metadata,
            usage_metadata=self._usage() if last else None,
            chunk_position="last" if is_end else None,
        )
        # LangChain takes arguments that come in parts, and broken ones, for invalid calls, and says no reason.
        message.invalid_tool_calls = list(self._invalid)
        return ChatGenerationChunk(message=message, generation_info=metadata or None)

    def _metadata(self, piece: Piece, info: dict[str, Any], *, last: bool) -> dict[str, Any]:
        if not last:
            return info
        reason = info["finish_reason"]
        called = bool(piece.calls) and reason == "stop"
        return {
            "model_name": self.model_id,
            "model_provider": PROVIDER,
            **info,
            "finish_reason": "tool_calls" if called else reason,
            "normalized_finish_reason": "tool_call" if called else reason,
        }

    def _with_rest(self, piece: Piece) -> Piece:
        """The last piece together with what was held back."""
        rest = self.reader.finish(truncated=self.completion.finish_reason == "length")
        return rest._replace(
            reasoning=piece.reasoning + rest.reasoning,
            content=piece.content + rest.content,
            parts=joined([*piece.parts, *rest.parts]),
        )

    def _note(self, part: CallPart) -> None:
        if part.name is not None:
            self.call_ids[part.number] = part.id or uuid4().hex[:_ID_LENGTH]
        if wrong := part.invalid:
            call_id = self.call_ids[part.number]
            self._invalid.append(invalid_tool_call(name=wrong.name, args=wrong.text, id=call_id, error=wrong.error))

    def _call_chunk(self, part: CallPart) -> ToolCallChunk:
        return ToolCallChunk(
            name=part.name,
            args=part.arguments,
            id=None if part.name is None else self.call_ids[part.number],
            index=part.number,
            type="tool_call_chunk",
        )

    def _usage(self) -> UsageMetadata:
        request, tokens = self.completion.request, self.completion.statistics.tokens
        usage = UsageMetadata(
            input_tokens=len(request.prompt_ids),
            output_tokens=tokens,
            total_tokens=len(request.prompt_ids) + tokens,
            input_token_details=InputTokenDetails(cache_read=request.reused_tokens),
        )
        if self.reasoning_tokens:
            usage["output_token_details"] = OutputTokenDetails(reasoning=self.reasoning_tokens)
        return usage


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

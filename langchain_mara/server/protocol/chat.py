"""`/v1/chat/completions`: its request, and the objects and chunks of its answers."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from langchain_mara._messages import Answer
from langchain_mara.chat_models import ChatMara
from langchain_mara.server.errors import ApiError
from langchain_mara.server.protocol.answers import Answering
from langchain_mara.server.protocol.fields import Elsewhere, NotText, Old, RequestFields, Stored
from langchain_mara.server.protocol.messages import Message
from langchain_mara.serving.completion import Completion, CompletionDelta
from langchain_mara.text.tool_formats.answer import Piece
from langchain_mara.text.tool_formats.call_parts import CallPart

_TO_MODEL = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs")


class ChatRequest(RequestFields):
    """A request for an answer to a conversation."""

    messages: list[Message] = Field(min_length=1)
    """The conversation."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The same as `max_tokens`."""
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=128)
    """Tools that the model may call."""
    tool_choice: str | dict[str, Any] | None = None
    """Which tool it must call, if any."""
    parallel_tool_calls: bool | None = None
    """Whether it may call several at a time."""
    response_format: dict[str, Any] | None = None
    """What the answer conforms to."""
    logprobs: bool | None = None
    """Whether the answer comes with log-probabilities."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Number of the most probable tokens to list with each."""
    reasoning_effort: str | None = Field(default=None, max_length=20)
    """How much the model thinks, where its chat template knows this variable; `none` turns thinking off."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the chat template."""

    audio: NotText = None
    """Refused."""
    modalities: list[str] | None = None
    """Text only."""
    prediction: Elsewhere = None
    """Refused."""
    web_search_options: Elsewhere = None
    """Refused."""
    functions: Old = None
    """Refused."""
    function_call: Old = None
    """Refused."""
    store: Stored = None
    """Refused if true."""
    metadata: Any = None
    """Changes nothing."""
    service_tier: Any = None
    """Changes nothing."""
    safety_identifier: Any = None
    """Changes nothing."""
    prompt_cache_key: Any = None
    """Changes nothing."""
    prompt_cache_retention: Any = None
    """Changes nothing."""
    verbosity: Any = None
    """Changes nothing."""

    def options(self) -> dict[str, Any]:
        """What was given, as options of `ChatMara`."""
        options = super().options()
        options |= {name: value for name in _TO_MODEL if (value := getattr(self, name)) is not None}
        if self.max_completion_tokens is not None:
            options["max_completion_tokens"] = self.max_completion_tokens
        template = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort == "none":
            options["enable_thinking"] = False
        elif self.reasoning_effort is not None:
            template["reasoning_effort"] = self.reasoning_effort
        return {**options, "chat_template_kwargs": template} if template else options


class ChatAnswering(Answering):
    """The answers to one conversation.

    Args:
        request: The request.
        chat: The model that was asked.

    Raises:
        MaraError: If the model cannot be asked this.
    """

    object_name = "chat.completion"
    id_prefix = "chatcmpl"

    def __init__(self, request: ChatRequest, chat: ChatMara) -> None:
        if request.modalities not in (None, ["text"]):
            raise ApiError(400, "modalities: this server writes text only.", param="modalities")
        messages = [message.as_langchain() for message in request.messages]
        options = request.options()
        stop = options.pop("stop", None)
        configured, self._answers = chat._answers(chat._convert_input(messages).to_messages(), stop, options)
        completions = list(self._answers)
        super().__init__(request, configured._generation_job(completions), chat.tokenizer, chat.model_id)

    def take(self, delta: CompletionDelta) -> dict[str, Any] | str | None:
        """What a delta adds to its choice: a text, if it is nothing else, or a part of a choice; None if nothing."""
        answer = self._answers[delta.completion]
        said = answer.read(delta)
        if said is None:
            return None
        piece, metadata = said
        if not (metadata or piece.reasoning or piece.parts):
            return piece.content
        calls = [{"index": part.number, **_call(part, answer)} for part in piece.parts]
        delta_of_choice = {
            **({"content": piece.content} if piece.content else {}),
            **_reasoning(piece),
            **({"tool_calls": calls} if calls else {}),
        }
        return {"delta": delta_of_choice, **_ending(metadata)}

    def said(self, text: str) -> dict[str, Any]:
        """The part of a choice that adds a text and nothing else."""
        return {"delta": {"content": text}, **_ending({})}

    def choice(self, completion: Completion) -> dict[str, Any]:
        """The whole choice of a completion that has ended."""
        answer = self._answers[completion]
        piece, metadata = answer.whole()
        # Broken calls come last, as they were written.
        calls = [_call(part, answer) for part in sorted(piece.parts, key=lambda part: part.invalid is not None)]
        message = {
            "role": "assistant",
            "content": piece.content or (None if calls else ""),
            "refusal": None,
            **_reasoning(piece),
            **({"tool_calls": calls} if calls else {}),
        }
        return {"message": message, **_ending(metadata)}

    def usage(self) -> dict[str, Any]:
        """Numbers of tokens."""
        thoughts = sum(answer.reasoning_tokens for answer in self._answers.values())
        return {**super().usage(), "completion_tokens_details": {"reasoning_tokens": thoughts}}

    def opening(self, completion: Completion) -> Iterator[dict[str, Any]]:  # noqa: ARG002
        """What the chunks of a choice begin with."""
        yield {"delta": {"role": "assistant", "content": "", "refusal": None}, "logprobs": None, "finish_reason": None}


def _reasoning(piece: Piece) -> dict[str, Any]:
    return {"reasoning_content": piece.reasoning} if piece.reasoning else {}


def _ending(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = metadata.get("logprobs")
    logprobs = None if found is None else {"content": found["content"], "refusal": None}
    return {"logprobs": logprobs, "finish_reason": metadata.get("finish_reason")}


def _call(part: CallPart, answer: Answer) -> dict[str, Any]:
    """A call, or a part of one, in OpenAI's form. One that is broken has what the model wrote for its arguments."""
    begins = part.name is not None
    arguments = part.invalid.text if begins and part.invalid else part.arguments
    call_id = answer.call_ids[part.number] if begins else None
    return {"id": call_id, "type": "function", "function": {"name": part.name, "arguments": arguments}}

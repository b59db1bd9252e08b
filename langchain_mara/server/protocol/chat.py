"""`/v1/chat/completions`: its request, and the objects and chunks of its answers."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from langchain_mara.chat_models import ChatMara
from langchain_mara.exceptions import PromptError
from langchain_mara.server.errors import ApiError
from langchain_mara.server.protocol.answers import Answering
from langchain_mara.server.protocol.fields import Elsewhere, NotText, Old, RequestFields, Stored
from langchain_mara.server.protocol.messages import Message
from langchain_mara.serving.completion import Completion, CompletionDelta

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
        try:
            configured, self._answers = chat._answers(chat._convert_input(messages).to_messages(), stop, options)
        except PromptError as error:
            raise ApiError(400, str(error), param="messages") from error
        completions = list(self._answers)
        super().__init__(request, configured._generation_job(completions), chat.tokenizer, chat.model_id)

    def take(self, delta: CompletionDelta) -> dict[str, Any] | None:
        """What a delta adds to its choice; None if nothing."""
        chunk = self._answers[delta.completion].take(delta)
        return None if chunk is None else _delta(chunk.message)

    def choice(self, completion: Completion) -> dict[str, Any]:
        """The whole choice of a completion that has ended."""
        message: Any = self._answers[completion].result().message
        invalid = [(call["id"], call["name"], call["args"] or "") for call in message.invalid_tool_calls]
        calls = [(call["id"], call["name"], _json(call["args"])) for call in message.tool_calls]
        said = {
            "role": "assistant",
            "content": message.text or (None if calls or invalid else ""),
            "refusal": None,
            **_reasoning(message),
            **({"tool_calls": [_call(*call) for call in (*calls, *invalid)]} if calls or invalid else {}),
        }
        return {"message": said, **_ending(message)}

    @staticmethod
    def opening() -> Iterator[dict[str, Any]]:
        """What the chunks of a choice begin with."""
        yield {"delta": {"role": "assistant", "content": "", "refusal": None}, "logprobs": None, "finish_reason": None}


def _delta(message: Any) -> dict[str, Any]:
    """What one chunk of LangChain's adds, in OpenAI's form."""
    texts = {call["id"]: call["args"] or "" for call in message.invalid_tool_calls}
    calls = [
        {"index": call["index"], **_call(call["id"], call["name"], texts.get(call["id"], call["args"] or ""))}
        for call in message.tool_call_chunks
    ]
    delta = {
        **({"content": message.text} if message.text else {}),
        **_reasoning(message),
        **({"tool_calls": calls} if calls else {}),
    }
    return {"delta": delta, **_ending(message)}


def _reasoning(message: Any) -> dict[str, Any]:
    thought = message.additional_kwargs.get("reasoning_content")
    return {"reasoning_content": thought} if thought else {}


def _ending(message: Any) -> dict[str, Any]:
    found = message.response_metadata.get("logprobs")
    logprobs = None if found is None else {"content": found["content"], "refusal": None}
    return {"logprobs": logprobs, "finish_reason": message.response_metadata.get("finish_reason")}


def _call(call_id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _json(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)

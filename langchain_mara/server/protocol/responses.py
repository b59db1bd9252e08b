"""`/v1/responses`: its request, and the objects and events of its answers. Nothing is kept between requests."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_mara.chat_models import ChatMara
from langchain_mara.server.errors import ApiError, validation_error
from langchain_mara.server.protocol.chat import ChatAnswering, ChatRequest
from langchain_mara.server.protocol.events import event
from langchain_mara.server.protocol.fields import Elsewhere, MaraFields, Stored, StreamOptions
from langchain_mara.server.protocol.output_items import Event, OutputItems
from langchain_mara.server.protocol.response_input import messages_of
from langchain_mara.serving.completion import CompletionDelta

_LOGPROBS = "message.output_text.logprobs"
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
_SAME = ("model", "temperature", "top_p", "tool_choice", "parallel_tool_calls", "mara")


class Reasoning(BaseModel):
    """How the model thinks."""

    model_config = ConfigDict(extra="ignore")

    effort: str | None = Field(default=None, max_length=20)
    """How much it thinks, where its chat template knows this variable."""


class TextFormat(BaseModel):
    """What the text conforms to."""

    model_config = ConfigDict(extra="ignore")

    format: dict[str, Any] | None = None
    """A JSON schema, any JSON object, or any text."""


class ResponsesRequest(BaseModel):
    """A request for a response."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(default=None, min_length=1)
    """Name of a model of the server."""
    input: str | list[dict[str, Any]]
    """A text, or messages, calls and results of calls."""
    instructions: str | None = None
    """What the system says first."""
    stream: bool | None = None
    """Whether the response comes as events while it is generated."""
    stream_options: StreamOptions | None = None
    """Changes nothing."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of the response."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Temperature of samples; by default there are none."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus mass of the candidates."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Number of the most probable tokens to list with each."""
    include: list[str] | None = None
    """`message.output_text.logprobs` for log-probabilities; the rest changes nothing."""
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=128)
    """Functions that the model may call."""
    tool_choice: str | dict[str, Any] | None = None
    """Which function it must call, if any."""
    parallel_tool_calls: bool | None = None
    """Whether it may call several at a time."""
    text: TextFormat | None = None
    """What the text conforms to."""
    reasoning: Reasoning | None = None
    """How the model thinks."""
    truncation: Literal["disabled"] | None = None
    """Long inputs are refused."""
    mara: MaraFields = Field(default_factory=MaraFields)
    """What this library adds."""

    previous_response_id: Stored = None
    """Refused."""
    conversation: Stored = None
    """Refused."""
    background: Stored = None
    """Refused if true."""
    prompt: Elsewhere = None
    """Refused."""
    store: Any = None
    """Changes nothing: nothing is kept."""
    user: Any = None
    """Changes nothing."""
    metadata: Any = None
    """Comes back with the response."""
    max_tool_calls: Any = None
    """Changes nothing."""
    service_tier: Any = None
    """Changes nothing."""
    safety_identifier: Any = None
    """Changes nothing."""
    prompt_cache_key: Any = None
    """Changes nothing."""
    prompt_cache_retention: Any = None
    """Changes nothing."""

    def as_chat(self) -> ChatRequest:
        """The same request to the chat API.

        Raises:
            ApiError: If the input or a tool is of a kind that is not supported.
        """
        given = {name: value for name in _SAME if (value := getattr(self, name)) is not None}
        wants_logs = bool(self.top_logprobs) or _LOGPROBS in (self.include or ())
        given |= {
            "messages": messages_of(self.input, self.instructions),
            "max_tokens": self.max_output_tokens,
            "tools": self.tools and [_tool(tool, place) for place, tool in enumerate(self.tools)],
            "response_format": _format(self.text.format if self.text else None),
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "logprobs": True if wants_logs else None,
            "top_logprobs": self.top_logprobs,
        }
        try:
            return ChatRequest.model_validate(given)
        except ValidationError as error:
            raise validation_error(error.errors()) from None


def _tool(tool: dict[str, Any], place: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        message = f"A tool of type {tool.get('type')!r:.60} runs on its provider's servers. Give functions."
        raise ApiError(400, message, param=f"tools.{place}.type")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


class ResponseAnswering(ChatAnswering):
    """The response to one request.

    Args:
        request: The request.
        chat: The model that was asked.

    Raises:
        MaraError: If the model cannot be asked this.
    """

    object_name = "response"
    id_prefix = "resp"
    ends_with_done = False
    prompt_field = "input"
    param_names = _NAMES

    def __init__(self, request: ResponsesRequest, chat: ChatMara) -> None:
        super().__init__(request.as_chat(), chat)
        self._asked = request
        self._items = OutputItems()
        self._sent = 0
        self._untold: list[dict[str, Any]] = []
        self._is_cut = False

    def begin(self) -> Iterator[Event]:
        """The events before the first token."""
        for kind in ("response.created", "response.in_progress"):
            yield self._numbered({"type": kind, "response": self._response("in_progress")})

    def events(self, delta: CompletionDelta) -> bytes:
        """The events of a delta. A trace comes with the first of them, or with the next delta that has any."""
        traced = self._trace(delta)
        self._traces[delta.completion] += traced
        self._untold += traced
        told = list(map(self._numbered, self._told(delta)))
        if told and self._untold:
            told[0]["mara"], self._untold = {"tokens": self._untold}, []
        return b"".join(map(event, told))

    def record(self, delta: CompletionDelta) -> None:
        """Takes a delta of a response that is wanted whole."""
        self._traces[delta.completion] += self._trace(delta)
        for _ in self._told(delta):
            pass

    def end(self) -> Iterator[Event]:
        """The last event, with the whole response."""
        whole = self.whole()
        yield self._numbered({"type": f"response.{whole['status']}", "response": whole})

    def whole(self) -> dict[str, Any]:
        """The whole response, once it has ended."""
        usage = self.usage()
        tokens = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        }
        traces = {"mara": {"tokens": next(iter(self._traces.values()))}} if self._texts else {}
        return {**self._response("incomplete" if self._is_cut else "completed"), "usage": tokens, **traces}

    def _told(self, delta: CompletionDelta) -> Iterator[Event]:
        taken = self.take(delta)
        if taken is None:
            return
        choice = self.said(taken) if isinstance(taken, str) else taken
        said, logs = choice["delta"], choice["logprobs"]
        if thought := said.get("reasoning_content"):
            yield from self._items.think(thought)
        if text := said.get("content"):
            yield from self._items.say(text, logs["content"] if logs else [])
        for call in said.get("tool_calls", ()):
            function = call["function"]
            yield from self._items.call(call["index"], call["id"], function["name"], function["arguments"])
        if choice["finish_reason"]:
            self._is_cut = choice["finish_reason"] == "length"
            yield from self._items.close("incomplete" if self._is_cut else "completed")

    def _numbered(self, event: Event) -> Event:
        self._sent += 1
        return {**event, "sequence_number": self._sent - 1}

    def _response(self, status: str) -> dict[str, Any]:
        asked = self._asked
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "model": self.model,
            "status": status,
            "output": self._items.items,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "max_output_tokens": asked.max_output_tokens,
            "previous_response_id": None,
            "store": False,
            "usage": None,
        }

"""Messages of OpenAI's chat API, as clients send them."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_NO_ARGUMENTS = "{}"


class Function(BaseModel):
    """The function of a call."""

    model_config = ConfigDict(extra="ignore")

    name: str
    """Name of the function."""
    arguments: str = _NO_ARGUMENTS
    """Its arguments as JSON."""


class Call(BaseModel):
    """A call that the model made."""

    model_config = ConfigDict(extra="ignore")

    id: str = ""
    """Id of the call, which its result names."""
    function: Function
    """What was called."""


class Message(BaseModel):
    """One message. Clients send back whole messages of an answer, so unknown fields are nothing wrong."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who speaks."""
    content: str | list[dict[str, Any]] | None = None
    """What is said."""
    name: str | None = None
    """Name of who speaks."""
    tool_call_id: str | None = None
    """Id of the call that a tool's message is the result of."""
    tool_calls: list[Call] | None = None
    """Calls that the model made."""
    reasoning_content: str | None = Field(default=None)
    """What the model thought."""

    @property
    def length(self) -> int:
        """Characters of what is said, and one for the message, which is a token at least."""
        parts = [self.content] if isinstance(self.content, str) else [part.get("text") for part in self.content or ()]
        return 1 + sum(len(part) for part in parts if isinstance(part, str))

    def as_langchain(self) -> dict[str, Any]:
        """The message as LangChain reads it."""
        message: dict[str, Any] = {"role": self.role, "content": "" if self.content is None else self.content}
        message |= {"name": self.name} if self.name else {}
        message |= {"tool_call_id": self.tool_call_id or ""} if self.role == "tool" else {}
        if self.role == "assistant":
            message |= {"reasoning_content": self.reasoning_content} if self.reasoning_content else {}
            message |= {"tool_calls": list(map(_call, self.tool_calls))} if self.tool_calls else {}
        return message


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": _object(call.function.arguments)}
    return {"type": "function", "id": call.id, "function": function}


def _object(arguments: str) -> str:
    """The arguments if they are an object; none if the model wrote something else, which its client sends back."""
    try:
        return arguments if isinstance(json.loads(arguments), dict) else _NO_ARGUMENTS
    except ValueError:
        return _NO_ARGUMENTS

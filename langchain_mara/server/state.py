"""What a running server knows: its models, its settings, and what it is answering."""

import time
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Scope, Send

from langchain_mara.exceptions import InterpreterExitError
from langchain_mara.server.metrics import Metrics, RequestMetrics
from langchain_mara.server.served import ServedModels
from langchain_mara.server.settings import ServerSettings
from langchain_mara.serving.completion import Completion


@dataclass(kw_only=True)
class ProcessState(ABC):
    """What a process knows that listens, whoever computes the answers.

    Attributes:
        settings: The settings.
        metrics: What it counts.
        in_flight: Requests that are being answered, by their key; the empty text without one.
        is_draining: Whether new requests are refused because the server is to end.
    """

    settings: ServerSettings
    metrics: RequestMetrics
    in_flight: dict[str, int] = field(default_factory=dict)
    is_draining: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return not any(self.in_flight.values())

    @abstractmethod
    def abandon(self) -> None:
        """Ends all answers as soon as possible; whoever waits for one gets an error."""


@dataclass(kw_only=True)
class ServerState(ProcessState):
    """What a running server knows.

    Attributes:
        models: The models.
        metrics: What it counts.
        completions: Answers that are being generated.
    """

    models: ServedModels
    metrics: Metrics
    completions: set[Completion] = field(default_factory=set)

    def abandon(self) -> None:
        """Ends all answers before the next pass; whoever waits for one gets an error."""
        for completion in list(self.completions):
            completion.request.fail(InterpreterExitError("The server ends."))


class Visit:
    """One request and what became of it.

    Attributes:
        scope: Its scope.
        request_id: Its id.
        arrived: When it arrived, by the monotonic clock.
        status: Status of the response; None before it begins.
        noted: What the log says besides.
        until_end: What is closed when the request has been answered, or its client has gone.
    """

    def __init__(self, scope: Scope, request_id: str) -> None:
        self.scope, self.request_id, self.arrived = scope, request_id, time.monotonic()
        self.status: int | None = None
        self.noted: dict[str, Any] = {}
        self.until_end = AsyncExitStack()

    def noting(self, send: Send) -> Send:
        """A `send` that notes the status and adds the request's id to the response."""

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = self.request_id
            await send(message)

        return note

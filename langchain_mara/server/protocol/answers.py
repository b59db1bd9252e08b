"""What the answers of both APIs share: ids, numbers of tokens, whole objects and chunks."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar
from uuid import uuid4

from transformers import PreTrainedTokenizerBase

from langchain_mara.server.protocol.decisions import decision_json
from langchain_mara.server.protocol.events import TextEvent, event
from langchain_mara.server.protocol.fields import RequestFields
from langchain_mara.serving.completion import Completion, CompletionDelta, GenerationJob, token_usage
from langchain_mara.text.token_texts import TokenTexts


class Answering(ABC):
    """The answers to one request: a job to run, and the objects that its deltas become.

    Args:
        request: The request.
        job: Its completions, not begun.
        tokenizer: The model's tokenizer.
        model: Name of the model.
        answers: Those of the completions that are answers; all by default.

    Attributes:
        job: The job.
        answers: The completions that are answers.
        id: Id of the answers.
        model: Name of the model.
        operation: OpenTelemetry's name of what is done.
        ends_with_done: Whether the last event of a stream is `[DONE]`.
    """

    object_name: ClassVar[str]
    id_prefix: ClassVar[str]
    operation: ClassVar[str] = "chat"
    prompt_field: ClassVar[str] = "messages"
    """Field of the request that holds the prompt."""
    param_names: ClassVar[Mapping[str, str]] = {}
    """Names of fields in this API, where they differ from those of the chat API."""
    ends_with_done: ClassVar[bool] = True

    def __init__(
        self,
        request: RequestFields,
        job: GenerationJob,
        tokenizer: PreTrainedTokenizerBase,
        model: str,
        answers: Sequence[Completion] | None = None,
    ) -> None:
        self.job = job
        self.answers = list(job.completions if answers is None else answers)
        self.id = f"{self.id_prefix}-{uuid4().hex}"
        self.model = model
        self._request, self._created = request, int(time.time())
        self._index = {completion: i for i, completion in enumerate(self.answers)}
        self._texts = TokenTexts(tokenizer) if request.mara.trace else None
        self._text_events: dict[int, TextEvent] = {}
        self._traces: dict[Completion, list[dict[str, Any]]] = {completion: [] for completion in self.answers}

    @abstractmethod
    def take(self, delta: CompletionDelta) -> dict[str, Any] | str | None:
        """What a delta adds to its choice: a text, if it is nothing else, or a part of a choice; None if nothing."""

    @abstractmethod
    def choice(self, completion: Completion) -> dict[str, Any]:
        """The whole choice of a completion that has ended."""

    @abstractmethod
    def said(self, text: str) -> dict[str, Any]:
        """The part of a choice that adds a text and nothing else."""

    def opening(self, completion: Completion) -> Iterator[dict[str, Any]]:  # noqa: ARG002 - for those that need it
        """What the chunks of a choice begin with."""
        return iter(())

    def begin(self) -> Iterator[dict[str, Any]]:
        """The chunks before the first token."""
        for completion, index in self._index.items():
            for choice in self.opening(completion):
                yield self._chunk([{"index": index, **choice}])

    def events(self, delta: CompletionDelta) -> bytes:
        """The events of a stream for a delta; nothing if there is nothing to say yet.

        Args:
            delta: What the next decision adds.
        """
        taken = self.take(delta)
        if isinstance(taken, str) and not self._texts:
            return self._text_event(self._index[delta.completion]).of(taken)
        return b"".join(map(event, self._chunks(delta, taken)))

    def _chunks(self, delta: CompletionDelta, taken: dict[str, Any] | str | None) -> Iterator[dict[str, Any]]:
        """What a stream says about a delta, of which this was taken."""
        traced = self._trace(delta)
        if taken is None and not traced:
            return
        said = self.nothing() if taken is None else self.said(taken) if isinstance(taken, str) else taken
        statistics = _statistics(delta.completion) if delta.last else {}
        extra = {"mara": {"tokens": traced, **statistics}} if self._texts else {}
        yield self._chunk([{"index": self._index[delta.completion], **said, **extra}])

    def _text_event(self, index: int) -> TextEvent:
        if index not in self._text_events:
            self._text_events[index] = TextEvent(lambda text: self._chunk([{"index": index, **self.said(text)}]))
        return self._text_events[index]

    def record(self, delta: CompletionDelta) -> None:
        """Takes a delta of answers that are wanted whole."""
        if delta.completion in self._index:
            self.take(delta)
            self._traces[delta.completion] += self._trace(delta)

    def whole(self) -> dict[str, Any]:
        """The object of all answers, once they have ended."""
        choices = []
        for completion, index in self._index.items():
            extra = {"mara": {"tokens": self._traces[completion], **_statistics(completion)}} if self._texts else {}
            choices.append({"index": index, **self.choice(completion), **extra})
        return {**self._object(self.object_name, choices), "usage": self.usage()}

    def end(self) -> Iterator[dict[str, Any]]:
        """The chunks after the last token: the numbers of tokens, if they are wanted."""
        if self._request.wants_usage:
            yield {**self._chunk([]), "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Numbers of tokens."""
        usage: dict[str, Any] = dict(token_usage(self.answers))
        cached = max((completion.request.reused_tokens for completion in self.answers), default=0)
        return {**usage, "prompt_tokens_details": {"cached_tokens": cached}}

    def nothing(self) -> dict[str, Any]:
        """A choice of a chunk that adds nothing."""
        return {"delta": {}, "logprobs": None, "finish_reason": None}

    def _trace(self, delta: CompletionDelta) -> list[dict[str, Any]]:
        return [decision_json(delta.decision, self._texts)] if self._texts else []

    def _chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._object(f"{self.object_name}.chunk", choices)
        return {**chunk, "usage": None} if self._request.wants_usage else chunk

    def _object(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self._created, "model": self.model, "choices": list(choices),
        }  # fmt: skip


def _statistics(completion: Completion) -> dict[str, Any]:
    return {"statistics": {**completion.statistics.as_info(), "passes": completion.passes}}

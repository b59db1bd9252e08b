"""Runs the answers of a chat model: whole or streamed, with or without blocking the event loop."""

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.utils.utils import LC_ID_PREFIX

from langchain_mara._base import LocalModel
from langchain_mara._messages import Answer
from langchain_mara.chat.configuration import ConfigurableModel
from langchain_mara.exceptions import OptionsError
from langchain_mara.serving.completion import Completion, acomplete, complete
from langchain_mara.text.detokenizer import Stop

Answers = dict[Completion, Answer]
RunManager = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun


class RunningChatModel(ConfigurableModel, BaseChatModel):
    """A chat model that knows how answers run and not yet how they begin."""

    streaming: bool | None = None
    """Whether `invoke` uses `stream`. False also keeps tokens from callbacks; by default both is left to LangChain."""

    @abstractmethod
    def _answers(
        self, messages: list[BaseMessage], stop: Stop, kwargs: Mapping[str, Any]
    ) -> tuple[LocalModel, Answers]:
        """The configured model, and the `n` answers to a conversation, not begun, by their completions."""

    def _only_answer(
        self, messages: list[BaseMessage], stop: Stop, kwargs: Mapping[str, Any], run_manager: RunManager | None
    ) -> tuple[LocalModel, Answers]:
        chat, answers = self._answers(messages, stop, kwargs)
        if len(answers) > 1:
            raise OptionsError(f"A stream is one answer, not n={len(answers)}. Use generate, or leave n at 1.")
        _name(answers, run_manager)
        return chat, answers

    def _is_silent(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether LangChain was told not to stream this call, so that no callback sees its tokens."""
        if self.disable_streaming is True or (self.disable_streaming == "tool_calling" and kwargs.get("tools")):
            return True
        return self.streaming is False if kwargs.get("stream") is None else not kwargs["stream"]

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chat, answers = self._answers(messages, stop, kwargs)
        _name(answers, run_manager)
        listener = None if self._is_silent(kwargs) else run_manager
        first = next(iter(answers))
        for delta in complete(chat._generation_job(list(answers))):
            if listener is None or delta.completion is not first:
                answers[delta.completion].read(delta)
            elif chunk := answers[first].take(delta):
                listener.on_llm_new_token(chunk.text, chunk=chunk)
        return ChatResult(generations=[answer.result() for answer in answers.values()])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chat, answers = self._answers(messages, stop, kwargs)
        _name(answers, run_manager)
        listener = None if self._is_silent(kwargs) else run_manager
        first = next(iter(answers))
        async for delta in acomplete(chat._generation_job(list(answers))):
            if listener is None or delta.completion is not first:
                answers[delta.completion].read(delta)
            elif chunk := answers[first].take(delta):
                await listener.on_llm_new_token(chunk.text, chunk=chunk)
        return ChatResult(generations=[answer.result() for answer in answers.values()])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chat, answers = self._only_answer(messages, stop, kwargs, run_manager)
        for delta in complete(chat._generation_job(list(answers))):
            if chunk := answers[delta.completion].take(delta):
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chat, answers = self._only_answer(messages, stop, kwargs, run_manager)
        async for delta in acomplete(chat._generation_job(list(answers))):
            if chunk := answers[delta.completion].take(delta):
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk


def _name(answers: Answers, run_manager: RunManager | None) -> None:
    """Gives all chunks of an answer the id that LangChain gives to the message of this run."""
    if run_manager is not None:
        for number, answer in enumerate(answers.values()):
            answer.message_id = f"{LC_ID_PREFIX}-{run_manager.run_id}" + (f"-{number}" if len(answers) > 1 else "")

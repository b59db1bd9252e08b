"""Conversations as prompts of a text model: LangChain hands texts on, and these still know their messages."""

import json
from abc import abstractmethod
from typing import Any, Self

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import PromptValue, StringPromptValue
from typing_extensions import override

from langchain_mara.chat.conversation import to_template


class ConversationText(str):
    """A conversation as a text. LangChain takes it for a prompt, in caches and traces, too.

    Args:
        messages: Messages of the form `{"role": …, "content": …}`.
    """

    __slots__ = ("messages",)
    messages: list[dict[str, Any]]

    def __new__(cls, messages: list[dict[str, Any]]) -> Self:
        """The text names roles as JSON, so that no two conversations and hardly any plain prompt have the same."""
        text = super().__new__(cls, f"messages: {json.dumps(messages, ensure_ascii=False)}")
        text.messages = messages
        return text


class ConversationPrompt(PromptValue):
    """A prompt that keeps its messages when it becomes a text."""

    messages: list[BaseMessage]

    @override
    def to_string(self) -> str:
        return ConversationText(to_template(self.messages))

    @override
    def to_messages(self) -> list[BaseMessage]:
        return self.messages


def with_roles(prompt: PromptValue) -> PromptValue:
    """A prompt that keeps the roles of its messages; a plain text stays as it is.

    Args:
        prompt: The prompt as LangChain converted it.
    """
    return prompt if isinstance(prompt, StringPromptValue) else ConversationPrompt(messages=prompt.to_messages())


class RoleKeepingLLM(BaseLLM):
    """A text model whose prompts keep the roles of their messages, whichever method of LangChain takes them."""

    @property
    @abstractmethod
    def _renders_roles(self) -> bool:
        """Whether the model's chat template renders prompts."""

    def _kept(self, prompt: PromptValue) -> PromptValue:
        return with_roles(prompt) if self._renders_roles else prompt

    @override
    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        return self._kept(super()._convert_input(model_input))

    @override
    def generate_prompt(self, prompts: list[PromptValue], *args: Any, **kwargs: Any) -> LLMResult:
        return super().generate_prompt(list(map(self._kept, prompts)), *args, **kwargs)

    @override
    async def agenerate_prompt(self, prompts: list[PromptValue], *args: Any, **kwargs: Any) -> LLMResult:
        return await super().agenerate_prompt(list(map(self._kept, prompts)), *args, **kwargs)

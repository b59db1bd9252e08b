"""The models of a server: the plain model, and the same model with each of its agents."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from langchain_mara.chat_models import ChatMara
from langchain_mara.exceptions import OptionsError
from langchain_mara.llms import MaraLLM
from langchain_mara.loading.models import AgentSource
from langchain_mara.policy.model import PolicyModel
from langchain_mara.server.errors import ApiError

PLAIN = "none"
"""Name by which a request asks for the model without an agent."""


@dataclass(frozen=True)
class ServedModel:
    """A model under one name.

    Attributes:
        name: Name under which clients ask for it.
        agent: Name of its agent; None for the plain model.
        llm: The model for prompts that are plain text.
        chat: The model for conversations; None if it has no chat template.
        most_characters: Characters in as many of the longest tokens as the model's context has; None without a limit.
    """

    name: str
    agent: str | None
    llm: MaraLLM
    chat: ChatMara | None
    most_characters: int | None = None

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and answer; None without a limit."""
        return PolicyModel(self.llm.model).context

    def refuse_long(self, length: int, param: str) -> None:
        """Refuses a prompt that is too long however it is encoded, because to encode a long one takes long.

        Args:
            length: Its number of characters or of tokens.
            param: Field of the request that holds it.

        Raises:
            ApiError: If it cannot fit into the model's context.
        """
        if self.most_characters is not None and length > self.most_characters:
            message = f"The prompt has {length:,} characters, of which {self.name} can never hold more than "
            message += f"{self.most_characters:,}. Shorten it."
            raise ApiError(400, message, param=param, code="context_length_exceeded")


class ServedModels:
    """All models of a server, by name. They share one loaded model, and so one running batch.

    Args:
        llm: The model; its own agent does not count.
        name: Name of the plain model.
        agents: Agents by their names. The first is that of the default model.

    Raises:
        OptionsError: If an agent has no name of its own.
    """

    def __init__(self, llm: MaraLLM, name: str, agents: Mapping[str, AgentSource]) -> None:
        if PLAIN in agents:
            raise OptionsError(f"An agent cannot be named {PLAIN}, which asks for the plain model. Give NAME=AGENT.")
        self.name = name
        plain = llm.with_agent(None)._copied({"use_chat_template": False, "system_prompt": None})
        self._by_agent: dict[str | None, ServedModel] = {None: _served(plain, name, None)}
        for agent, source in agents.items():
            self._by_agent[agent] = _served(plain.with_agent(source), f"{name}+{agent}", agent)
        self._by_name = {model.name: model for model in self._by_agent.values()}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._by_name.values())

    @property
    def default(self) -> ServedModel:
        """The model of a request that names none: the one with the first agent, if there is one."""
        models = list(self)
        return models[1] if models[1:] else models[0]

    def find(self, name: str | None, agent: str | None = None) -> ServedModel:
        """The model that a request asks for.

        Args:
            name: Name of the model; None for the default.
            agent: Name of an agent instead of the one in the model's name, or `PLAIN`.

        Raises:
            ApiError: 404 if there is no such model, 400 if there is no such agent.
        """
        model = self.default if name is None else self._by_name.get(name)
        if model is None:
            known = ", ".join(self._by_name)
            message = f"There is no model {name!r:.200} here. There are: {known}."
            raise ApiError(404, message, param="model", code="model_not_found")
        if agent is None:
            return model
        chosen = self._by_agent.get(None if agent == PLAIN else agent)
        if chosen is None:
            known = ", ".join([PLAIN, *(model.agent for model in self if model.agent)])
            raise ApiError(400, f"There is no agent {agent!r:.200} here. There are: {known}.", param="mara.agent")
        return chosen

    def chat_of(self, model: ServedModel) -> ChatMara:
        """The chat model under a name.

        Raises:
            ApiError: If it has no chat template.
        """
        if model.chat is None:
            raise ApiError(
                400, f"{self.name} has no chat template. Use /v1/completions with plain text.", param="model"
            )
        return model.chat


def _served(llm: MaraLLM, name: str, agent: str | None) -> ServedModel:
    named: dict[str, Any] = {"model_id": name}
    llm = llm._copied(named)
    chat = None if llm.tokenizer.chat_template is None else ChatMara.from_llm(llm)
    served = ServedModel(name, agent, llm, chat)
    longest = max(map(len, llm.tokenizer.get_vocab()))
    return replace(served, most_characters=None if served.context is None else served.context * longest)

"""ChatMara: a LangChain chat model that runs a local model with accept/reject decoding."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict, Field
from typing_extensions import override

from langchain_mara._base import LocalModel
from langchain_mara._messages import Answer
from langchain_mara.chat.conversation import to_template
from langchain_mara.chat.offer import CALLING, ToolOffer
from langchain_mara.chat.profile import profile_of
from langchain_mara.chat.running import Answers, RunningChatModel
from langchain_mara.chat.structured_output import Method, structured
from langchain_mara.chat.token_count import estimated_tokens
from langchain_mara.chat.tool_choice import Choice, Tool, forced_names, tool_schemas
from langchain_mara.exceptions import PromptError
from langchain_mara.options import canonical
from langchain_mara.text.chat_fields import ChatFields
from langchain_mara.text.chat_template import is_open
from langchain_mara.text.detokenizer import Stop, as_list
from langchain_mara.text.tool_formats.answer import ends_in_thoughts
from langchain_mara.text.tool_formats.conversation import encode_conversation
from langchain_mara.text.tool_formats.table import tool_format_of
from langchain_mara.tracing.trace import Trace

_CALL_ONLY = CALLING | {"model", "revision", "stream", "ls_structured_output_format", "structured_output_format"}


class ChatMara(ChatFields, RunningChatModel):
    """A local Hugging Face chat model whose tokens an agent accepts or rejects while it generates.

    Setup:
        Run `pip install "langchain-mara[training]"`. A CUDA GPU is used if available.

    Key init args, decoding:
        top_k, top_p, accept_threshold, strategy, strength, order, fallback, temperature, seed: As for `MaraLLM`.
        max_new_tokens: Most tokens of the answer; `max_tokens` means the same.
        stop: Strings that end the answer and are not part of it.

    Key init args, model:
        model, tokenizer: A loaded `AutoModelForCausalLM` and its tokenizer, which needs a chat template.
        agent: An agent of any kind; None decodes without an agent.
        batch_size, width, draft, compile, prefix_memory, queue_size, timeout: The same as for `MaraLLM`.

    Instantiate:
        ```python
        from langchain_mara import ChatMara, MaraLLM

        chat = ChatMara.from_model_id(
            "mistralai/Mistral-7B-Instruct-v0.3",
            agent="IAAR-Shanghai/MARA_AGENTS:mistral_v3_2_1_actor.pth",
        )
        chat = MaraLLM.demo().as_chat()  # shares the loaded model
        ```

    Invoke:
        ```python
        chat.invoke([("system", "You are brief."), ("human", "How do I boil an egg?")])
        ```

    Stream:
        ```python
        for chunk in chat.stream("How do I boil an egg?"):
            print(chunk.text, end="")
        ```

    Async:
        ```python
        await chat.ainvoke("How do I boil an egg?")
        ```

    Tool calling:
        `tool_format` names the format of the model's calls; by default it is read off the chat template.
        ```python
        chat.bind_tools([get_weather]).invoke("What is the weather in Paris?").tool_calls
        ```

    Structured output:
        ```python
        chat.with_structured_output(Recipe).invoke("How do I boil an egg?")
        ```

    Raises:
        OptionsError: If an argument is unknown or out of range.
        PromptError: If the tokenizer has no chat template, or messages cannot be put into it.
        UnsupportedModelError: If the model's architecture cannot be decoded this way.
        AgentMismatchError: If the agent reads states of a different size than the model produces.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    profile: Any = Field(default=None, exclude=True, repr=False)
    """What the model can do, in LangChain's words: context size, tools, structured output, reasoning. By default it is
    read from the model, its chat template and this library."""

    _fixed: ClassVar[frozenset[str]] = RunningChatModel._fixed | set(BaseChatModel.model_fields)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.tokenizer.chat_template is None:
            raise PromptError(
                f"The tokenizer of {self.model_id} has no chat template. Use an instruct model, set "
                "tokenizer.chat_template, or prompt it with plain text through MaraLLM."
            )
        if self.__dict__["profile"] is None:  # langchain-core before 1.3 does not ask for it
            self.__dict__["profile"] = self._resolve_model_profile()

    def _resolve_model_profile(self) -> Any:
        return profile_of(self)

    @override
    def _copied(self, changes: Mapping[str, Any]) -> Self:
        return super()._copied({"profile": None, **changes} if "model" in changes else changes)

    @classmethod
    def from_llm(cls, llm: LocalModel, **kwargs: Any) -> Self:
        """A chat model that shares the loaded model, agent and settings of another instance.

        Args:
            llm: The other instance, for example a `MaraLLM`.
            **kwargs: Fields to change.
        """
        changes = canonical(kwargs, llm.order)
        return cls(_given=changes, **{**llm._shared_with(cls), **changes})

    @override
    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: Choice = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Lets the model call tools.

        Args:
            tools: Functions, pydantic models, LangChain tools, or OpenAI's JSON.
            tool_choice: Name of a tool to call, `"any"` for any of them, `"auto"` (default) or `"none"`. The beginning
                of a forced call is written for the model. Its arguments are not checked against the schema.
            strict: Whether the tools are marked as strict, in OpenAI's sense.
            **kwargs: Arguments of a call.

        Raises:
            PromptError: If the chat template takes tools in an unknown format.
            OptionsError: If `tool_choice` names no tool, `tool_format` no format, or a tool runs at its provider.
        """
        schemas = tool_schemas(tools, strict=strict)
        forced_names(schemas, tool_choice)
        if schemas:
            tool_format_of(self.tokenizer, kwargs.get("tool_format", self.tool_format))
        return self.bind(tools=schemas, tool_choice=tool_choice, **kwargs)

    @override
    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Method | None = None,
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Reads every answer as a value of a schema.

        Args:
            schema: A pydantic class, a `TypedDict`, a JSON schema or a tool in OpenAI's format.
            method: `function_calling` (default) forces a call of a tool with this schema. `json_schema` and `json_mode`
                constrain decoding to the schema, or to any JSON object.
            include_raw: Whether to return a dictionary of the message (`raw`), the value (`parsed`) and the error
                (`parsing_error`), instead of raising the error.
            strict: Whether a value that does not conform to the schema is an error even where the schema is no class.
            **kwargs: Other arguments of a call.

        Raises:
            OptionsError: If the method is unknown, or the schema is none.
            PromptError: If the chat template takes tools in an unknown format.
        """
        return structured(self, schema, method=method, include_raw=include_raw, strict=strict, kwargs=kwargs)

    def trace(self, inputs: Sequence[LanguageModelInput], **kwargs: Any) -> list[Trace]:
        """Answers conversations together and records what was decided for each token.

        Args:
            inputs: Conversations as `batch` takes them.
            **kwargs: Arguments of a call.

        Returns:
            The trace of each answer, in order of conversations.
        """
        kwargs = {"n": 1, **kwargs}
        chat, _ = self._for_call(kwargs)
        conversations = [self._convert_input(conversation).to_messages() for conversation in inputs]
        answers = [self._answers(messages, None, kwargs)[1] for messages in conversations]
        completions = [completion for by_completion in answers for completion in by_completion]
        return chat._traces([to_template(messages) for messages in conversations], completions)

    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Tool] | None = None) -> int:
        """Number of tokens of a conversation in the model's chat template, up to where the answer begins.

        A part of a conversation that the template refuses, such as the result of a tool alone, is estimated.

        Args:
            messages: The conversation, or any part of it.
            tools: Tools that the model may call.

        Raises:
            PromptError: If a message holds anything but text.
        """
        schemas = tool_schemas(tools or ())
        try:
            return len(self._encode(messages, schemas))
        except PromptError:
            return estimated_tokens(self.tokenizer, messages, schemas)

    @override
    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        return super().batch(inputs, self._concurrent(config), return_exceptions=return_exceptions, **kwargs)

    @property
    def _llm_type(self) -> str:
        return "chat-mara"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {**self._identity(), **self.model_dump(include=set(ChatFields.model_fields))}

    @override
    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        chat, call_arguments = self._for_call(kwargs, stop)
        tool_arguments = {name: call_arguments[name] for name in CALLING & set(call_arguments)}
        return BaseChatModel._get_llm_string(chat, as_list(stop), **tool_arguments)

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        settings = {name: value for name, value in kwargs.items() if name not in _CALL_ONLY | {"agent"}}
        params = self._configured(settings, quiet=True)._langsmith_params("chat", stop)
        params["ls_model_name"] = kwargs.get("model") or self.model_id
        return params

    def _for_call(self, kwargs: Mapping[str, Any], stop: Stop = None) -> tuple[Self, dict[str, Any]]:
        """This model as configured for a call, and the arguments that are not fields."""
        call_arguments = {name: value for name, value in kwargs.items() if name in _CALL_ONLY}
        changes = {name: value for name, value in kwargs.items() if name not in _CALL_ONLY}
        chat = self._on_model(call_arguments.get("model"), changes, call_arguments.get("revision"), stop)
        return chat, call_arguments

    def _answers(self, messages: list[BaseMessage], stop: Stop, kwargs: Mapping[str, Any]) -> tuple[Self, Answers]:
        """The configured model, and the `n` answers to a conversation, not begun, by their completions."""
        chat, call_arguments = self._for_call(kwargs, stop)
        offer = ToolOffer.of(chat.tokenizer, chat.tool_format, call_arguments)
        conversation = to_template(messages)
        instead = offer.instead_of(chat)
        prompt_ids = encode_conversation(
            chat.tokenizer, conversation, offer.schemas, offer.opening, settings=chat, promised=instead is not None
        )
        begun = conversation[-1]["content"] if is_open(conversation) else ""
        thinking = ends_in_thoughts(chat.tokenizer, prompt_ids, begun)
        openings = None if offer.opening else instead or ()
        completions = chat._completions(prompt_ids, stop, offer.markers(chat.tokenizer), openings)
        readers = (offer.reader(chat.tokenizer, thinking=thinking, instead=instead) for _ in completions)
        return chat, {
            completion: Answer(completion, chat.model_id, reader)
            for completion, reader in zip(completions, readers, strict=True)
        }

    def _encode(self, messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]], opening: str = "") -> list[int]:
        return encode_conversation(self.tokenizer, to_template(messages), tools, opening, settings=self)


if "profile" not in BaseChatModel.model_fields:
    # langchain-core 1.0 has a property of this name, which would hide the field and asks for another package.
    ChatMara.profile = property(lambda chat: chat.__dict__["profile"])

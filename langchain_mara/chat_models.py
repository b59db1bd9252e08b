"""ChatMara: a LangChain chat model that runs a local model with accept/reject decoding."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict
from typing_extensions import override

from langchain_mara._base import LocalModel
from langchain_mara._messages import Answer, forced_names, to_template
from langchain_mara.exceptions import OptionsError, PromptError
from langchain_mara.options import canonical
from langchain_mara.serving.completion import Completion, acomplete, complete
from langchain_mara.text.chat_template import encode_messages
from langchain_mara.text.detokenizer import Stop, as_list
from langchain_mara.text.tool_calls import MARKERS, ToolCallParser, detect_tool_format, forced_opening
from langchain_mara.tracing.trace import Trace

_CALL_ONLY = {
    "model",
    "revision",
    "tools",
    "tool_choice",
    "stream",
    "ls_structured_output_format",
    "structured_output_format",
}

_Answers = dict[Completion, Answer]


class ChatMara(LocalModel, BaseChatModel):
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
        Works with models whose template takes tools in the format of Hermes and Qwen, Llama 3.1, or Mistral.
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

    streaming: bool = False
    """Whether `invoke` uses `stream`, as in other LangChain chat models."""

    _fixed: ClassVar[frozenset[str]] = LocalModel._fixed | set(BaseChatModel.model_fields)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.tokenizer.chat_template is None:
            raise PromptError(
                f"The tokenizer of {self.model_id} has no chat template. Use an instruct model, set "
                "tokenizer.chat_template, or prompt it with plain text through MaraLLM."
            )

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
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Lets the model call tools.

        Args:
            tools: Functions, pydantic models, LangChain tools, or OpenAI's JSON.
            tool_choice: Name of a tool to call, `"any"` for any of them, `"auto"` (default) or `"none"`. The beginning
                of a forced call is written for the model. Its arguments are not checked against the schema.
            **kwargs: Arguments of a call.

        Raises:
            PromptError: If the chat template takes no tools, or if its tool format is unknown.
            OptionsError: If `tool_choice` names no tool.
        """
        detect_tool_format(self.tokenizer)
        tool_schemas = [convert_to_openai_tool(tool) for tool in tools]
        forced_names(tool_schemas, tool_choice)
        return self.bind(tools=tool_schemas, tool_choice=tool_choice, **kwargs)

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
        return chat._traces([to_template(messages, None) for messages in conversations], completions)

    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Number of tokens of a conversation in the model's chat template, up to where the answer begins."""
        tool_schemas = [convert_to_openai_tool(tool) for tool in tools or ()]
        return len(self._encode(messages, tool_schemas))

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
        return self._identity()

    @override
    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        chat, call_arguments = self._for_call(kwargs, stop)
        tool_arguments = {name: call_arguments[name] for name in ("tools", "tool_choice") if name in call_arguments}
        return BaseChatModel._get_llm_string(chat, as_list(stop), **tool_arguments)

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        settings = {name: value for name, value in kwargs.items() if name not in _CALL_ONLY | {"agent"}}
        params = self._configured(settings)._langsmith_params("chat", stop)
        params["ls_model_name"] = kwargs.get("model") or self.model_id
        return params

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chat, answers = self._answers(messages, stop, kwargs)
        first = next(iter(answers))
        for delta in complete(chat._generation_job(list(answers))):
            chunk = answers[delta.completion].take(delta)
            if chunk and run_manager is not None and delta.completion is first:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        return ChatResult(generations=[answer.result() for answer in answers.values()])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chat, answers = self._answers(messages, stop, kwargs)
        first = next(iter(answers))
        async for delta in acomplete(chat._generation_job(list(answers))):
            chunk = answers[delta.completion].take(delta)
            if chunk and run_manager is not None and delta.completion is first:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        return ChatResult(generations=[answer.result() for answer in answers.values()])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chat, answers = self._only_answer(messages, stop, kwargs)
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
        chat, answers = self._only_answer(messages, stop, kwargs)
        async for delta in acomplete(chat._generation_job(list(answers))):
            if chunk := answers[delta.completion].take(delta):
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _for_call(self, kwargs: Mapping[str, Any], stop: Stop = None) -> tuple[Self, dict[str, Any]]:
        """This model as configured for a call, and the arguments that are not fields."""
        call_arguments = {name: value for name, value in kwargs.items() if name in _CALL_ONLY}
        changes = {name: value for name, value in kwargs.items() if name not in _CALL_ONLY}
        chat = self._on_model(call_arguments.get("model"), changes, call_arguments.get("revision"), stop)
        return chat, call_arguments

    def _answers(self, messages: list[BaseMessage], stop: Stop, kwargs: Mapping[str, Any]) -> tuple[Self, _Answers]:
        """The configured model, and the `n` answers to a conversation, not begun, by their completions."""
        chat, call_arguments = self._for_call(kwargs, stop)
        tool_choice = call_arguments.get("tool_choice")
        tools = [] if tool_choice == "none" else list(call_arguments.get("tools") or ())
        tool_format = detect_tool_format(chat.tokenizer) if tools else None
        names = forced_names(tools, tool_choice)
        opening = forced_opening(tool_format, names) if tool_format and names else ""
        prompt_ids = chat._encode(messages, tools, opening)
        completions = chat._completions(prompt_ids, stop, MARKERS if tools else ())
        parsers = [ToolCallParser(tool_format, opening) if tool_format else None for _ in completions]
        return chat, {
            completion: Answer(completion, chat.model_id, parser)
            for completion, parser in zip(completions, parsers, strict=True)
        }

    def _only_answer(self, messages: list[BaseMessage], stop: Stop, kwargs: Mapping[str, Any]) -> tuple[Self, _Answers]:
        chat, answers = self._answers(messages, stop, kwargs)
        if len(answers) > 1:
            raise OptionsError(f"A stream is one answer, not n={len(answers)}. Use generate, or leave n at 1.")
        return chat, answers

    def _encode(self, messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]], opening: str = "") -> list[int]:
        tool_format = detect_tool_format(self.tokenizer) if tools else None
        converted, special = to_template(messages, tool_format), self.special_tokens_in_messages
        return encode_messages(self.tokenizer, converted, tools, opening, special_tokens_in_messages=special)

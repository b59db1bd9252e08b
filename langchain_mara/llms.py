"""MaraLLM: a LangChain LLM that runs a local model with accept/reject decoding."""

import inspect
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict
from typing_extensions import override

from langchain_mara._messages import text_chunk, text_info
from langchain_mara.chat.configuration import ConfigurableModel
from langchain_mara.chat.prompts import ConversationText, RoleKeepingLLM
from langchain_mara.exceptions import OptionsError, PromptError
from langchain_mara.serving.completion import Completion, acomplete, complete, token_usage
from langchain_mara.text.chat_template import encode_prompt
from langchain_mara.text.detokenizer import Stop, as_list
from langchain_mara.text.tool_formats.conversation import needed_arrangement
from langchain_mara.tracing.trace import Trace

if TYPE_CHECKING:
    from langchain_mara.chat_models import ChatMara


class MaraLLM(ConfigurableModel, RoleKeepingLLM):
    """A local Hugging Face model whose tokens an agent accepts or rejects while it generates.

    Setup:
        Run `pip install "langchain-mara[training]"`. A CUDA GPU is used if available.

    Key init args, decoding:
        top_k, top_p: Size and nucleus mass of candidate sets (40 and 0.95 in the paper).
        accept_threshold: Accept probability that a candidate must exceed.
        gate: Where the agent is asked: everywhere, or by an `EntropyGate` or a `TrustGate`.
        strategy, strength, order, fallback, accept_action, temperature, seed: See `DecodingOptions`.
        max_new_tokens, min_new_tokens: Most and least tokens of the answer.
        stop: Strings that end the answer and are not part of it.
        n: Number of answers per prompt, for orders and strategies that draw at random.
        include_accept_probabilities: Whether `generation_info` contains accept probabilities for each token.

    Key init args, model:
        model, tokenizer: A loaded `AutoModelForCausalLM` and its tokenizer.
        agent: An agent of any kind; None decodes without an agent.
        use_chat_template: Whether a prompt becomes a user message in the chat template; by default if the tokenizer
            has a template.
        system_prompt: System message before the prompt; needs the chat template.
        batch_size, width, draft, prefix_memory: Most prompts in one pass, most siblings and drafted tokens of a prompt
            in one pass, and most bytes to keep for common prefixes. They change speed and memory, never results.
        compile: Whether passes run as compiled graphs. This, too, changes speed and memory only.
        queue_size, timeout: Most prompts that may wait for the model, and most seconds that a call may take.

    A call takes all of these as well, except model and tokenizer. Calls that run at the same time share one running
    batch if their instances have the same loaded model.

    Instantiate:
        ```python
        from langchain_mara import MaraLLM

        llm = MaraLLM.demo()  # bundled model and agent, no download
        llm = MaraLLM.from_model_id(
            "mistralai/Mistral-7B-Instruct-v0.3",
            agent="IAAR-Shanghai/MARA_AGENTS:mistral_v3_2_1_actor.pth",
        )
        ```

    Invoke:
        ```python
        llm.invoke("How do I boil an egg?")
        ```

    Stream:
        ```python
        for text in llm.stream("How do I boil an egg?"):
            print(text, end="")
        ```

    Async:
        ```python
        await llm.ainvoke("How do I boil an egg?")
        ```

    Raises:
        OptionsError: If an argument is unknown or out of range.
        UnsupportedModelError: If the model's architecture cannot be decoded this way.
        AgentMismatchError: If the agent reads states of a different size than the model produces.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    use_chat_template: bool | None = None
    system_prompt: str | None = None

    _fixed: ClassVar[frozenset[str]] = ConfigurableModel._fixed | set(BaseLLM.model_fields)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.use_chat_template is None:
            self.use_chat_template = self.tokenizer.chat_template is not None
        if self.system_prompt is not None and not self.use_chat_template:
            raise PromptError("system_prompt needs a chat template. Set use_chat_template=True, or leave it out.")

    def as_chat(self, **kwargs: Any) -> "ChatMara":
        """A chat model that shares the loaded model, agent and settings of this instance.

        Args:
            **kwargs: Fields of `ChatMara` to change.
        """
        from langchain_mara.chat_models import ChatMara

        return ChatMara.from_llm(self, **kwargs)

    def trace(self, prompts: Sequence[str | list[dict[str, Any]]], **kwargs: Any) -> list[Trace]:
        """Answers prompts together and records what was decided for each token.

        Args:
            prompts: Prompts as `batch` takes them, or messages of the form `{"role": …, "content": …}`.
            **kwargs: Fields to change for this call, such as `stop`, `agent` or any decoding option.

        Returns:
            The trace of each answer, in order of prompts.
        """
        llm = self._configured({"n": 1, **kwargs})
        return llm._traces(prompts, llm._answers(prompts, None))

    @property
    @override
    def _renders_roles(self) -> bool:
        return bool(self.use_chat_template)

    # LangChain's cache key contains the instance's parameters and the call's stop strings, but no other arguments of
    # the call. So a call with other arguments becomes a call of an instance that is configured with them.
    @override
    def generate(self, prompts: list[str], stop: Stop = None, *args: Any, **kwargs: Any) -> LLMResult:
        langchain_arguments, changes = _split(kwargs)
        return BaseLLM.generate(self._configured(changes, stop), prompts, as_list(stop), *args, **langchain_arguments)

    @override
    async def agenerate(self, prompts: list[str], stop: Stop = None, *args: Any, **kwargs: Any) -> LLMResult:
        arguments, changes = _split(kwargs)
        return await BaseLLM.agenerate(self._configured(changes, stop), prompts, as_list(stop), *args, **arguments)

    # If one input fails, LangChain's batch returns the same exception for all inputs. Running each input alone is as
    # fast, because they share the running batch.
    @override
    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        if not return_exceptions:
            return super().batch(inputs, config, **kwargs)
        return Runnable.batch(self, inputs, self._concurrent(config), return_exceptions=True, **kwargs)

    @override
    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        if not return_exceptions:
            return await super().abatch(inputs, config, **kwargs)
        return await Runnable.abatch(self, inputs, config, return_exceptions=True, **kwargs)

    # LangChain passes only the first prompt's run manager to `_generate`. This passes all of them.
    @override
    def _generate_helper(
        self, prompts: list[str], stop: list[str] | None, run_managers: list[CallbackManagerForLLMRun], **kwargs: Any
    ) -> LLMResult:
        return super()._generate_helper(prompts, stop, run_managers, all_run_managers=run_managers, **kwargs)

    @override
    async def _agenerate_helper(
        self,
        prompts: list[str],
        stop: list[str] | None,
        run_managers: list[AsyncCallbackManagerForLLMRun],
        **kwargs: Any,
    ) -> LLMResult:
        return await super()._agenerate_helper(prompts, stop, run_managers, all_run_managers=run_managers, **kwargs)

    @property
    def _llm_type(self) -> str:
        return "mara"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            **self._identity(),
            "use_chat_template": self.use_chat_template,
            "system_prompt": self.system_prompt,
        }

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        changes = {name: value for name, value in _split(kwargs)[1].items() if name != "agent"}
        return self._configured(changes, quiet=True)._langsmith_params("llm", stop)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        all_run_managers: Sequence[Any] = (),
        **kwargs: Any,
    ) -> LLMResult:
        llm = self._configured(kwargs, stop)
        completions = llm._answers(prompts, stop)
        # Each prompt's manager follows the first of its `n` completions.
        listeners = dict(zip(completions[:: llm.n], all_run_managers or [run_manager], strict=False))
        for delta in complete(llm._generation_job(completions)):
            if delta.text and (manager := listeners.get(delta.completion)):
                manager.on_llm_new_token(delta.text, chunk=GenerationChunk(text=delta.text))
        return llm._result(completions)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        all_run_managers: Sequence[Any] = (),
        **kwargs: Any,
    ) -> LLMResult:
        llm = self._configured(kwargs, stop)
        completions = llm._answers(prompts, stop)
        listeners = dict(zip(completions[:: llm.n], all_run_managers or [run_manager], strict=False))
        async for delta in acomplete(llm._generation_job(completions)):
            if delta.text and (manager := listeners.get(delta.completion)):
                await manager.on_llm_new_token(delta.text, chunk=GenerationChunk(text=delta.text))
        return llm._result(completions)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        llm = self._configured(kwargs, stop)
        for delta in complete(llm._generation_job(llm._only_answer(prompt, stop))):
            if chunk := text_chunk(delta):
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        llm = self._configured(kwargs, stop)
        async for delta in acomplete(llm._generation_job(llm._only_answer(prompt, stop))):
            if chunk := text_chunk(delta):
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _answers(self, prompts: Sequence[str | list[dict[str, Any]]], stop: Stop) -> list[Completion]:
        """`n` completions of every prompt, in order of prompts."""
        return [completion for prompt in prompts for completion in self._completions(self.encode(prompt), stop)]

    def _only_answer(self, prompt: str, stop: Stop) -> list[Completion]:
        if self.n > 1:
            raise OptionsError(f"A stream is one answer, not n={self.n}. Use generate, or leave n at 1.")
        return self._answers([prompt], stop)

    def _result(self, completions: Sequence[Completion]) -> LLMResult:
        generations = [
            Generation(text=answer.detokenizer.text, generation_info=text_info(answer)) for answer in completions
        ]
        return LLMResult(
            generations=[generations[i : i + self.n] for i in range(0, len(generations), self.n)],
            llm_output={"token_usage": token_usage(completions), "model_name": self.model_id},
        )

    def encode(self, prompt: str | Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a prompt, which is text or messages, as the model receives it."""
        options = self.model_dump(include={"use_chat_template", "system_prompt", "special_tokens_in_messages"})
        prompt = prompt.messages if isinstance(prompt, ConversationText) else prompt
        return encode_prompt(self.tokenizer, prompt, arrange=needed_arrangement(self.tokenizer, prompt), **options)


def _split(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits arguments of `generate` into LangChain's and this library's."""
    langchain_names = set(inspect.signature(BaseLLM.generate).parameters)
    langchain_arguments = {name: value for name, value in kwargs.items() if name in langchain_names}
    return langchain_arguments, {name: value for name, value in kwargs.items() if name not in langchain_names}

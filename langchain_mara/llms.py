"""MaraLLM: a LangChain LLM that runs a local model with accept/reject decoding."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict, Field, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from langchain_mara.agent import MaraAgent
from langchain_mara.completions import Completion, complete, token_usage
from langchain_mara.decoding import DEFAULT_BATCH_SIZE, DEFAULT_WIDTH
from langchain_mara.demo import AGENT_FOLDER, MODEL_FOLDER
from langchain_mara.exceptions import PromptError
from langchain_mara.loading import AgentSource, load_agent, load_model
from langchain_mara.options import DecodingFields, DecodingOptions, options_error, refuse_unknown
from langchain_mara.policy import PolicyModel
from langchain_mara.requests import Decision, Request
from langchain_mara.stopping import Stop, as_list
from langchain_mara.templates import encode_messages, encode_text, eos_token_ids


class MaraLLM(BaseLLM, DecodingFields):
    """A local Hugging Face model whose tokens an agent accepts or rejects while it generates.

    Setup:
        `pip install "langchain-mara[training]"`. A CUDA GPU is used where there is one.

    Key init args, decoding:
        top_k, top_p: Candidate set of a position (the paper's 40 and 0.95).
        accept_threshold: Accept probability a candidate must exceed.
        strategy, order, fallback, accept_action, temperature, seed: See `DecodingOptions`.
        max_new_tokens, min_new_tokens: Length of the answer, in tokens.
        stop: Strings that end the answer and are cut off it.

    Key init args, model:
        model, tokenizer: A loaded `AutoModelForCausalLM` and its tokenizer.
        agent: A `MaraAgent`; None decodes plainly, through the same loop.
        use_chat_template: Whether a prompt is put as a user's message into the chat template; by
            default where the tokenizer has one.
        system_prompt: System message before the prompt; needs the chat template.
        batch_size, width: Most prompts, and most siblings of a prompt, in one pass. They change speed
            and memory, never results.

    Instantiate:
        ```python
        from langchain_mara import MaraLLM

        llm = MaraLLM.demo()  # embedded model and agent, no download
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
        AgentMismatchError: If the agent reads states of another size than the model gives.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: PreTrainedModel = Field(exclude=True, repr=False)
    tokenizer: PreTrainedTokenizerBase = Field(exclude=True, repr=False)
    agent: MaraAgent | None = Field(default=None, exclude=True, repr=False)
    model_id: str = ""
    """Name of the model, for tracing and cache keys; by default what the model calls itself."""
    use_chat_template: bool | None = None
    system_prompt: str | None = None
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    batch_size: int = Field(default=DEFAULT_BATCH_SIZE, ge=1)
    width: int = Field(default=DEFAULT_WIDTH, ge=1)

    def __init__(self, **kwargs: Any) -> None:
        try:
            super().__init__(**kwargs)
        except ValidationError as error:
            raise options_error(error, type(self).model_fields) from None
        if not self.model_id:
            self.model_id = str(self.model.name_or_path) or type(self.model).__name__
        if self.use_chat_template is None:
            self.use_chat_template = self.tokenizer.chat_template is not None
        if self.system_prompt is not None and not self.use_chat_template:
            raise PromptError("system_prompt needs a chat template, and this model is prompted with plain text.")
        policy = PolicyModel(self.model)
        if self.agent is not None:
            self.agent.check_fits(policy.hidden_size, policy.name)

    @classmethod
    def from_model_id(
        cls,
        model_id: str | Path,
        *,
        agent: AgentSource | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | dict[str, Any] | None = None,
        revision: str | None = None,
        quantization_config: Any = None,
        attn_implementation: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Loads model, tokenizer and agent by name.

        Args:
            model_id: Hub id or folder of the policy model.
            agent: A `MaraAgent`, a folder, a hub id, a reference `.pth`, or `repo:file` on the hub.
            device: Such as `cuda` or `cpu`; by default CUDA where there is one.
            dtype: By default the checkpoint's own (float32 for float16 checkpoints on the CPU).
            device_map: Accelerate's placement, instead of `device`.
            revision: Branch, tag or commit on the hub.
            quantization_config: As transformers takes it.
            attn_implementation: `sdpa` or `eager`.
            token: Hub token for gated models.
            local_files_only: Never touch the network.
            **kwargs: Other fields of this class.

        Raises:
            LoadingError: If the device is unknown or the model cannot be loaded.
            CheckpointError: If there is no valid agent.
            OptionsError: If an argument is unknown or out of range.
        """
        # A typing error should not cost a model's loading time.
        options = {name: kwargs[name] for name in DecodingOptions.model_fields if name in kwargs}
        DecodingOptions.parse(**options)
        settable = set(cls.model_fields) - {"model", "tokenizer"}
        refuse_unknown(kwargs, settable, {*settable, *inspect.signature(cls.from_model_id).parameters})
        loaded_agent = load_agent(agent)
        model, tokenizer = load_model(
            model_id,
            device=device,
            dtype=dtype,
            device_map=device_map,
            revision=revision,
            quantization_config=quantization_config,
            attn_implementation=attn_implementation,
            token=token,
            local_files_only=local_files_only,
        )
        return cls(model=model, tokenizer=tokenizer, agent=loaded_agent, model_id=str(model_id), **kwargs)

    @classmethod
    def demo(cls, **kwargs: Any) -> Self:
        """The embedded demonstration model with its agent: no download, and no use beyond trying things.

        Args:
            **kwargs: As for `from_model_id`; `agent=None` is the model without alignment.
        """
        values = {"agent": AGENT_FOLDER, "dtype": torch.float32, "local_files_only": True, **kwargs}
        return cls.from_model_id(MODEL_FOLDER, **values)

    def with_agent(self, agent: AgentSource | None) -> Self:
        """A new instance on the same loaded model, with another agent (as for `from_model_id`) or with none."""
        return self._configured({"agent": agent})

    def _configured(self, changes: Mapping[str, Any]) -> Self:
        """The same loaded model with other settings; this instance where there are none."""
        if not changes:
            return self
        settable = set(type(self).model_fields) - set(BaseLLM.model_fields) - {"model", "tokenizer", "model_id"}
        refuse_unknown(changes, settable, settable)
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        agent = load_agent(changes.get("agent", self.agent))
        return type(self)(**{**fields, **changes, "agent": agent})

    def trace(self, prompts: list[str], **kwargs: Any) -> list[list[tuple[Decision, str]]]:
        """Answers prompts together and tells what was decided at every token.

        Args:
            prompts: As for `batch`.
            **kwargs: `stop`, `agent` and any decoding option, for this call.

        Returns:
            For each prompt its decisions in order, each with the text it released.
        """
        llm = self._configured(kwargs)
        completions = [llm._completion(prompt, None) for prompt in prompts]  # noqa: SLF001
        traces: dict[Completion, list[tuple[Decision, str]]] = {one: [] for one in completions}
        for completion, decision, text in llm._complete(completions):  # noqa: SLF001
            traces[completion].append((decision, text))
        return list(traces.values())

    # LangChain's cache key holds the instance's parameters and the call's stop, but nothing else of the call:
    # a call with other arguments is therefore a call to an instance configured with them.
    @override
    def generate(self, prompts: list[str], stop: Stop = None, *args: Any, **kwargs: Any) -> LLMResult:
        known, changes = _split(kwargs)
        return BaseLLM.generate(self._configured(changes), prompts, as_list(stop), *args, **known)

    @override
    async def agenerate(self, prompts: list[str], stop: Stop = None, *args: Any, **kwargs: Any) -> LLMResult:
        known, changes = _split(kwargs)
        return await BaseLLM.agenerate(self._configured(changes), prompts, as_list(stop), *args, **known)

    @property
    def _llm_type(self) -> str:
        return "mara"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "model_id": self.model_id,
            "agent": None if self.agent is None else self.agent.fingerprint,
            "use_chat_template": self.use_chat_template,
            "system_prompt": self.system_prompt,
            "default_stop": self.stop,  # LangChain puts the call's under "stop"
            **self._options().model_dump(),
        }

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        llm = self._configured(kwargs)
        completions = [llm._completion(prompt, stop) for prompt in prompts]  # noqa: SLF001
        for completion, _, text in llm._complete(completions):  # noqa: SLF001
            # LangChain hands over the first prompt's manager only.
            if run_manager is not None and completion is completions[0] and text:
                run_manager.on_llm_new_token(text)
        return LLMResult(
            generations=[[Generation(text=one.transcript.text, generation_info=one.info)] for one in completions],
            llm_output={"token_usage": token_usage(completions), "model_name": self.model_id},
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        llm = self._configured(kwargs)
        completion = llm._completion(prompt, stop)  # noqa: SLF001
        for _, _, text in llm._complete([completion]):  # noqa: SLF001
            last = completion.finish_reason is not None
            if not text and not last:
                continue
            chunk = GenerationChunk(text=text, generation_info=completion.info if last else None)
            if run_manager is not None:
                run_manager.on_llm_new_token(text, chunk=chunk)
            yield chunk

    def _complete(self, completions: list[Completion]) -> Iterator[tuple[Completion, Decision, str]]:
        return complete(PolicyModel(self.model), completions, batch_size=self.batch_size, width=self.width)

    def _completion(self, prompt: str, stop: Stop) -> Completion:
        eos = eos_token_ids(self.model, self.tokenizer)
        request = Request(self._encode(prompt), self._options(), self.agent, eos)
        return Completion.of(request, self.tokenizer, as_list(self.stop if stop is None else stop) or ())

    def _encode(self, prompt: str) -> list[int]:
        if not self.use_chat_template:
            return encode_text(self.tokenizer, prompt)
        messages = [("system", self.system_prompt), ("user", prompt)]
        return encode_messages(self.tokenizer, [{"role": r, "content": c} for r, c in messages if c is not None])

    def _options(self) -> DecodingOptions:
        return DecodingOptions.parse(**{name: getattr(self, name) for name in DecodingOptions.model_fields})

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of the text by the model's own tokenizer, without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


def _split(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """LangChain's own arguments of `generate`, and ours."""
    langchain = set(inspect.signature(BaseLLM.generate).parameters)
    known = {name: value for name, value in kwargs.items() if name in langchain}
    return known, {name: value for name, value in kwargs.items() if name not in langchain}

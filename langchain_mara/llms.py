"""MaraLLM: a LangChain LLM that runs a local model with accept/reject decoding."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict, Field, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara.agent import MaraAgent
from langchain_mara.completions import Completion, complete
from langchain_mara.decoding import DEFAULT_BATCH_SIZE, DEFAULT_WIDTH
from langchain_mara.demo import AGENT_FOLDER, MODEL_FOLDER
from langchain_mara.exceptions import PromptError
from langchain_mara.loading import AgentSource, load_agent, load_model
from langchain_mara.options import DecodingFields, DecodingOptions, options_error
from langchain_mara.policy import PolicyModel
from langchain_mara.requests import Decision, Request
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
    stop: list[str] | None = None
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
            raise PromptError(
                "system_prompt needs a chat template, and this model is prompted with plain text."
            )
        policy = self._policy()
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
        own = {name: value for name, value in kwargs.items() if name not in cls.model_fields}
        options = {name: kwargs[name] for name in DecodingOptions.model_fields if name in kwargs}
        DecodingOptions.parse(**own, **options)
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
        """The same loaded model with another agent, or with none.

        Args:
            agent: As for `from_model_id`.

        Returns:
            A new instance; model and tokenizer are shared.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, "agent": load_agent(agent)})

    def trace(self, prompts: list[str], **kwargs: Any) -> list[list[tuple[Decision, str]]]:
        """Answers prompts together and tells what was decided at every token.

        Args:
            prompts: As for `batch`.
            **kwargs: `stop`, `agent` and any decoding option, for this call.

        Returns:
            For each prompt its decisions in order, each with the text it released.
        """
        stop = kwargs.pop("stop", None)
        completions = [self._completion(prompt, stop, kwargs) for prompt in prompts]
        traces: dict[Completion, list[tuple[Decision, str]]] = {one: [] for one in completions}
        for completion, decision, text in self._complete(completions):
            traces[completion].append((decision, text))
        return list(traces.values())

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
            "stop": self.stop,
            **self._options().model_dump(),
        }

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        completions = [self._completion(prompt, stop, kwargs) for prompt in prompts]
        for completion, _, text in self._complete(completions):
            # LangChain hands over the first prompt's manager only.
            if run_manager is not None and completion is completions[0] and text:
                run_manager.on_llm_new_token(text)
        return LLMResult(
            generations=[
                [Generation(text=one.transcript.text, generation_info=_info(one))] for one in completions
            ],
            llm_output={"token_usage": _usage(completions), "model_name": self.model_id},
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        completion = self._completion(prompt, stop, kwargs)
        for _, _, text in self._complete([completion]):
            last = completion.finish_reason is not None
            if not text and not last:
                continue
            chunk = GenerationChunk(text=text, generation_info=_info(completion) if last else None)
            if run_manager is not None:
                run_manager.on_llm_new_token(text, chunk=chunk)
            yield chunk

    def _complete(self, completions: list[Completion]) -> Iterator[tuple[Completion, Decision, str]]:
        return complete(self._policy(), completions, batch_size=self.batch_size, width=self.width)

    def _completion(self, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]) -> Completion:
        agent = load_agent(kwargs["agent"]) if "agent" in kwargs else self.agent
        request = Request(
            self._encode(prompt),
            self._options(**{name: value for name, value in kwargs.items() if name != "agent"}),
            agent,
            eos_token_ids(self.model, self.tokenizer),
        )
        return Completion.of(request, self.tokenizer, (self.stop if stop is None else stop) or ())

    def _encode(self, prompt: str) -> list[int]:
        if not self.use_chat_template:
            return encode_text(self.tokenizer, prompt)
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return encode_messages(self.tokenizer, [*system, {"role": "user", "content": prompt}])

    def _options(self, **overrides: Any) -> DecodingOptions:
        fields = {name: getattr(self, name) for name in DecodingOptions.model_fields}
        return DecodingOptions.parse(**{**fields, **overrides})

    def _policy(self) -> PolicyModel:
        return PolicyModel(self.model)

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of the text by the model's own tokenizer, without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


def _info(completion: Completion) -> dict[str, Any]:
    return {"finish_reason": completion.finish_reason, "decisions": completion.statistics.as_info()}


def _usage(completions: list[Completion]) -> dict[str, int]:
    prompt = sum(len(completion.request.prompt_ids) for completion in completions)
    answer = sum(completion.statistics.tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

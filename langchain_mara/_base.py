"""LocalModel: a loaded model with its agent and settings, what MaraLLM and ChatMara have in common."""

import hashlib
import inspect
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

import torch
from langchain_core.language_models import LangSmithParams
from pydantic import ConfigDict, Field, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.request import Request
from langchain_mara.exceptions import OptionsError
from langchain_mara.loading.models import (
    DEMO_AGENT_FOLDER,
    DEMO_MODEL_FOLDER,
    AgentSource,
    load_agent,
    load_model,
    load_model_once,
)
from langchain_mara.options import (
    BATCH_DEFAULTS,
    DEFAULT_QUEUE_SIZE,
    BatchConfig,
    DecodingFields,
    DecodingOptions,
    canonical,
    options_error,
    refuse_unknown,
)
from langchain_mara.policy.loaded_model import LoadedModel, model_fingerprint
from langchain_mara.policy.model import PolicyModel
from langchain_mara.policy.packed_linear import is_packed
from langchain_mara.policy.verification import verify_siblings
from langchain_mara.serving.completion import Completion, CompletionDelta, GenerationJob, complete
from langchain_mara.text.chat_template import eos_token_ids
from langchain_mara.text.detokenizer import IncrementalDetokenizer, Stop, as_list
from langchain_mara.tracing.trace import Trace


class LocalModel(DecodingFields):
    """Fields and loading of the LangChain classes; instances on one loaded model share its running batch."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: PreTrainedModel = Field(exclude=True, repr=False)
    tokenizer: PreTrainedTokenizerBase = Field(exclude=True, repr=False)
    agent: MaraAgent | None = Field(default=None, exclude=True, repr=False)
    model_id: str = ""
    """Name of the model, for tracing; by default what the model calls itself."""
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """Strings that end the answer and are cut off it; a call's `stop` replaces them."""
    n: int = Field(default=1, ge=1)
    """Answers per prompt, drawn with `seed`, `seed + 1`, …"""
    include_accept_probabilities: bool = False
    """Whether generation info holds, for each token, the accept probabilities of its candidates examined."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds until a call must be answered, waiting for a free row included."""
    batch_size: int = Field(default=BATCH_DEFAULTS.batch_size, ge=1)
    """Most prompts in one pass; calls that agree on all that changes speed alone share passes."""
    width: int | None = Field(default=BATCH_DEFAULTS.width, ge=1)
    """Most siblings of a prompt in one pass; by default chosen pass by pass, by what passes cost on this device and how
    early the agent accepts, both measured. A fixed width repeats the same rounding from run to run."""
    draft: int = Field(default=BATCH_DEFAULTS.draft, ge=0)
    """Most tokens of an answer drafted ahead in one pass, by looking up in prompt and answer what followed the last
    tokens before. Faster where answers repeat their prompts (edits, summaries, code); 0 drafts none."""
    compile: bool = BATCH_DEFAULTS.compile
    """Whether passes over siblings run as compiled graphs: on CUDA recorded and replayed, which pays where launching a
    small model's kernels takes longer than they do. The first passes of each shape take many seconds."""
    prefix_memory: int = Field(default=BATCH_DEFAULTS.prefix_memory, ge=0)
    """Bytes of keys and values kept on the model's device for prompts that begin like earlier ones."""
    queue_size: int = Field(default=DEFAULT_QUEUE_SIZE, ge=1)
    """A call is refused while as many prompts wait for this model."""

    _fixed: ClassVar[frozenset[str]] = frozenset({"model", "tokenizer", "model_id"})
    """Fields that a call cannot change."""

    def __init__(self, **kwargs: Any) -> None:
        try:
            super().__init__(**canonical(kwargs))
        except ValidationError as error:
            raise options_error(error, type(self).model_fields) from None
        if not self.model_id:
            self.model_id = str(self.model.name_or_path) or type(self.model).__name__
        policy = PolicyModel(self.model)
        verify_siblings(policy)
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
        packed: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Loads model, tokenizer and agent by name.

        Args:
            model_id: Hub id or folder of the policy model, or of a PEFT adapter that changes it.
            agent: A `MaraAgent`, a folder, a hub id, a reference `.pth`, or `repo:file` on the hub.
            device: Such as `cuda` or `cpu`; by default CUDA where there is one.
            dtype: By default the checkpoint's own (float32 for float16 checkpoints on the CPU).
            device_map: Accelerate's placement, instead of `device`.
            revision: Branch, tag or commit on the hub.
            quantization_config: As transformers takes it.
            attn_implementation: `sdpa` or `eager`.
            token: Hub token for gated models.
            local_files_only: Never touch the network.
            packed: Whether the weights of linear layers are laid out as the CPU's matrix products read them: about
                twice as fast, at the price of a second copy of the embedding where the head shares it. The model's
                linear layers are replaced, so say False where you want to train or change the model itself.
                On other devices, for quantized models and with `compile=True` nothing is changed.
            **kwargs: Other fields of this class.

        Raises:
            LoadingError: If the device is unknown or the model cannot be loaded.
            CheckpointError: If there is no valid agent.
            OptionsError: If an argument is unknown or out of range.
        """
        # A typing error should not cost a model's loading time.
        kwargs = canonical(kwargs)
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
            packed=packed and not kwargs.get("compile"),
        )
        return cls(model=model, tokenizer=tokenizer, agent=loaded_agent, model_id=str(model_id), **kwargs)

    @classmethod
    def demo(cls, **kwargs: Any) -> Self:
        """The embedded demonstration model with its agent: no download, and no use beyond trying things.

        Args:
            **kwargs: As for `from_model_id`; `agent=None` is the model without alignment.
        """
        values = {"agent": DEMO_AGENT_FOLDER, "dtype": torch.float32, "local_files_only": True, **kwargs}
        return cls.from_model_id(DEMO_MODEL_FOLDER, **values)

    def with_agent(self, agent: AgentSource | None) -> Self:
        """A new instance on the same loaded model, with another agent (as for `from_model_id`) or with none."""
        return self._configured({"agent": agent})

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of the text by the model's own tokenizer, without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _configured(self, changes: Mapping[str, Any]) -> Self:
        """The same loaded model with other settings; this instance where there are none."""
        if not changes:
            return self
        changes = canonical(changes)
        settable = set(type(self).model_fields) - self._fixed
        refuse_unknown(changes, settable, settable)
        return self._copied({**changes, "agent": load_agent(changes.get("agent", self.agent))})

    def _on_model(self, model_id: str | None, changes: Mapping[str, Any], revision: str | None = None) -> Self:
        """Another model with these settings, loaded to the same device; the same model where none is named.

        It is loaded with the token of this model and, like it, with or without the network.

        Args:
            model_id: Hub id or folder.
            changes: Fields to set otherwise.
            revision: Branch, tag or commit of the other model on the hub.
        """
        if model_id in (None, self.model_id):
            return self._configured(changes)
        # The agent must fit the other model, and may be among the changes.
        chosen = self._configured({"agent": None, **changes})
        placement = (self.model.device, self.model.dtype, is_packed(self.model))
        hub = {**LoadedModel.of(self.model).hub_options, "revision": revision}
        model, tokenizer = load_model_once(str(model_id), *placement, **hub)
        agent = chosen.agent if "agent" in changes else self.agent
        loaded = {"model": model, "tokenizer": tokenizer, "model_id": model_id, "agent": agent}
        return chosen._copied(loaded)  # noqa: SLF001

    def _shared_with(self, kind: type["LocalModel"]) -> dict[str, Any]:
        """The fields that another class of local models has, too: loaded model, agent and settings."""
        return {name: getattr(self, name) for name in set(type(self).model_fields) & set(kind.model_fields)}

    def _copied(self, changes: Mapping[str, Any]) -> Self:
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def _completions(self, prompt_ids: Sequence[int], stop: Stop, markers: Sequence[str] = ()) -> list[Completion]:
        """The `n` answers to a prompt, not begun; `markers` are special tokens that stay in their text."""
        options = self._options()
        strings = as_list(self.stop if stop is None else stop) or ()
        eos = eos_token_ids(self.model, self.tokenizer)
        return [
            Completion(
                Request(prompt_ids, options.model_copy(update={"seed": options.seed + i}), self.agent, eos),
                IncrementalDetokenizer(self.tokenizer, strings, markers),
                accept_probabilities=[] if self.include_accept_probabilities else None,
            )
            for i in range(self.n)
        ]

    def _work(self, completions: Sequence[Completion]) -> GenerationJob:
        pace = BatchConfig(self.batch_size, self.width, self.prefix_memory, self.draft, self.compile)
        return GenerationJob(
            PolicyModel(self.model, compile=self.compile), completions, pace, self.queue_size, self.timeout
        )

    def _traces(self, prompts: Sequence[Any], completions: Sequence[Completion]) -> list[Trace]:
        """Drains `n` completions of every prompt."""
        pieces: dict[Completion, list[CompletionDelta]] = {one: [] for one in completions}
        for piece in complete(self._work(completions)):
            pieces[piece.completion].append(piece)
        asked = (prompt for prompt in prompts for _ in range(self.n))
        return [
            Trace(prompt, [(piece.decision, piece.text) for piece in own], self.tokenizer)
            for prompt, own in zip(asked, pieces.values(), strict=True)
        ]

    def _options(self) -> DecodingOptions:
        options = DecodingOptions.parse(**{name: getattr(self, name) for name in DecodingOptions.model_fields})
        drawn = (options.order == "sampled" and options.temperature > 0) or options.strategy in ("random", "sampled")
        if self.n > 1 and not drawn:
            raise OptionsError(
                f"n={self.n} asks for different answers, but order={options.order!r} with "
                f"strategy={options.strategy!r} always gives the same one. Set order='sampled'."
            )
        return options

    def _concurrent(self, config: Any) -> Any:
        """LangChain's configuration of a batch, with as many threads waiting for answers as there are rows."""
        if isinstance(config, Sequence):
            return [self._concurrent(one) for one in config]
        config = config or {}
        return {**config, "max_concurrency": config.get("max_concurrency") or self.batch_size}

    def _identity(self) -> dict[str, Any]:
        """Everything an answer depends on but the prompt: the cache key."""
        template = self.tokenizer.chat_template
        return {
            "model_id": self.model_id,
            "model": model_fingerprint(self.model),
            "agent": None if self.agent is None else self.agent.fingerprint,
            "chat_template": None if template is None else hashlib.sha256(repr(template).encode()).hexdigest()[:16],
            "default_stop": self.stop,  # LangChain puts the call's under "stop"
            "n": self.n,
            "include_accept_probabilities": self.include_accept_probabilities,
            **self._options().model_dump(),
        }

    def _langsmith_params(self, model_type: Literal["llm", "chat"], stop: Stop) -> LangSmithParams:
        """LangSmith's standard parameters."""
        return LangSmithParams(
            ls_provider="mara",
            ls_model_name=self.model_id,
            ls_model_type=model_type,
            ls_max_tokens=self.max_new_tokens,
            ls_temperature=self.temperature if self.order == "sampled" else 0.0,
            ls_stop=as_list(self.stop if stop is None else stop),
        )

    def __copy__(self) -> Self:
        return self._copied({})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # Weights are frozen: a deep copy with its own would double the memory and lose the running batch.
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise pickle.PicklingError(
            f"{type(self).__name__} holds a loaded model and cannot be pickled. Send the model's name and the "
            f"settings instead, and call {type(self).__name__}.from_model_id in the other process."
        )

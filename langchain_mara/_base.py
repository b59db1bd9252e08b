"""LocalModel: a loaded model with its agent and settings, the common base of MaraLLM and ChatMara."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from langchain_core.language_models import LangSmithParams
from pydantic import ConfigDict, Field, ValidationError
from transformers import PreTrainedTokenizerBase

from langchain_mara.agents.base import Agent
from langchain_mara.agents.recommended_options import changed_options
from langchain_mara.exceptions import OptionsError
from langchain_mara.loading.constructors import Constructors
from langchain_mara.loading.models import AgentSource, LoadedModelField, load_agent, load_model_once
from langchain_mara.options import (
    DEFAULT_QUEUE_SIZE,
    BatchConfig,
    BatchFields,
    DecodingFields,
    DecodingOptions,
    canonical,
    options_error,
    refuse_unknown,
    warn_of_no_effect,
)
from langchain_mara.policy.fingerprints import config_digest, settings_digest
from langchain_mara.policy.loaded_model import LoadedModel, model_fingerprint
from langchain_mara.policy.packed_linear import is_packed
from langchain_mara.policy.verification import policy_of, verify_siblings
from langchain_mara.serving.beginning import begin
from langchain_mara.serving.completion import Completion, GenerationJob
from langchain_mara.serving.recording import record
from langchain_mara.serving.scheduler import refuse_large
from langchain_mara.serving.settings import IDENTIFYING, AnswerFields
from langchain_mara.text.detokenizer import Stop, as_list
from langchain_mara.text.own_tokenizer import encode, tokenizer_fingerprint
from langchain_mara.tracing.trace import Trace

PROVIDER = "mara"
"""Who answers, in LangChain's words."""


class LocalModel(Constructors, AnswerFields, BatchFields, DecodingFields):
    """Fields and loading of the LangChain classes. Instances on the same loaded model share its running batch."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: LoadedModelField = Field(exclude=True, repr=False)
    tokenizer: PreTrainedTokenizerBase = Field(exclude=True, repr=False)
    agent: Agent | None = Field(default=None, exclude=True, repr=False)
    model_id: str = ""
    """Name of the model, for tracing; by default the model's own name."""
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """Strings that end the answer and are not part of it. The `stop` of a call replaces them."""
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    """Tokens that end the answer and are not part of it, besides the EOS."""
    n: int = Field(default=1, ge=1)
    """Answers per prompt, drawn with `seed`, `seed + 1`, …"""
    include_accept_probabilities: bool = False
    """Whether the generation info contains the accept probabilities of the candidates examined for each token."""
    allow_other_model: bool = False
    """Whether an agent may judge another model of the same hidden size than it was trained on, as in the paper's
    transfer. Another quantization of its own model is always allowed."""
    timeout: float | None = Field(default=None, gt=0, le=10**9)
    """Most seconds that a call may take, including the time it waits for its turn."""
    queue_size: int = Field(default=DEFAULT_QUEUE_SIZE, ge=1)
    """Most prompts that may wait for the model. While as many wait, further calls are refused."""

    _fixed: ClassVar[frozenset[str]] = frozenset({"model", "tokenizer", "model_id"})
    """Fields that a call cannot change."""

    def __init__(self, *, _given: Iterable[str] | None = None, **kwargs: Any) -> None:
        kwargs = canonical(kwargs)
        if isinstance(agent := kwargs.get("agent"), Agent):
            kwargs = {**agent.recommended_options, **kwargs}
        try:
            super().__init__(**kwargs)
        except ValidationError as error:
            raise options_error(error, type(self).model_fields) from None
        warn_of_no_effect(self, kwargs if _given is None else _given)
        if not self.model_id:
            self.model_id = str(self.model.name_or_path) or type(self.model).__name__
        policy = policy_of(self.model)
        verify_siblings(policy)
        if self.agent is not None:
            embeddings: Any = None if self.allow_other_model else self.model.get_input_embeddings()
            self.agent.check_fits(policy.hidden_size, policy.name, getattr(embeddings, "weight", None))

    def with_agent(self, agent: AgentSource | None) -> Self:
        """A new instance on the same loaded model with another agent, as `from_model_id` takes it, or without one."""
        return self._configured({"agent": agent})

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text by the model's tokenizer, without special tokens."""
        return encode(self.tokenizer, text)

    def _configured(self, changes: Mapping[str, Any], stop: Stop = None, *, quiet: bool = False) -> Self:
        """An instance on the same model with other settings, if any. A call's `stop` must not come under two names.

        Args:
            changes: Fields to change.
            stop: The `stop` of a call.
            quiet: Whether not to warn of options that have no effect, because another instance of the call does.
        """
        if not changes:
            return self
        changes = self._checked(changes, stop)
        agent = load_agent(changes.get("agent", self.agent), **LoadedModel.of(self.model).hub_options)
        return self._copied({**self._with(agent, changes), **({"_given": ()} if quiet else {})})

    def _with(self, agent: Agent | None, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Changes together with the options that change with the agent."""
        before, after = ({} if each is None else each.recommended_options for each in (self.agent, agent))
        # Options that change with the agent are nobody's wish, so nobody is warned of them.
        return {**changed_options(self, before, after), **changes, "agent": agent, "_given": changes}

    def _checked(self, changes: Mapping[str, Any], stop: Stop = None) -> dict[str, Any]:
        """Changes under their canonical names; unknown ones and options out of range are refused."""
        canonical({**changes, **({} if stop is None else {"stop": stop})})
        changes = canonical(changes, self.order)
        settable = set(type(self).model_fields) - self._fixed
        refuse_unknown(changes, settable, settable)
        DecodingOptions.parse(**{name: changes[name] for name in DecodingOptions.model_fields if name in changes})
        return changes

    def _on_model(
        self, model_id: str | None, changes: Mapping[str, Any], revision: str | None = None, stop: Stop = None
    ) -> Self:
        """An instance on another model, which is loaded to the same device, with these settings.

        The other model is loaded with the `token` and `local_files_only` that this model was loaded with.

        Args:
            model_id: Hub id or folder of the other model; None, or this model's own id, keeps this model.
            changes: Fields to change.
            revision: Branch, tag or commit of the other model on the hub.
            stop: The `stop` of a call.
        """
        if model_id in (None, self.model_id):
            return self._configured(changes, stop)
        placement = (self.model.device, self.model.dtype, is_packed(self.model))
        hub = LoadedModel.of(self.model).hub_options
        # Check changes first: a typo should not cost the time to load a model.
        changes = self._checked(changes, stop)
        agent = load_agent(changes.get("agent", self.agent), **hub)
        model, tokenizer = load_model_once(str(model_id), *placement, **hub, revision=revision)
        return self._copied(
            {**self._with(agent, changes), "model": model, "tokenizer": tokenizer, "model_id": model_id}
        )

    def _shared_with(self, kind: type["LocalModel"]) -> dict[str, Any]:
        """The values of all fields that another class of local models has, too."""
        return {name: getattr(self, name) for name in set(type(self).model_fields) & set(kind.model_fields)}

    def _copied(self, changes: Mapping[str, Any]) -> Self:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{"_given": changes, **fields, **changes})

    def _completions(
        self, prompt_ids: Sequence[int], stop: Stop, markers: Sequence[str] = (), openings: Sequence[str] | None = ()
    ) -> list[Completion]:
        """The `n` completions of a prompt, not begun; `markers` and `openings` are those of `begin`."""
        refuse_large(self.n, self.batch_size + self.queue_size)
        options = self._options()
        seeded = (options.model_copy(update={"seed": options.seed + i}) for i in range(self.n))
        return [begin(self, prompt_ids, each, stop=stop, markers=markers, openings=openings) for each in seeded]

    def _generation_job(self, completions: Sequence[Completion]) -> GenerationJob:
        batch_config = BatchConfig(self.batch_size, self.width, self.prefix_memory, self.draft, self.compile)
        policy = policy_of(self.model, compile=self.compile)
        return GenerationJob(policy, completions, batch_config, self.queue_size, self.timeout)

    def _traces(self, prompts: Sequence[Any], completions: Sequence[Completion]) -> list[Trace]:
        """Runs `n` completions of every prompt and records their decisions."""
        return record(self._generation_job(completions), prompts, self.tokenizer)

    def _options(self) -> DecodingOptions:
        options = DecodingOptions.parse(**{name: getattr(self, name) for name in DecodingOptions.model_fields})
        random = (options.order == "sampled" and options.temperature > 0) or options.strategy in ("random", "sampled")
        if self.n > 1 and not random:
            raise OptionsError(
                f"n={self.n} asks for different answers, but order={options.order!r} with "
                f"strategy={options.strategy!r} always gives the same one. Set order='sampled' or a temperature."
            )
        return options

    def _concurrent(self, config: Any) -> Any:
        """LangChain's configuration of a batch, with as many threads as prompts that run at a time."""
        if isinstance(config, Sequence):
            return [self._concurrent(input_config) for input_config in config]
        config = config or {}
        return {**config, "max_concurrency": config.get("max_concurrency") or self.batch_size}

    def _identity(self) -> dict[str, Any]:
        """Everything except the prompt that an answer depends on; LangChain's cache key."""
        return {
            "model_id": self.model_id,
            "model": model_fingerprint(self.model),
            "generation_config": config_digest(self.model.generation_config),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "agent": None if self.agent is None else f"{self.agent.fingerprint} {settings_digest(self.agent)}",
            "default_stop": self.stop,  # LangChain adds the call's own stop strings as "stop"
            **self.model_dump(include=set(IDENTIFYING)),
            **self._options().model_dump(),
        }

    def _langsmith_params(self, model_type: Literal["llm", "chat"], stop: Stop) -> LangSmithParams:
        return LangSmithParams(
            ls_provider=PROVIDER,
            ls_model_name=self.model_id,
            ls_model_type=model_type,
            ls_max_tokens=self.max_new_tokens,
            ls_temperature=self.temperature if self.order == "sampled" else 0.0,
            ls_stop=as_list(self.stop if stop is None else stop),
        )

"""LoadedModel: everything that lives exactly as long as a loaded language model, in one place."""

import copy
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from langchain_mara.policy.architectures import output_embeddings
from langchain_mara.policy.fingerprints import (
    WeightsFingerprint,
    config_digest,
    model_digest,
    sampled_weights,
    weights_state,
)
from langchain_mara.policy.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from langchain_mara.decoding.pass_width import PassWidthTuner
    from langchain_mara.serving.scheduler import Scheduler

_loaded_models: WeakKeyDictionary[nn.Module, "LoadedModel"] = WeakKeyDictionary()
_creation = threading.Lock()


class _AgentCopy(NamedTuple):
    """A copy of an agent on the model's device, bound to the model if it reads the model's output embeddings.

    Attributes:
        state: Device, `weights_state` of the agent, and that of the model's head if it is bound to it.
        agent: The copy.
    """

    state: tuple[object, ...]
    agent: nn.Module


class LoadedModel:
    """Everything that belongs to a loaded model and is shared by all its users.

    Get it with `LoadedModel.of(model)`. It holds only a weak reference to the model, so it lives as long as the model.

    Attributes:
        lock: Held while a field is created or changed.
        verified: Whether a pass over siblings has been compared with a cache-free evaluation.
        compilable: False once compiling a pass has failed.
        hub_options: `token` and `local_files_only` that the model was loaded with; other models are loaded with them.
        width_tuner: Chooses the number of siblings per pass; set by `PassWidthTuner.of`.
        interrupt: Ends the running pass with an error, where who runs passes can do that; otherwise None.
        scheduler: Queue and decoding thread of the model; set by `Scheduler.of`.
    """

    def __init__(self, model: "PreTrainedModel | nn.Module") -> None:
        self.verified = False
        self.compilable = True
        self.hub_options: Mapping[str, Any] = {}
        self.width_tuner: PassWidthTuner | None = None
        self.interrupt: Callable[[], None] | None = None
        self._model = ref(model)
        self._fingerprint = WeightsFingerprint()
        self._agent_copies: WeakKeyDictionary[nn.Module, _AgentCopy] = WeakKeyDictionary()
        self._training_modules: list[nn.Module] = []
        self.forget_threads()

    def forget_threads(self) -> None:
        """Begins anew with whatever a thread may hold or be writing: a forked process has none of its parent's."""
        self.lock = threading.RLock()
        self.scheduler: Scheduler | None = None
        self._prefix_cache = PrefixCache(0, self._prefix_state)
        self._running_passes = 0

    @staticmethod
    def of(model: "PreTrainedModel | nn.Module") -> "LoadedModel":
        """The `LoadedModel` of a model, created on first use."""
        with _creation:
            loaded = _loaded_models.get(model)
            if loaded is None:
                loaded = _loaded_models[model] = LoadedModel(model)
            return loaded

    @property
    def model(self) -> "PreTrainedModel":
        """The model itself.

        Raises:
            ReferenceError: If the model has been garbage-collected.
        """
        model = self._model()
        if model is None:
            raise ReferenceError("The loaded model is gone. Keep a reference to it as long as you use it.")
        return cast("PreTrainedModel", model)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that depend on the configuration, the settings of all layers, and the weights.

        Of each weight they depend on name, shape, dtype, and a value of every row. The model's name would not do: two
        revisions share it, and so do two states of a folder that is trained.
        """
        model = self.model
        return model_digest(model, self._fingerprint.of(model, sampled_weights(model)))

    def prefix_cache(self, budget: int) -> PrefixCache | None:
        """The prefix cache for a batch, or None if the batch keeps no prefixes.

        On `refresh` it is emptied if weights, settings of layers, or the configuration have changed. Its budget is the
        largest requested so far, so one caller never evicts what another caller keeps.

        Args:
            budget: Most bytes that the batch may keep; 0 leaves the cache as it is.
        """
        if budget <= 0:
            return None
        self._prefix_cache.budget = max(self._prefix_cache.budget, budget)
        return self._prefix_cache

    @property
    def kept_prefixes(self) -> PrefixCache:
        """The prefix cache, whatever its budget."""
        return self._prefix_cache

    def _prefix_state(self) -> tuple[object, ...]:
        return weights_state(self.model), config_digest(self.model.config)

    def agent_on(self, agent: nn.Module, device: torch.device) -> nn.Module:
        """What judges candidates of this model on a device. The user's agent is never moved or changed.

        Args:
            agent: The user's agent.
            device: Device of the states that the agent is to judge.

        Returns:
            The agent itself if it is on the device already, else a copy there. An agent that reads output embeddings
            is bound to those of this model, and a mixture makes its own copy. A copy is kept until weights of the
            agent, or of the head, change.
        """
        reads_head, own_copy = getattr(agent, "judges", "after") == "before", getattr(agent, "on_device", None)
        in_place = all(tensor.device == device for tensor in (*agent.parameters(), *agent.buffers()))
        if in_place and own_copy is None and not reads_head:
            return agent
        head = self.model.get_output_embeddings()
        state = (device, weights_state(agent), weights_state(head) if reads_head else None)
        with self.lock:
            agent_copy = self._agent_copies.get(agent)
            if agent_copy is None or agent_copy.state != state:
                embeddings = output_embeddings(self.model).to(device) if reads_head else None
                agent_copy = self._agent_copies[agent] = _AgentCopy(state, _placed(agent, device, embeddings))
            return agent_copy.agent

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Keeps the model in evaluation mode during a pass.

        If any modules were in training mode, they return to it when the last of the concurrent passes has ended.
        """
        model = self.model
        with self.lock:
            self._running_passes += 1
            # A model in evaluation mode may have modules in training mode.
            training = _modules_in_training(model)
            self._training_modules += training
            for module in training:
                module.training = False
        try:
            yield
        finally:
            with self.lock:
                self._running_passes -= 1
                if not self._running_passes:
                    for module in self._training_modules:
                        module.training = True
                    self._training_modules = []


def _placed(agent: Any, device: torch.device, embeddings: torch.Tensor | None) -> nn.Module:
    """A copy of an agent on a device, bound to output embeddings if there are any."""
    if embeddings is not None:
        return cast("nn.Module", agent.bind(embeddings))
    on_device = getattr(agent, "on_device", None)
    return cast("nn.Module", copy.deepcopy(agent).to(device) if on_device is None else on_device(device))


def _after_fork() -> None:
    global _creation  # noqa: PLW0603 - the parent may hold the old one
    _creation = threading.Lock()
    for loaded in _loaded_models.values():
        loaded.forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _modules_in_training(model: nn.Module) -> list[nn.Module]:
    """The modules in training mode; a shared one may be listed twice."""
    # `modules()` names every module on the way, which costs a tenth of a small model's pass.
    remaining, training = [model], []
    while remaining:
        module = remaining.pop()
        if module.training:
            training.append(module)
        remaining += [child for child in module._modules.values() if child is not None]  # noqa: SLF001
    return training


def model_fingerprint(model: "PreTrainedModel") -> str:
    """The `LoadedModel.fingerprint` of a model."""
    return LoadedModel.of(model).fingerprint

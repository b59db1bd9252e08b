"""LoadedModel: everything that lives exactly as long as a loaded language model, in one place."""

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from transformers import PreTrainedModel

from langchain_mara.policy.fingerprints import WeightsFingerprint, sampled_weights, weights_state
from langchain_mara.policy.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from langchain_mara.decoding.pass_width import PassWidthTuner
    from langchain_mara.serving.scheduler import Scheduler

_loaded_models: WeakKeyDictionary[nn.Module, "LoadedModel"] = WeakKeyDictionary()
_creation = threading.Lock()


class LoadedModel:
    """What belongs to a loaded model and is shared by everyone who uses it.

    `LoadedModel.of(model)` finds it. It holds no strong reference to the model, so it goes when the model goes.

    Attributes:
        lock: Held while a field is created or changed.
        verified: Whether a pass over siblings was compared with an evaluation without cache.
        compilable: Whether passes can be compiled, as far as is known.
        hub_options: `token` and `local_files_only` with which the model was loaded, for loading another one alike.
        width_tuner: Chooses the siblings per pass; set by `PassWidthTuner.of`.
        scheduler: Queue and decoding thread; set by `Scheduler.of`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.lock = threading.RLock()
        self.verified = False
        self.compilable = True
        self.hub_options: Mapping[str, Any] = {}
        self.width_tuner: PassWidthTuner | None = None
        self.scheduler: Scheduler | None = None
        self._model = ref(model)
        self._fingerprint = WeightsFingerprint()
        self._prefix_cache = PrefixCache(budget=0)
        self._prefix_weights = (0, 0)
        self._agent_copies: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], nn.Module]] = WeakKeyDictionary()
        self._running_passes = 0
        self._trained_modules: list[nn.Module] = []

    @staticmethod
    def of(model: PreTrainedModel) -> "LoadedModel":
        """The owner of what belongs to a model; created when it is first asked for."""
        with _creation:
            loaded = _loaded_models.get(model)
            if loaded is None:
                loaded = _loaded_models[model] = LoadedModel(model)
            return loaded

    @property
    def model(self) -> PreTrainedModel:
        """The model itself.

        Raises:
            ReferenceError: If it is gone.
        """
        model = self._model()
        if model is None:
            raise ReferenceError("The loaded model is gone. Keep a reference to it as long as you use it.")
        return model

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that tell policy models apart: names, shapes, dtypes, and 64 values per weight.

        Names alone would not do: two revisions, or a folder trained further, share theirs.
        """
        model = self.model
        return self._fingerprint.of(model, sampled_weights(model))

    def prefix_cache(self, budget: int) -> PrefixCache | None:
        """The prefix cache for a batch; None where the batch keeps nothing.

        Changed weights empty it. The largest budget asked for so far counts, so that one caller's settings never take
        away what other callers keep.

        Args:
            budget: Most bytes that the batch wants to keep; 0 leaves the cache alone.
        """
        if budget <= 0:
            return None
        weights = weights_state(self.model)
        if weights != self._prefix_weights:
            self._prefix_cache.clear()
            self._prefix_weights = weights
        self._prefix_cache.budget = max(self._prefix_cache.budget, budget)
        return self._prefix_cache

    def agent_on(self, agent: nn.Module, device: torch.device) -> nn.Module:
        """An agent on a device: itself if it is there already, else a copy, because the agent is its owner's.

        Args:
            agent: Anybody's; it is not moved.
            device: Where states are.

        Returns:
            The agent, or the copy that is kept until the agent's weights change.
        """
        if all(tensor.device == device for tensor in (*agent.parameters(), *agent.buffers())):
            return agent
        state = weights_state(agent)
        with self.lock:
            known = self._agent_copies.get(agent)
            if known is None or known[0] != state:
                known = self._agent_copies[agent] = state, copy.deepcopy(agent).to(device)
            return known[1]

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Keeps the model in evaluation mode for a pass.

        A model in training mode gets its modes back when the last of the passes that run at the same time has ended.
        """
        with self.lock:
            self._running_passes += 1
            model = self.model
            if model.training:
                self._trained_modules += [module for module in model.modules() if module.training]
                model.eval()
        try:
            yield
        finally:
            with self.lock:
                self._running_passes -= 1
                if not self._running_passes:
                    for module in self._trained_modules:
                        module.training = True
                    self._trained_modules = []


def model_fingerprint(model: PreTrainedModel) -> str:
    """`LoadedModel.fingerprint` of a model."""
    return LoadedModel.of(model).fingerprint

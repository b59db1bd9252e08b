"""Workers that play the episodes of reinforcement learning: this process, or Ray processes.

A Ray worker keeps only its own copy of the policy model. Each round, it receives the prompts, the seeds and the agent's
weights. If it dies, a new worker plays the same round again, so nothing is lost and the result does not change.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_mara import MaraLLM
from langchain_mara._base import LocalModel
from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara.policy.loaded_model import model_fingerprint
from langchain_mara.policy.packed_linear import is_packed
from langchain_mara.serving.ray_runtime import import_ray, require_resources, start_ray
from langchain_mara_training.fitting.networks import AgentKind, make_agent_of
from langchain_mara_training.generation.costs import count_passes
from langchain_mara_training.generation.generate import GeneratedAnswer
from langchain_mara_training.generation.states import columns_of
from langchain_mara_training.reinforcement.environment import Steps, take_steps
from langchain_mara_training.reinforcement.penalties import EnvironmentOptions

_RETRIES = 3  # how often a round is played again after its worker died

Weights = Mapping[str, Tensor]
AgentShape = tuple[AgentKind, int, int, int | None]
"""Kind, columns that the agent reads, width, and rank."""


class PlayedRound(NamedTuple):
    """The result of a round.

    Attributes:
        steps: Steps of each prompt's episode.
        passes: Passes of the policy model, summed over all workers.
    """

    steps: list[Steps]
    passes: int


class RolloutWorkers(Protocol):
    """Workers that play episodes.

    Attributes:
        plays_ahead: Whether a round is played while the learner learns from the one before.
    """

    plays_ahead: bool

    def begin(self, prompts: Sequence[list[int]], seeds: Sequence[int], weights: Weights) -> Callable[[], PlayedRound]:
        """Begins a round and returns a function that waits for its result.

        Args:
            prompts: Token ids of each episode's prompt.
            seeds: Seed of each episode.
            weights: Weights of the agent to play with; the caller may change them once this returns.
        """

    def close(self) -> None:
        """Releases the workers."""


class InProcessWorkers:
    """Plays in this process, when the result is asked for.

    Args:
        llm: Policy model and decoding options. Its agent is the one in training; it plays with its current weights.
        options: How episodes are played.
        batch_size: Largest number of episodes at the same time.
    """

    plays_ahead = False

    def __init__(self, llm: MaraLLM, options: EnvironmentOptions, batch_size: int) -> None:
        self.llm, self.options, self.batch_size = llm, options, batch_size

    def begin(self, prompts: Sequence[list[int]], seeds: Sequence[int], weights: Weights) -> Callable[[], PlayedRound]:  # noqa: ARG002
        """See `RolloutWorkers.begin`."""
        return partial(_play, self.llm, prompts, seeds, self.options, self.batch_size)

    def close(self) -> None:
        """Nothing to release."""


class RayWorkers:
    """Ray workers. Each loads its own copy of the policy model, by the name of the LLM's model.

    If Ray is already running, it is used. Otherwise it is started on this machine, and `close` stops it.

    Args:
        llm: LLM whose model and decoding options the workers use.
        options: How episodes are played.
        workers: Number of workers.
        resources: Resources of each worker, as Ray's `options` takes them; by default one CPU, and one GPU if the LLM
            is on a GPU.

    Raises:
        OptionsError: If Ray is not installed, or does not have the resources.
        TrainingError: If the model that the workers load by its name is not the LLM's model.
    """

    plays_ahead = True

    def __init__(
        self, llm: MaraLLM, options: EnvironmentOptions, workers: int, resources: Mapping[str, Any] | None = None
    ) -> None:
        self.ray = import_ray("Workers need", "Or set workers=0.")
        self._started = start_ray(self.ray, workers)
        needs = {"num_cpus": 1, "num_gpus": int(llm.model.device.type == "cuda"), **(resources or {})}
        self._require(workers, needs)
        actor = self.ray.remote(_Worker).options(**needs, max_restarts=-1, max_task_retries=_RETRIES)
        self.workers = [actor.remote(_loading_arguments(llm), _agent_shape(llm), options) for _ in range(workers)]
        fingerprints = self._get([worker.fingerprint.remote() for worker in self.workers])
        if set(fingerprints) != {model_fingerprint(llm.model)}:
            self.close()
            raise TrainingError(
                f"The model that the workers loaded by the name {llm.model_id!r} is not the LLM's model. Make the LLM "
                "with from_model_id, from files that every machine has and that did not change since; or set workers=0."
            )

    def begin(self, prompts: Sequence[list[int]], seeds: Sequence[int], weights: Weights) -> Callable[[], PlayedRound]:
        """See `RolloutWorkers.begin`."""
        shared = self.ray.put({name: tensor.detach().cpu().numpy() for name, tensor in weights.items()})
        count = len(self.workers)
        tasks = [
            worker.play.remote(prompts[i::count], seeds[i::count], shared)
            for i, worker in enumerate(self.workers)
            if prompts[i::count]
        ]

        def collect() -> PlayedRound:
            results = self._get(tasks)
            steps: list[Steps | None] = [None] * len(prompts)
            for i, (packed_steps, _) in enumerate(results):
                steps[i::count] = [packed.unpacked() for packed in packed_steps]
            return PlayedRound(steps, sum(passes for _, passes in results))  # type: ignore[arg-type]

        return collect

    def _require(self, workers: int, resources: Mapping[str, Any]) -> None:
        try:
            require_resources(self.ray, workers, resources, ", or give each a fraction: worker_options={{{name!r}: …}}")
        except OptionsError:
            self._stop()
            raise

    def close(self) -> None:
        """Ends the workers, and Ray if it was started for them."""
        for worker in self.workers:
            self.ray.kill(worker)
        self._stop()

    def _stop(self) -> None:
        if self._started:
            self.ray.shutdown()

    def _get(self, tasks: Sequence[Any]) -> list[Any]:
        try:
            results: list[Any] = self.ray.get(list(tasks))
        except self.ray.exceptions.RayTaskError as error:
            # The worker's error itself, without Ray's report around it.
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            raise TrainingError(
                f"A worker died {_RETRIES + 1} times in the same round ({type(error).__name__}). If it ran out of "
                "memory, use fewer workers, lower parallel, or give each worker more through worker_options."
            ) from error
        return results


class _Packed(NamedTuple):
    """Steps as they are sent between processes.

    They leave out the decisions, which refer to whole requests.

    Attributes:
        text: Text of the answer.
        token_ids: Token ids of the answer.
        states: (n, d) float32.
        actions: (n,) int64.
        penalties: (n,) float64.
    """

    text: str
    token_ids: list[int]
    states: NDArray[np.float32]
    actions: NDArray[np.int64]
    penalties: NDArray[np.float64]

    @classmethod
    def of(cls, steps: Steps) -> "_Packed":
        answer = steps.answer
        return cls(answer.text, answer.token_ids, steps.states.numpy(), steps.actions.numpy(), steps.penalties)

    def unpacked(self) -> Steps:
        # Copies: arrays in Ray's shared memory are read-only, and tensors must be writable.
        states, actions = torch.tensor(self.states), torch.tensor(self.actions)
        return Steps(GeneratedAnswer(self.text, self.token_ids, []), states, actions, self.penalties)


class _Worker:
    """State of a worker process. Ray makes it, and makes it again if the process dies."""

    def __init__(self, loading: dict[str, Any], agent_shape: AgentShape, options: EnvironmentOptions) -> None:
        self.agent, self.options = make_agent_of(*agent_shape).eval(), options
        self.llm = MaraLLM.from_model_id(agent=self.agent, **loading)

    def fingerprint(self) -> str:
        return model_fingerprint(self.llm.model)

    def play(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], weights: Mapping[str, NDArray[Any]]
    ) -> tuple[list[_Packed], int]:
        self.agent.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        played = _play(self.llm, prompts, seeds, self.options, len(prompts))
        return [_Packed.of(steps) for steps in played.steps], played.passes


def _play(
    llm: MaraLLM, prompts: Sequence[list[int]], seeds: Sequence[int], options: EnvironmentOptions, batch_size: int
) -> PlayedRound:
    with count_passes(llm.model) as count:
        steps = take_steps(llm, prompts, options, seeds, batch_size)
    return PlayedRound(steps, count.passes)


def _loading_arguments(llm: MaraLLM) -> dict[str, Any]:
    """Arguments with which `from_model_id` loads the same model with the same options."""
    left_out = {"model", "tokenizer", "agent"}
    fields = {name: getattr(llm, name) for name in LocalModel.model_fields if name not in left_out}
    implementation = llm.model.config._attn_implementation  # noqa: SLF001
    loaded = {"dtype": llm.model.dtype, "attn_implementation": implementation, "packed": is_packed(llm.model)}
    return {**fields, **loaded}


def _agent_shape(llm: MaraLLM) -> AgentShape:
    """Arguments of `make_agent_of` for an agent like the LLM's."""
    agent: Any = llm.agent
    if agent is None:
        raise ValueError("Episodes need an agent. Give the LLM one with with_agent.")
    return agent.kind, columns_of(agent.judges, agent.hidden_size), agent.width, getattr(agent, "rank", None)

"""Who plays the episodes of reinforcement: this process, or workers that Ray keeps alive.

A worker holds a policy model of its own and nothing else that lasts: each round it is told what to play and with
which agent. If it dies, another one plays the same again, so that nothing is lost and nothing changes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara._base import LocalModel
from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara.policy.loaded_model import model_fingerprint
from langchain_mara.policy.packed_linear import is_packed
from langchain_mara_training.generation.costs import count_passes
from langchain_mara_training.generation.generate import GeneratedAnswer
from langchain_mara_training.reinforcement.environment import EnvironmentOptions, Steps, take_steps

_DEATHS = 3  # of a worker in one round, until the fault is taken for the round's own

Weights = Mapping[str, Tensor]


class PlayedRound(NamedTuple):
    """What was played.

    Attributes:
        steps: One for each prompt.
        passes: Of the policy models, those of all workers together.
    """

    steps: list[Steps]
    passes: int


class RolloutWorkers(Protocol):
    """Play episodes.

    Attributes:
        ahead: Whether a round is played while the learner learns from the one before.
    """

    ahead: bool

    def begin(self, prompts: Sequence[list[int]], seeds: Sequence[int], weights: Weights) -> Callable[[], PlayedRound]:
        """Begins a round; what is returned waits for it.

        Args:
            prompts: Token ids, one prompt for each episode.
            seeds: Of each episode.
            weights: Of the agent to play with; they may change once this returns.
        """

    def close(self) -> None:
        """Lets go of the workers."""


class InProcessWorkers:
    """This process: plays when it is asked for the result.

    Args:
        llm: The policy model; its agent is the one in training, and plays with the weights it has.
        options: Of the environment.
        batch_size: Most episodes at a time.
    """

    ahead = False

    def __init__(self, llm: MaraLLM, options: EnvironmentOptions, batch_size: int) -> None:
        self.llm, self.options, self.batch_size = llm, options, batch_size

    def begin(self, prompts: Sequence[list[int]], seeds: Sequence[int], weights: Weights) -> Callable[[], PlayedRound]:  # noqa: ARG002
        """See `RolloutWorkers.begin`."""
        return partial(_play, self.llm, prompts, seeds, self.options, self.batch_size)

    def close(self) -> None:
        """Nothing to let go of."""


class RayWorkers:
    """Workers of Ray, each with a policy model of its own, loaded by the name of the LLM's.

    A Ray that is running already is used; otherwise one is started on this machine, and stopped by `close`.

    Args:
        llm: Whose model and options the workers take.
        options: Of the environment.
        workers: How many.
        resources: Of each worker, as Ray's `options` takes them; by default a processor, and a GPU where the LLM is
            on one.

    Raises:
        OptionsError: If Ray is not installed, or has not the resources.
        TrainingError: If the workers cannot load the LLM's model by its name.
    """

    ahead = True

    def __init__(
        self, llm: MaraLLM, options: EnvironmentOptions, workers: int, resources: Mapping[str, Any] | None = None
    ) -> None:
        self.ray = _import_ray()
        self._started = not self.ray.is_initialized()
        if self._started:
            cpus = max(workers, os.cpu_count() or 1)
            self.ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        own = {"num_cpus": 1, "num_gpus": int(llm.model.device.type == "cuda"), **(resources or {})}
        self._require(workers, own)
        actor = self.ray.remote(_Worker).options(**own, max_restarts=-1, max_task_retries=_DEATHS)
        self.workers = [actor.remote(_loading(llm), _shape(llm), options) for _ in range(workers)]
        fingerprint = model_fingerprint(llm.model)
        if any(one != fingerprint for one in self._get([one.fingerprint.remote() for one in self.workers])):
            self.close()
            raise TrainingError(
                f"The workers loaded another model by the name {llm.model_id!r} than the LLM holds. Give an LLM made "
                "by from_model_id from files that all machines have, not changed since; or workers=0."
            )

    def begin(self, prompts: Sequence[list[int]], seeds: Sequence[int], weights: Weights) -> Callable[[], PlayedRound]:
        """See `RolloutWorkers.begin`."""
        shared = self.ray.put({name: one.detach().cpu().numpy() for name, one in weights.items()})
        count = len(self.workers)
        tasks = [
            worker.play.remote(prompts[i::count], seeds[i::count], shared)
            for i, worker in enumerate(self.workers)
            if prompts[i::count]
        ]

        def collect() -> PlayedRound:
            played = self._get(tasks)
            steps: list[Steps | None] = [None] * len(prompts)
            for i, (packed, _) in enumerate(played):
                steps[i::count] = [one.unpacked() for one in packed]
            return PlayedRound(steps, sum(passes for _, passes in played))  # type: ignore[arg-type]

        return collect

    def _require(self, workers: int, resources: Mapping[str, Any]) -> None:
        # Ray would wait for them forever.
        there = self.ray.cluster_resources()
        for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            if workers * resources[name] > there.get(kind, 0):
                self._stop()
                raise OptionsError(
                    f"{workers} workers with {name}={resources[name]} need more than the {there.get(kind, 0):g} that "
                    f"Ray has. Take fewer workers, or give each a share: worker_options={{{name!r}: …}}."
                )

    def close(self) -> None:
        """Ends the workers, and the Ray that was started for them."""
        for worker in self.workers:
            self.ray.kill(worker)
        self._stop()

    def _stop(self) -> None:
        if self._started:
            self.ray.shutdown()

    def _get(self, tasks: Sequence[Any]) -> list[Any]:
        try:
            found: list[Any] = self.ray.get(list(tasks))
        except self.ray.exceptions.RayTaskError as error:
            # The worker's own error, without Ray's account of where it happened.
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            raise TrainingError(
                f"A worker died {_DEATHS + 1} times in the same round ({type(error).__name__}). If its memory did not "
                "suffice, take fewer workers, lower parallel, or give each more by worker_options."
            ) from error
        return found


class _Packed(NamedTuple):
    """Steps as they travel between processes: arrays, and no decisions, which hold whole requests."""

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
        # Arrays that come out of Ray's shared memory cannot be written to, which tensors could.
        states, actions = torch.tensor(self.states), torch.tensor(self.actions)
        return Steps(GeneratedAnswer(self.text, self.token_ids, []), states, actions, self.penalties)


class _Worker:
    """What a worker holds; Ray makes it, and makes it again where its process died."""

    def __init__(self, loading: dict[str, Any], agent_shape: tuple[int, int], options: EnvironmentOptions) -> None:
        self.agent, self.options = MaraAgent(*agent_shape).eval(), options
        self.llm = MaraLLM.from_model_id(agent=self.agent, **loading)

    def fingerprint(self) -> str:
        return model_fingerprint(self.llm.model)

    def play(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], weights: Mapping[str, NDArray[Any]]
    ) -> tuple[list[_Packed], int]:
        self.agent.load_state_dict({name: torch.tensor(one) for name, one in weights.items()})
        played = _play(self.llm, prompts, seeds, self.options, len(prompts))
        return [_Packed.of(one) for one in played.steps], played.passes


def _play(
    llm: MaraLLM, prompts: Sequence[list[int]], seeds: Sequence[int], options: EnvironmentOptions, batch_size: int
) -> PlayedRound:
    with count_passes(llm.model) as count:
        steps = take_steps(llm, prompts, options, seeds, batch_size)
    return PlayedRound(steps, count.passes)


def _loading(llm: MaraLLM) -> dict[str, Any]:
    """Arguments of `from_model_id` that load the same model with the same decoding."""
    left_out = {"model", "tokenizer", "agent"}
    fields = {name: getattr(llm, name) for name in LocalModel.model_fields if name not in left_out}
    implementation = llm.model.config._attn_implementation  # noqa: SLF001
    loaded = {"dtype": llm.model.dtype, "attn_implementation": implementation, "packed": is_packed(llm.model)}
    return {**fields, **loaded}


def _shape(llm: MaraLLM) -> tuple[int, int]:
    if llm.agent is None:
        raise ValueError("Episodes need an agent.")
    return llm.agent.hidden_size, llm.agent.width


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        raise OptionsError("Workers need Ray: pip install 'langchain-mara[ray]'. Or set workers=0.") from None
    return ray

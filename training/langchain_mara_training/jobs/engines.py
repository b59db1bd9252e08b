"""The engine that a command's `--engine` names, and the workers that it makes from the command's options."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError, TrainingError
from langchain_mara_training.engines.blocks import Engine, InProcess
from langchain_mara_training.engines.ray_data import RayData, ray_of_engine
from langchain_mara_training.jobs.inputs import Options
from langchain_mara_training.storage.distributed import processes
from langchain_mara_training.storage.identity.job_identity import describe_llm, differences
from langchain_mara_training.storage.records import Config

EngineName = Literal["process", "ray"]


class Made(NamedTuple):
    """A worker that was made from options.

    Attributes:
        worker: What computes blocks.
        llm: The LLM in it.
    """

    worker: Any
    llm: MaraLLM


Make = Callable[[Options, str | None], Made]
"""Makes a worker from a command's options, on a device. It has to be a function of a module."""


class EngineChoice(NamedTuple):
    """What a command line says about the engine.

    Attributes:
        name: This process, or Ray.
        workers: Number of Ray's workers; None for one per GPU.
    """

    name: EngineName = "process"
    workers: int | None = None

    def check(self) -> None:
        """Refuses a choice that cannot work, before a model is loaded.

        Raises:
            OptionsError: If Ray is not installed, or there are workers without it.
        """
        if self.name == "ray":
            ray_of_engine()
        elif self.workers is not None:
            raise OptionsError("--workers are those of Ray. Add --engine ray, or leave it out.")

    def engine(self, make: Make, options: Options, made: Made) -> Engine:
        """The engine.

        Args:
            make: What made this process's worker.
            options: The command's options.
            made: This process's worker. Ray's workers have to have the same model.

        Raises:
            OptionsError: If several processes were started, and Ray should start workers, too.
        """
        if self.name == "process":
            return InProcess(made.worker)
        if processes().num_processes > 1:
            raise OptionsError("torchrun and --engine ray both divide the work. Use one of them.")
        device = made.llm.model.device.type
        worker = partial(_same, make, dict(options), device, describe_llm(made.llm))
        return RayData(worker, self.workers, on_gpu=device == "cuda")


IN_PROCESS = EngineChoice()
"""The choice of a command line that says nothing."""


def _same(make: Make, options: Options, device: str, described: Config) -> Any:
    """A worker with the model that was described.

    Raises:
        TrainingError: If it has another one.
    """
    made = make(options, device)
    if differing := differences(described, describe_llm(made.llm)):
        raise TrainingError(
            f"A worker loaded another model than the process that began; different: {', '.join(differing)}. Every "
            "machine needs the same files under the same path."
        )
    return made.worker

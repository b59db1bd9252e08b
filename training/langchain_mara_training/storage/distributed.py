"""The processes that share a job, as `torchrun` starts them."""

import os

import torch
from accelerate import PartialState

from langchain_mara.exceptions import TrainingError


def processes() -> PartialState:
    """The processes that share the work: those that torchrun started, or this one alone.

    Raises:
        TrainingError: If several processes were started, but accelerate was already set up for one.
    """
    # Without `cpu`, each process on a machine without an accelerator believes that it is alone.
    state = PartialState(cpu=not torch.accelerator.is_available())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise TrainingError(
            f"{started} processes were started, but accelerate knows of {state.num_processes}. On a CPU, start them "
            "with torchrun (accelerate launch --cpu runs one), and do not create a PartialState or Accelerator first."
        )
    return state

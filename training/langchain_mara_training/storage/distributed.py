"""The processes that share a job."""

import os

import torch
from accelerate import PartialState

from langchain_mara.exceptions import TrainingError


def processes() -> PartialState:
    """The processes that share the work: those that torchrun started, or this one alone.

    Raises:
        TrainingError: If several were started, but accelerate was set up before as if there were one.
    """
    # Without `cpu`, on a machine without accelerator, each process believes that it is alone.
    state = PartialState(cpu=not torch.accelerator.is_available())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise TrainingError(
            f"{started} processes were started, but accelerate knows of {state.num_processes}. On a CPU, start them "
            "with torchrun (accelerate launch --cpu runs one), and create no PartialState or Accelerator before."
        )
    return state

"""Checkpoints of the reference implementation (IAAR-Shanghai/MARA, `train/agents`): found, read and checked.

They are `.pth` state dicts of tensors, read without unpickling code.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor

from langchain_mara.exceptions import CheckpointError

WEIGHTS_FILE = "model.safetensors"
"""Where `save_pretrained` puts an agent's weights."""
_KEYS = {f"{layer}.{kind}" for layer in ("ln", "linear1", "linear2", "output_linear") for kind in ("weight", "bias")}


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: a hub id has at most one slash and no leading one."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def resolve_reference(source: str) -> Path:
    """Turns a path or a hub `repo:file` into the path of a local file, downloading if need be.

    Raises:
        CheckpointError: If there is no such file.
    """
    if (path := Path(source).expanduser()).exists():
        return path
    repository, colon, filename = source.rpartition(":")
    is_drive = len(repository) == 1
    if not colon or not repository or is_drive:
        raise CheckpointError(f"There is no file {source}. Give a path, or repo:file for a hub repository.")
    try:
        return Path(hf_hub_download(repository, filename))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(not_found(source, error)) from None


def read_reference(file: Path) -> dict[str, Any]:
    """The weights in a `.pth` file, by name.

    Raises:
        CheckpointError: If it is truncated, or holds something else than tensors by name.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} is truncated or no PyTorch state dict, or holds other objects than tensors. It was read with "
            "weights_only=True, because unpickling could run code; ask its author for a state dict of tensors."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{file} is truncated or no PyTorch state dict ({reason}).") from None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{file} holds a {type(state).__name__}, not a state dict of tensors.")
    return dict(state)


def agent_shape(state: Mapping[str, Any], source: str) -> tuple[int, int]:
    """Hidden size and width of an agent's weights, after checking names, shapes and finiteness.

    Args:
        state: Weights by name.
        source: Where they come from, for messages.

    Raises:
        CheckpointError: If they are not an agent's.
    """
    missing, extra = sorted(_KEYS - set(state)), sorted(map(str, set(state) - _KEYS))
    if missing or extra:
        raise CheckpointError(
            f"{source} is no MARA agent: missing keys {missing}, unexpected keys {extra[:6]}. "
            "An agent has the keys ln.*, linear1.*, linear2.*, output_linear.*."
        )
    for name, weight in state.items():
        if not isinstance(weight, Tensor) or weight.layout is not torch.strided:
            raise CheckpointError(f"{source} is no MARA agent: {name} is a {type(weight).__name__}, not a tensor.")
        if not weight.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinite values; the agent is unusable.")
    if state["ln.weight"].ndim != 1 or state["linear1.bias"].ndim != 1:
        raise CheckpointError(f"{source} has wrong shapes: ln.weight and linear1.bias must be vectors.")
    return len(state["ln.weight"]), len(state["linear1.bias"])


def not_found(source: str, error: Exception) -> str:
    """What to say where neither a folder nor the hub has an agent."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return (
        f"No agent at {source}: it is no local folder with config.json and {WEIGHTS_FILE}, and the hub "
        f"did not provide it ({reason}). Check the path or id, the network, and your access."
    )

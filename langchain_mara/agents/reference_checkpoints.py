"""Finds, reads and checks agents of the reference implementation (IAAR-Shanghai/MARA, `train/agents`).

They are `.pth` state dicts of tensors, which are read without running pickled code.
"""

import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor

from langchain_mara.exceptions import CheckpointError

WEIGHTS_FILE = "model.safetensors"
"""File in which `save_pretrained` stores an agent's weights."""
MOST_BYTES = 2**30
"""Most bytes of an agent's weights. The largest agents in use have some 20 MB."""
_KEYS = {f"{layer}.{kind}" for layer in ("ln", "linear1", "linear2", "output_linear") for kind in ("weight", "bias")}


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: a hub id has at most one slash and no leading one."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def resolve_reference(source: str, **hub: Any) -> Path:
    """Turns a path or a hub `repo:file` into the path of a local file, and downloads it if necessary.

    Args:
        source: Path, or `repo:file`.
        **hub: `revision`, `token` and `local_files_only` of the hub repository.

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
        return Path(hf_hub_download(repository, filename, **hub))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(not_found(source, error)) from None


def read_reference(file: Path) -> dict[str, Any]:
    """Reads the weights in a `.pth` file, by name.

    Raises:
        CheckpointError: If the file is truncated, not a state dict of tensors, or larger than an agent can be, also
            when unpacked.
    """
    _check_size(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} is truncated, not a PyTorch state dict, or holds objects other than tensors. It was read with "
            "weights_only=True, because unpickling could run code. Ask its author for a state dict of tensors."
        ) from None
    except (RuntimeError, MemoryError, OverflowError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{file} is truncated or not a PyTorch state dict ({reason}). Download it again."
        ) from None
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{file} holds a {type(state).__name__}, not a state dict of tensors. Give an agent's .pth."
        )
    return dict(state)


def _check_size(file: Path) -> None:
    """Refuses a file that is, or unpacks to, more than the weights of an agent."""
    sizes = [file.stat().st_size]
    if is_zipfile(file):
        with suppress(BadZipFile), ZipFile(file) as archive:
            entries = archive.infolist()
            sizes += [len(entries), sum(entry.file_size for entry in entries)]
            if any(entry.compress_type != ZIP_STORED for entry in entries):
                raise CheckpointError(f"{file} is compressed, which PyTorch's files are not. Get it again.")
    if max(sizes) > MOST_BYTES:
        raise CheckpointError(
            f"{file} holds {max(sizes):,} bytes; an agent has at most {MOST_BYTES:,}. Give an agent's .pth."
        )


def agent_shape(state: Mapping[str, Any], source: str) -> tuple[int, int]:
    """Checks the names, shapes and values of an agent's weights.

    Args:
        state: Weights by name.
        source: Name of their source, for messages.

    Returns:
        Hidden size and width of the agent.

    Raises:
        CheckpointError: If the weights are not an agent's.
    """
    missing, extra = sorted(_KEYS - set(state)), sorted(map(str, set(state) - _KEYS))
    if missing or extra:
        raise CheckpointError(
            f"{source} is not a MARA agent: missing keys {missing}, unexpected keys {extra[:6]}. "
            "An agent has the keys ln.*, linear1.*, linear2.*, output_linear.*."
        )
    for name, weight in state.items():
        if not isinstance(weight, Tensor) or weight.layout is not torch.strided or weight.is_meta:
            raise CheckpointError(f"{source} is not a MARA agent: {name} is a {type(weight).__name__}, not a tensor.")
        # A view can repeat a few stored values to any size.
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            raise CheckpointError(f"{source} is not a MARA agent: {name} declares more values than the file holds.")
        if not weight.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinite values, so the agent is unusable.")
    if state["ln.weight"].ndim != 1 or state["linear1.bias"].ndim != 1:
        raise CheckpointError(f"{source} has wrong shapes: ln.weight and linear1.bias must be vectors.")
    return len(state["ln.weight"]), len(state["linear1.bias"])


def not_found(source: str, error: Exception) -> str:
    """Message for an agent that is neither in a folder nor on the hub."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return (
        f"No agent at {source}: it is not a local folder with config.json and {WEIGHTS_FILE}, and the "
        f"hub did not provide it ({reason}). Check the path or id, the network, and your access."
    )

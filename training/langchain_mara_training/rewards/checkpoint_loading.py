"""Loads reward models from checkpoints: tokenizer, weights and score head, without remote code."""

import logging
import os
import pickle
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara.agents.reference_checkpoints import looks_local
from langchain_mara.exceptions import CheckpointError, LoadingError
from langchain_mara.loading.declared_code import refuse_code
from langchain_mara.loading.models import resolve_device, resolve_dtype
from langchain_mara.untrusted import read_json

_SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
_TORCH = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_KEYS_SHOWN = 4


def checkpoint_folder(
    model_id: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local folder of a checkpoint. A hub id is downloaded: its safetensors, or else its PyTorch files.

    Args:
        model_id: Hub id or folder.
        revision: Branch, tag or commit on the hub.
        token: Hub token for gated models.
        local_files_only: Whether to use only files on this machine and never the network.

    Raises:
        LoadingError: If the checkpoint does not exist, cannot be downloaded, or needs its own code.
    """
    source = os.path.expanduser(model_id)  # noqa: PTH111 - a hub id must not become a path
    if Path(source).is_dir():
        refuse_code(source)
        return Path(source)
    if looks_local(source):
        raise LoadingError(f"There is no folder {source}. Give a reward model's folder, or a hub id such as org/model.")
    hub: dict[str, Any] = {"revision": revision, "token": token, "local_files_only": local_files_only}
    small = ["*.json", "*.model", "*.txt", "*.jinja"]
    try:
        folder = Path(snapshot_download(source, allow_patterns=[*small, "*.safetensors"], **hub))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(source, allow_patterns=[*small, "*.bin"], **hub))
    except Exception as error:
        raise LoadingError(f"Cannot find or download the reward model {source}: {reason(error)}") from error
    refuse_code(str(folder))
    return folder


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a checkpoint.

    Raises:
        LoadingError: If it cannot be loaded.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise LoadingError(f"Cannot load the tokenizer of {folder}: {reason(error)}") from error
    return tokenizer


def load_weights(
    kind: Any,
    folder: Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    may_lack: Collection[str] = (),
    **options: Any,
) -> tuple[PreTrainedModel, set[str]]:
    """Loads a model in eval mode with frozen weights, and names the checkpoint's keys that it does not use.

    Args:
        kind: A class with `from_pretrained`.
        folder: Folder of the checkpoint.
        device: Device of the model, such as `cuda:1`; by default CUDA if available. Ignored with `device_map`.
        dtype: `torch.bfloat16`, `"float32"`, …; by default the checkpoint's own, but float32 instead of float16 on
            the CPU.
        may_lack: Names of weights that the caller brings, so the checkpoint may lack them.
        options: Further arguments of `from_pretrained`, such as `quantization_config` or `device_map`.

    Raises:
        LoadingError: If the device is unknown or the model cannot be loaded.
        CheckpointError: If weights are missing.
    """
    if "device_map" not in options:
        options["device_map"] = {"": resolve_device(device)}
    chosen_dtype = resolve_dtype(dtype)
    try:
        with _quiet():
            model, report = kind.from_pretrained(
                folder, dtype=chosen_dtype, output_loading_info=True, trust_remote_code=False, **options
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise LoadingError(f"Cannot load the reward model {folder}: {reason(error)}") from error
    if missing := set(report["missing_keys"]) - set(may_lack):
        raise CheckpointError(
            f"{folder} lacks weights of a {type(model).__name__} ({_abbreviated(missing)}), which would "
            "be random. Download it again, and check that this class of reward model fits the checkpoint."
        )
    if dtype is None and model.dtype is torch.float16 and model.device.type == "cpu":
        model = model.float()
    model.config.use_cache = False
    return model.eval().requires_grad_(requires_grad=False), set(report["unexpected_keys"])


def read_tensors(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Reads named tensors of a checkpoint onto the CPU; those it does not hold are left out. Opens only their files.

    Raises:
        CheckpointError: If the folder holds no weights, or an index or file that is not one of tensors.
    """
    wanted = set(names)
    for index, single in (_SAFETENSORS, _TORCH):
        if (folder / index).is_file():
            files = _files_of(folder / index, wanted)
        elif (folder / single).is_file():
            files = {single}
        else:
            continue
        per_file = [_read(folder / file, wanted) for file in sorted(files)]
        return {name: tensor for tensors in per_file for name, tensor in tensors.items()}
    raise CheckpointError(
        f"{folder} holds no weights. Expected one of {', '.join((*_SAFETENSORS, *_TORCH))}; download it again."
    )


def refuse(keys: Iterable[str], folder: Path, model: str) -> None:
    """Refuses a checkpoint with weights that the model would ignore.

    Args:
        keys: Keys of the checkpoint that the model does not use.
        folder: Folder of the checkpoint.
        model: Class name of the model.

    Raises:
        CheckpointError: If there are such keys.
    """
    unused = set(keys)
    if unused:
        raise CheckpointError(
            f"{folder} holds weights that {model} does not use ({_abbreviated(unused)}), and without them its scores "
            "would be wrong. Use the class of reward model that the checkpoint belongs to."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    # transformers warns of keys it does not use. The score head is one of them, and all others are refused here.
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _files_of(index: Path, wanted: set[str]) -> set[str]:
    """Names of the files that hold the wanted weights, all of them in the index's own folder."""
    content = read_json(index, CheckpointError)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} is not an index of weights. Download it again.")
    files = {str(file) for name, file in weight_map.items() if name in wanted}
    if any(Path(file).name != file for file in files):
        raise CheckpointError(f"{index} names files outside its folder. Get the checkpoint from its author again.")
    return files


def _read(file: Path, wanted: set[str]) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in wanted & set(tensors.keys())}
    try:
        stored: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} holds objects other than tensors, which are not read, because unpickling could run code. "
            "Ask its author for safetensors."
        ) from None
    return {name: stored[name].clone() for name in wanted & set(stored)}


def _abbreviated(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    hidden = len(ordered) - _KEYS_SHOWN
    return ", ".join(ordered[:_KEYS_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__

"""A fitted head on disk: its numbers as safetensors and JSON, and which model reads for it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from langchain_mara import MaraLLM
from langchain_mara.exceptions import CheckpointError, RewardError
from langchain_mara.untrusted import read_json
from langchain_mara_training.storage.atomic import write_atomically

Array = NDArray[np.float64]

CONFIG_FILE, WEIGHTS_FILE = "state_reward.json", "state_reward.safetensors"
TENSORS = ("coef_", "center_", "scale_", "_probe_")
NUMBERS = ("inverse_regularization_", "temperature_", "accuracy_")
OPTIONS = ("folds", "batch_tokens", "random_state")
_PROMPTING = ("system_prompt", "use_chat_template", "special_tokens_in_messages")
_FORMAT = 1


class SavedHead(NamedTuple):
    """The content of a folder.

    Attributes:
        reads: What the head reads: `states` or `embeddings`.
        model: Hub id or folder of the model that reads; None if that is a function.
        prompting: How a policy model is prompted, and its dtype.
        options: Options of the reward.
        numbers: What fitting found, by name.
        tensors: (f,) arrays by name.
    """

    reads: str
    model: str | None
    prompting: dict[str, Any]
    options: dict[str, int]
    numbers: dict[str, float]
    tensors: dict[str, Array]


def write(
    folder: Path, model: Any, options: Mapping[str, int], numbers: Mapping[str, float], tensors: Mapping[str, Array]
) -> None:
    """Writes a fitted head; the arguments are those of `SavedHead`.

    Args:
        folder: Folder, made if it is missing.
        model: What reads the conversations.
        options: Options of the reward.
        numbers: What fitting found; NaN becomes null.
        tensors: (f,) arrays by name.
    """
    is_llm = isinstance(model, MaraLLM)
    config = {
        "format": _FORMAT,
        "reads": "states" if is_llm else "embeddings",
        "model": model.model_id if is_llm else str(model) if isinstance(model, str | Path) else None,
        "prompting": _prompting(model) if is_llm else {},
        "options": dict(options),
        "numbers": {name: None if math.isnan(value) else float(value) for name, value in numbers.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, save(dict(tensors)))
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False).encode())


def read(folder: Path) -> SavedHead:
    """The checked content of a folder.

    Raises:
        CheckpointError: If it holds no fitted head.
    """
    file = folder / CONFIG_FILE
    config = read_json(file, CheckpointError)
    try:
        model, prompting = config["model"], dict(config["prompting"])
        options = {name: int(config["options"][name]) for name in OPTIONS}
        numbers = {name: float(math.nan if value is None else value) for name, value in config["numbers"].items()}
        is_known = config["format"] == _FORMAT and config["reads"] in ("states", "embeddings")
    except (KeyError, TypeError, ValueError, AttributeError):
        is_known = False
    if not (
        is_known
        and isinstance(model, str | None)
        and set(prompting) <= {*_PROMPTING, "dtype"}
        and set(numbers) == set(NUMBERS)
    ):
        raise CheckpointError(f"{file} does not describe a StateReward. Save the reward again.")
    return SavedHead(config["reads"], model, prompting, options, numbers, _tensors(folder / WEIGHTS_FILE))


def load_reader(saved: SavedHead, folder: Path, device: str | None) -> Any:
    """The model that reads for a saved head; that of an encoder is its name.

    Args:
        saved: Content of the folder.
        folder: The folder, for error messages.
        device: Device of a policy model.

    Raises:
        RewardError: If the model is a function.
        LoadingError: If the model cannot be loaded.
    """
    if saved.model is None:
        raise RewardError(f"The reward in {folder} reads what a function of yours gives. Give it: load(…, model=…).")
    if saved.reads == "embeddings":
        return saved.model
    return MaraLLM.from_model_id(saved.model, device=device, **saved.prompting)


def _prompting(llm: MaraLLM) -> dict[str, Any]:
    dtype = str(llm.model.dtype).removeprefix("torch.")
    return {"dtype": dtype, **{name: getattr(llm, name) for name in _PROMPTING}}


def _tensors(file: Path) -> dict[str, Array]:
    try:
        tensors: dict[str, Array] = load_file(file)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"Cannot read {file}: {error}. Save the reward again.") from None
    shapes = {tensor.shape for tensor in tensors.values()}
    is_finite = all(np.isfinite(tensor).all() for tensor in tensors.values())
    if set(tensors) != set(TENSORS) or len(shapes) != 1 or len(next(iter(shapes))) != 1 or not is_finite:
        raise CheckpointError(f"{file} does not hold the weights of a StateReward. Save the reward again.")
    return tensors

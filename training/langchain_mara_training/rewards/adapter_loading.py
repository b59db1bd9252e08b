"""Loads reward models that are PEFT adapters: a base, the adapter's changes, and the score head that comes with it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from langchain_mara.exceptions import CheckpointError, LoadingError
from langchain_mara.loading.peft_adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter, merge_adapter
from langchain_mara.untrusted import read_json
from langchain_mara_training.rewards.checkpoint_loading import checkpoint_folder, load_weights, reason

_HEADS = ("score", "classifier")
_PREFIX = "base_model.model."


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no whole model."""
    return (folder / CONFIG_FILE).is_file() and not any(folder.glob("model*.safetensors"))


def load_adapter(folder: Path, hub: dict[str, Any], **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """A sequence classifier with one output whose head comes from an adapter, and the base's keys that it does not use.

    Args:
        folder: Folder of the adapter.
        hub: `token` and `local_files_only`, for a base on the hub.
        options: `device`, `dtype` and further arguments of `from_pretrained`.

    Raises:
        LoadingError: If peft is missing, or the base or the adapter cannot be loaded.
        CheckpointError: If the adapter is not that of a reward model with one output.
    """
    if not is_peft_available():
        raise LoadingError(f"{folder} is a PEFT adapter, and peft is not installed: pip install 'langchain-mara[dpo]'")
    head = _head(folder)
    adapter = _adapter(folder)
    base = checkpoint_folder(adapter.base, revision=adapter.base_revision, **hub)
    # The base is often a plain language model, whose score head is new: the adapter replaces it.
    model, unexpected = load_weights(
        AutoModelForSequenceClassification, base, may_lack=set(head), num_labels=1, **options
    )
    try:
        merged = merge_adapter(model, adapter)
    except LoadingError:
        raise
    except Exception as error:
        raise LoadingError(f"Cannot merge the adapter {folder} into {base}: {reason(error)}") from error
    _prove(merged, head, folder)
    return merged.eval().requires_grad_(requires_grad=False), unexpected


def _adapter(folder: Path) -> Adapter:
    config = read_json(folder / CONFIG_FILE, LoadingError)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base:
        raise LoadingError(f"The adapter {folder} names no base model. Set base_model_name_or_path in {CONFIG_FILE}.")
    return Adapter(str(folder), folder, base, config.get("revision"))


def _head(folder: Path) -> dict[str, Tensor]:
    """The weights of the adapter's head, by their names in the model."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise LoadingError(
            f"The adapter {folder} has no {WEIGHTS_FILE}, and pickled weights are not read. "
            "Save it again with safe_serialization=True."
        )
    try:
        tensors = load_file(file)
    except Exception as error:
        raise LoadingError(f"Cannot read {file}: {reason(error)}. Download it again.") from error
    names = {name: name.removeprefix(_PREFIX) for name in tensors}
    head = {short: tensors[name] for name, short in names.items() if short.partition(".")[0] in _HEADS}
    if not head:
        raise CheckpointError(
            f"The adapter {folder} holds no score head ({' or '.join(_HEADS)}), and without one its scores would be "
            "random. Train it as a reward model (task type SEQ_CLS, with the head in modules_to_save)."
        )
    # The last part of a head makes the outputs.
    outputs = len(list(head.values())[-1])
    if outputs != 1:
        raise LoadingError(
            f"The adapter {folder} has {outputs} outputs, but a reward model has one. "
            "Wrap it in a function of your own that chooses the output to use as the reward."
        )
    return head


def _prove(model: PreTrainedModel, head: dict[str, Tensor], folder: Path) -> None:
    """Refuses a model whose head is not that of the adapter."""
    weights = model.state_dict()
    for name, expected in head.items():
        found = weights.get(name)
        if found is None or not torch.equal(found.cpu(), expected.to(found.dtype)):
            raise CheckpointError(
                f"{type(model).__name__} did not take {name} from the adapter {folder}. Merge the adapter into its "
                "base with peft (merge_and_unload), save the whole model, and load that."
            )

"""Finds PEFT adapters by their `adapter_config.json` and merges them into their base model."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import snapshot_download
from transformers.utils.import_utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from langchain_mara.exceptions import LoadingError
from langchain_mara.untrusted import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# Files of a hub repository that belong to an adapter and its tokenizer; never pickled weights.
_WANTED = [CONFIG_FILE, WEIGHTS_FILE, "*token*", "vocab*", "merges.txt", "chat_template*"]


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter in a folder.

    Attributes:
        source: Folder or hub id, as the user gave it.
        folder: Local folder of its files.
        base: Folder or hub id of the base model.
        base_revision: Branch, tag or commit of the base on the hub, or None.
    """

    source: str
    folder: Path
    base: str
    base_revision: str | None

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was saved with the adapter."""
        return (self.folder / "tokenizer_config.json").is_file()


def find_adapter(source: str, hub: dict[str, Any]) -> Adapter | None:
    """Checks whether a name refers to an adapter, and downloads the adapter if it is on the hub.

    Args:
        source: Folder or hub id.
        hub: `revision`, `token` and `local_files_only` for Hugging Face's functions.

    Returns:
        The adapter; None if there is no `adapter_config.json`, or if the folder also holds the base model, because
        transformers loads the two together.

    Raises:
        LoadingError: If it cannot be merged into a causal language model, or peft is not installed.
    """
    if find_adapter_config_file(source, **hub) is None:
        return None
    if not is_peft_available():
        raise LoadingError(f"{source} is a PEFT adapter, and peft is not installed: pip install 'langchain-mara[dpo]'")
    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source, allow_patterns=_WANTED, **hub))
    config = read_json(folder / CONFIG_FILE, LoadingError)
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise LoadingError(f"The adapter {source} is for {config['task_type']}. Give one of task type CAUSAL_LM.")
    if not (folder / WEIGHTS_FILE).is_file():
        raise LoadingError(
            f"The adapter {source} has no {WEIGHTS_FILE}, and pickled weights are not read. "
            "Save it again with safe_serialization=True."
        )
    if Path(source, "config.json").is_file():
        return None
    if not config.get("base_model_name_or_path"):
        raise LoadingError(f"The adapter {source} names no base model. Set base_model_name_or_path in {CONFIG_FILE}.")
    return Adapter(source, folder, config["base_model_name_or_path"], config.get("revision"))


def merge_adapter(model: "PreTrainedModel", adapter: Adapter) -> "PreTrainedModel":
    """Merges an adapter into the weights of its base model. A quantized base keeps the adapter's weights separate.

    Args:
        model: The base model, which is changed.
        adapter: The adapter to merge.

    Raises:
        LoadingError: If the adapter changes no weights (prompt learning).
        UserWarning: If the adapter's file lacks weights.
        RuntimeError: If adapter and base do not fit.
    """
    # Importing peft takes seconds, and most models are not adapters.
    from peft import PeftModel  # noqa: PLC0415

    with warnings.catch_warnings():
        # Missing weights would be random.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted = PeftModel.from_pretrained(model, str(adapter.folder), torch_device=str(model.device))
    if adapted.active_peft_config.is_prompt_learning:
        raise LoadingError(
            f"The adapter {adapter.source} is of type {adapted.active_peft_config.peft_type.value}, which prepends "
            "states and changes no weights. Give one that does, such as LoRA."
        )
    quantized = getattr(model, "hf_quantizer", None) is not None
    merged: Any = adapted.get_base_model() if quantized else adapted.merge_and_unload(safe_merge=True)
    merged.name_or_path = adapter.source
    return cast("PreTrainedModel", merged)

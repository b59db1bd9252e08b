"""PEFT adapters: found by their `adapter_config.json`, and merged into their base model."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from langchain_mara.exceptions import LoadingError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# Of a repository on the hub, what an adapter and its tokenizer consist of; never pickled weights.
_WANTED = [CONFIG_FILE, WEIGHTS_FILE, "*token*", "vocab*", "merges.txt", "chat_template*"]


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter in a folder.

    Attributes:
        source: How the user called it, a folder or a hub id.
        folder: Where its files lie.
        base: Folder or hub id of the model it changes.
        base_revision: Branch, tag or commit of the base on the hub, or None.
    """

    source: str
    folder: Path
    base: str
    base_revision: str | None

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was saved beside it."""
        return (self.folder / "tokenizer_config.json").is_file()


def find_adapter(source: str, hub: dict[str, Any]) -> Adapter | None:
    """Looks whether a name means an adapter, and fetches it from the hub if it lies there.

    Args:
        source: Folder or hub id.
        hub: `revision`, `token` and `local_files_only` as Hugging Face's functions take them.

    Returns:
        The adapter; None where there is no `adapter_config.json`, or where the folder holds its base as well, because
        transformers loads the two together.

    Raises:
        LoadingError: If it cannot be merged into a causal language model, or peft is not installed.
    """
    if find_adapter_config_file(source, **hub) is None:
        return None
    if not is_peft_available():
        raise LoadingError(f"{source} is a PEFT adapter and peft is not installed: pip install 'langchain-mara[dpo]'")
    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source, allow_patterns=_WANTED, **hub))
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
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


def merge_adapter(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """The base model with the adapter's changes in its weights; quantized weights keep them beside themselves.

    Args:
        model: The base, which is changed.
        adapter: What to merge.

    Raises:
        LoadingError: If the adapter changes no weights (prompt learning).
        UserWarning: If the adapter's file lacks weights.
        RuntimeError: If adapter and base do not fit.
    """
    # Costs seconds, and most models are no adapters.
    from peft import PeftModel  # noqa: PLC0415

    with warnings.catch_warnings():
        # They would be random, as would a whole model's.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        joined = PeftModel.from_pretrained(model, str(adapter.folder), torch_device=str(model.device))
    if joined.active_peft_config.is_prompt_learning:
        raise LoadingError(
            f"The adapter {adapter.source} is of type {joined.active_peft_config.peft_type.value}, which prepends "
            "states and changes no weights. Give one that does, such as LoRA."
        )
    quantized = getattr(model, "hf_quantizer", None) is not None
    merged: Any = joined.get_base_model() if quantized else joined.merge_and_unload(safe_merge=True)
    merged.name_or_path = adapter.source
    return cast("PreTrainedModel", merged)

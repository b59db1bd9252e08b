"""Finds PEFT adapters by their `adapter_config.json` and merges them into their base model."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers.utils.import_utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from langchain_mara.exceptions import LoadingError
from langchain_mara.untrusted import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_COMPARED_TOKENS = 8
_MOST_DIFFERENCE = 0.1  # merging in bfloat16 costs a few per cent, a destroyed embedding everything
_IN_ADAPTED_LAYER = {"base_layer", "original_module", "token_adapter"}  # where PEFT keeps what it wraps
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

    Where the adapter changes an embedding or a head that share their weight, each gets a weight of its own first.

    Args:
        model: The base model, which is changed.
        adapter: The adapter to merge.

    Raises:
        LoadingError: If the adapter changes no weights (prompt learning), or the merged model computes something else.
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
    if getattr(model, "hf_quantizer", None) is not None:
        merged: Any = adapted.get_base_model()
    else:
        before = _logits(adapted, model)
        _untie(adapted)
        merged = adapted.merge_and_unload(safe_merge=True)
        _check_merged(before, _logits(merged, model), adapter)
        head = merged.get_output_embeddings()  # a reward model has none
        if head is not None and head.weight is not merged.get_input_embeddings().weight:
            merged.config.get_text_config(decoder=True).tie_word_embeddings = merged.config.tie_word_embeddings = False
    merged.name_or_path = adapter.source
    return cast("PreTrainedModel", merged)


def _untie(adapted: nn.Module) -> None:
    """Gives every layer its own weight where an adapter changes a layer that shares its weight with another one."""
    owners: dict[nn.Parameter, list[tuple[str, nn.Module, str]]] = {}
    for path, layer in adapted.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            owners.setdefault(parameter, []).append((path, layer, name))
    for parameter, shared in owners.items():
        if any(_IN_ADAPTED_LAYER & set(path.split(".")) for path, _, _ in shared):
            for _, layer, name in shared[1:]:
                setattr(layer, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))


@torch.no_grad()
def _logits(run: nn.Module, model: "PreTrainedModel") -> torch.Tensor:
    """(tokens, vocabulary) float32 centered logits of a few tokens of the vocabulary; (1,) of a reward model."""
    embeddings = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    token_ids = torch.arange(_COMPARED_TOKENS) * embeddings // _COMPARED_TOKENS
    logits: torch.Tensor = run(input_ids=token_ids[None].to(model.device)).logits[0].float()
    return logits - logits.mean(-1, keepdim=True) if logits.shape[-1] > 1 else logits


def _check_merged(before: torch.Tensor, after: torch.Tensor, adapter: Adapter) -> None:
    """Refuses a merged model whose logits differ from those of the adapter beside its base by more than rounding.

    Raises:
        LoadingError: If they differ.
    """
    difference = float((after - before).norm() / before.norm())
    if not difference <= _MOST_DIFFERENCE:
        raise LoadingError(
            f"Merged into its base model, the adapter {adapter.source} computes something else than before: logits "
            f"differ by {difference:.0%}. Merge it with the tool that made it, and load the merged model."
        )

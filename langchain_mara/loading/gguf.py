"""Loads GGUF files, which llama.cpp runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download

from langchain_mara.exceptions import LoadingError
from langchain_mara.policy.llama_cpp.model import LlamaCppModel
from langchain_mara.policy.llama_cpp.settings import LlamaCppSettings
from langchain_mara.policy.llama_cpp.weights import shard_names
from langchain_mara.policy.loaded_model import LoadedModel

if TYPE_CHECKING:
    from langchain_mara.loading.gguf_tokenizer import GgufTokenizer

SUFFIX = ".gguf"


def names_gguf(source: str | Path) -> bool:
    """Whether a name is that of a GGUF file."""
    return str(source).lower().endswith(SUFFIX)


def load_gguf(
    source: str | Path, settings: LlamaCppSettings | None = None, **hub: Any
) -> tuple[LlamaCppModel, "GgufTokenizer"]:
    """Loads a model and its tokenizer from a GGUF file.

    Args:
        source: The file, the first one of a model in several files, or `repo:file.gguf` on the hub.
        settings: Context, GPU layers and threads.
        **hub: `revision`, `token` and `local_files_only` for a file on the hub.

    Raises:
        LoadingError: If llama.cpp is not installed, or the file cannot be loaded.
        UnsupportedModelError: If the architecture cannot evaluate siblings.
    """
    # Its base class is one that no other model needs.
    from langchain_mara.loading.gguf_tokenizer import GgufTokenizer  # noqa: PLC0415

    model = LlamaCppModel(_file(source, hub), settings or LlamaCppSettings())
    LoadedModel.of(model).hub_options = {name: hub[name] for name in ("token", "local_files_only") if name in hub}
    return model, GgufTokenizer(model)


def _file(source: str | Path, hub: dict[str, Any]) -> Path:
    path = Path(source).expanduser()
    repository, _, name = str(source).rpartition(":")
    if path.exists() or not repository:
        if path.is_dir():
            raise LoadingError(f"{path} is a folder. Give the .gguf file in it, or load the folder with from_model_id.")
        return path
    try:
        first, *_ = [Path(hf_hub_download(repository, each, **hub)) for each in shard_names(name)]
    except Exception as error:
        reason = " ".join(str(error).split())
        raise LoadingError(f"Cannot fetch {name} of {repository}: {reason}") from error
    return first

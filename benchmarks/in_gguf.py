"""GGUF files of models that exist in memory only, by the tests' own writer."""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from gguf_files import write_gguf


def in_gguf(model: Any, tokenizer: Any, file: Path) -> Path:
    """Writes a model and its tokenizer as a GGUF file.

    Args:
        model: A Llama-like model.
        tokenizer: Its byte-level tokenizer.
        file: File to write.
    """
    return Path(write_gguf(model, tokenizer, file))

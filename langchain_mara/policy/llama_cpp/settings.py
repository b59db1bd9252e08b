"""Settings of a GGUF file's model, with their defaults."""

from typing import NamedTuple

DEFAULT_CELLS = 8192
"""Most tokens that all running sequences hold together, unless the user says otherwise."""


class LlamaCppSettings(NamedTuple):
    """How a GGUF file is loaded.

    Attributes:
        n_ctx: Most tokens that all running sequences hold together, in the order of magnitude of `batch_size` times
            the length of a prompt and its answer. A sequence never holds more than the model was trained for.
        n_gpu_layers: Number of layers to compute on the GPU, if llama.cpp was built for one; -1 for all.
        n_threads: Number of threads; by default as many as PyTorch takes.
    """

    n_ctx: int = DEFAULT_CELLS
    n_gpu_layers: int = -1
    n_threads: int | None = None

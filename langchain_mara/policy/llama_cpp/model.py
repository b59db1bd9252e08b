"""A language model that llama.cpp has loaded from a GGUF file, with what this library asks of a loaded model."""

import ctypes
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langchain_mara.exceptions import LoadingError, UnsupportedModelError
from langchain_mara.policy.llama_cpp.context import ContextSettings, LlamaContext
from langchain_mara.policy.llama_cpp.library import complaints, library
from langchain_mara.policy.llama_cpp.policy import LlamaCppPolicy
from langchain_mara.policy.llama_cpp.settings import LlamaCppSettings
from langchain_mara.policy.llama_cpp.weights import StoredTable, content_digest, shards

_TEXT_BYTES = 2**20
_ROWS_AT_ONCE = 16384
_FARTHEST = 0.1  # four-bit weights with activations in eight bits are off by a few percent
_ALL_FLOAT32 = "0"  # `general.file_type` of files whose weights are all float32


class LlamaCppModel(nn.Module):
    """A loaded model. It has the attributes of a transformers model that this library reads, and no parameters.

    Args:
        file: The GGUF file, or the first one of a model in several files.
        settings: How to load it.

    Attributes:
        name_or_path: The file.
        config: Sizes, as transformers names them, and a digest of the weights.
        generation_config: Tokens that end an answer.
        metadata: What the file says of itself, by name.
        context: The context in which all its passes run.
        vocabulary: llama.cpp's pointer to the vocabulary, valid as long as the model.

    Raises:
        LoadingError: If llama.cpp is not installed, or the file is missing, damaged, of another format, or too large.
        UnsupportedModelError: If the architecture cannot evaluate siblings.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, file: str | Path, settings: LlamaCppSettings = LlamaCppSettings()) -> None:  # noqa: B008
        super().__init__()
        path = Path(file).expanduser()
        files, lib = shards(path), library()
        self.name_or_path = str(path)
        pointer = _load(files[0], settings)
        free = weakref.finalize(self, lib.llama_model_free, pointer)
        _refuse_unsupported(pointer, path)
        self.vocabulary = lib.llama_model_get_vocab(pointer)
        self.metadata = _metadata(pointer)
        trained_for = int(lib.llama_model_n_ctx_train(pointer))
        self.config = _config(pointer, min(settings.n_ctx, trained_for), content_digest(files))
        self.generation_config = _generation_config(self.vocabulary)
        exact = self.metadata.get("general.file_type") == _ALL_FLOAT32
        threads = settings.n_threads or torch.get_num_threads()
        self.context = LlamaContext(pointer, ContextSettings(settings.n_ctx, threads, exact))
        free.detach()
        weakref.finalize(self, _free, self.context.pointer, pointer)
        # Not submodules: they hold nothing of a model's own until they are read.
        embedding = StoredTable(files, ("token_embd.weight",))
        head = StoredTable(files, ("output.weight", "token_embd.weight"))
        self._tables = {"embedding": embedding, "head": head}
        self._head: Tensor | None = None

    def new_policy(self) -> LlamaCppPolicy:
        """A policy that runs this model."""
        return LlamaCppPolicy(self)

    def get_input_embeddings(self) -> StoredTable:
        """The embedding; its weight is read from the file when it is first asked for."""
        return self._tables["embedding"]

    def get_output_embeddings(self) -> StoredTable:
        """The head; its weight is read from the file when it is first asked for."""
        return self._tables["head"]

    def head_logits(self, states: Tensor) -> Tensor:
        """(n, vocabulary) float32 logits of (n, d) states by the dequantized head.

        Raises:
            UnsupportedModelError: If these are not the logits that llama.cpp computes, because the architecture
                transforms them in a way this library does not know.
        """
        if self._head is None:
            self._head = torch.cat(list(self.get_output_embeddings().weight.split(_ROWS_AT_ONCE)))
            policy = self.new_policy()
            cache = policy.new_cache()
            state = policy.prefill(cache, 0, [[0, 1, 2]])
            known, computed = policy.logits(state), self.head_logits(state)
            if not (known - computed).norm() <= _FARTHEST * known.norm():
                self._head = None
                raise UnsupportedModelError(
                    f"The head of {self.name_or_path} gives other logits than llama.cpp. Use the model in transformers."
                )
        logits = states.float() @ self._head.T
        cap = float(self.metadata.get(f"{self.metadata['general.architecture']}.final_logit_softcapping", 0))
        return (logits / cap).tanh_().mul_(cap) if cap else logits

    # What transformers' `generate` makes logits processors with.
    def _prepare_special_tokens(self, *args: Any, **kwargs: Any) -> None:
        self._generation()._prepare_special_tokens(*args, **kwargs)  # noqa: SLF001 - its own method

    def _get_logits_processor(self, **kwargs: Any) -> Any:
        return self._generation()._get_logits_processor(**kwargs)  # noqa: SLF001 - its own method

    def _generation(self) -> Any:
        from transformers import GenerationMixin  # noqa: PLC0415 - loads much of transformers

        mixin: Any = GenerationMixin()
        mixin.config, mixin.generation_config = self.config, self.generation_config
        return mixin


def _load(file: Path, settings: LlamaCppSettings) -> Any:
    lib = library()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = settings.n_gpu_layers
    with complaints() as lines:
        pointer = lib.llama_model_load_from_file(str(file).encode(), params)
    if not pointer:
        reason = next((line for line in lines if "error loading model" in line), lines[-1] if lines else "no reason")
        raise LoadingError(f"llama.cpp cannot load {file}: {reason.rpartition('error loading model: ')[2]}")
    return pointer


def _refuse_unsupported(pointer: Any, file: Path) -> None:
    lib = library()
    kinds = {
        "an encoder": lib.llama_model_has_encoder,
        "a recurrent state": lib.llama_model_is_recurrent,
        "layers with a recurrent state": lib.llama_model_is_hybrid,
    }
    for kind, has in kinds.items():
        if has(pointer):
            raise UnsupportedModelError(
                f"The model in {file} has {kind}. Siblings need attention whose past is a set of keys and values. Use "
                "a decoder that has attention layers only."
            )


def _metadata(pointer: Any) -> dict[str, str]:
    lib, text = library(), ctypes.create_string_buffer(_TEXT_BYTES)

    def read(function: Any, index: int) -> str:
        function(pointer, index, text, _TEXT_BYTES)
        return text.value.decode(errors="replace")

    count = lib.llama_model_meta_count(pointer)
    by_key, by_value = lib.llama_model_meta_key_by_index, lib.llama_model_meta_val_str_by_index
    return {read(by_key, i): read(by_value, i) for i in range(count)}


def _config(pointer: Any, context: int, digest: str) -> Any:
    from transformers import PreTrainedConfig  # noqa: PLC0415 - this module is imported without it

    lib = library()
    make: Any = PreTrainedConfig
    return make(
        hidden_size=int(lib.llama_model_n_embd_out(pointer)),
        vocab_size=int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(pointer))),
        max_position_embeddings=context,
        sliding_window=int(lib.llama_model_n_swa(pointer)) or None,
        weights=digest,
    )


def _generation_config(vocabulary: Any) -> Any:
    from transformers import GenerationConfig  # noqa: PLC0415 - loads much of transformers

    lib = library()
    count = int(lib.llama_vocab_n_tokens(vocabulary))
    return GenerationConfig(eos_token_id=[i for i in range(count) if lib.llama_vocab_is_eog(vocabulary, i)] or None)


def _free(context: Any, model: Any) -> None:
    lib = library()
    lib.llama_free(context)
    lib.llama_model_free(model)

"""A context of llama.cpp: tokens of many sequences in, states and logits out, with the cells that keep their keys."""

import ctypes
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from langchain_mara.exceptions import LoadingError
from langchain_mara.policy.llama_cpp.known_logits import KnownLogits
from langchain_mara.policy.llama_cpp.library import complaints, library

PASS_TOKENS = 512
"""Most tokens in one call of llama.cpp, if the context has as many."""
_FULL, _ABORTED = 1, 2


class ContextSettings(NamedTuple):
    """Settings of a context.

    Attributes:
        tokens: Most tokens that all sequences hold together.
        threads: Number of threads.
        exact: Whether attention computes in float32 and keeps keys and values so, instead of in float16.
    """

    tokens: int
    threads: int
    exact: bool


class TokenInPass(NamedTuple):
    """A token that goes through the model.

    Attributes:
        token_id: The token.
        position: Its position.
        sequence: The sequence whose tokens before the position it sees.
    """

    token_id: int
    position: int
    sequence: int


class Backbone(nn.Module):
    """Stands for the model where passes are counted by hooks."""

    def forward(self) -> None:
        """Nothing: a pass has been made."""


class LlamaContext:
    """One context of a loaded model, which all its users share, one at a time.

    Args:
        model: Pointer to the model.
        settings: Settings of the context.

    Attributes:
        backbone: Is called once in every pass.
        lock: Held while tokens go through the model, and while cells change hands.
        known: Logits of the states of undecided positions.
        memory: llama.cpp's handle of the cells.
        pass_tokens: Most tokens in one call of llama.cpp.

    Raises:
        LoadingError: If there is not enough memory.
    """

    def __init__(self, model: Any, settings: ContextSettings) -> None:
        lib = self._lib = library()
        self.settings = settings
        self.lock = threading.RLock()
        self.backbone = Backbone()
        self.known = KnownLogits()
        self.most_sequences = int(lib.llama_max_parallel_sequences())
        self._free = deque(range(self.most_sequences))
        self._abandoned: deque[tuple[Sequence[int], Sequence[bytes]]] = deque()
        self.pointer = _new_context(model, settings)
        self.memory = lib.llama_get_memory(self.pointer)
        self.pass_tokens = int(lib.llama_n_batch(self.pointer))  # more tokens in a call abort the process
        self._vocabulary = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
        self._size = int(lib.llama_model_n_embd_out(model))
        self._inputs = _Inputs(lib)
        self._gives_states: bool | None = None
        self._stop = ctypes.create_string_buffer(2)
        # A pass asks between any two operations whether to stop. The length of a text says so without Python.
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)
        lib.llama_set_abort_callback(self.pointer, strlen, ctypes.cast(self._stop, ctypes.c_void_p))

    def interrupt(self) -> None:
        """Ends the running pass with an `InterruptedError`. Any thread may call it."""
        self._stop[0] = b"\1"

    def take_sequence(self) -> int | None:
        """Number of a sequence that holds nothing; None if all are in use."""
        while self._abandoned:
            sequences, keys = self._abandoned.popleft()
            self.known.release(keys)
            for sequence in sequences:
                self.give_back(sequence)
        return self._free.popleft() if self._free else None

    def give_back(self, sequence: int) -> None:
        """Empties a sequence for others."""
        self._lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        self._free.append(sequence)

    def give_back_later(self, sequences: Sequence[int], keys: Sequence[bytes]) -> None:
        """Empties sequences and forgets logits when the next sequence is taken. Any thread may call it at any time.

        Args:
            sequences: Numbers of sequences.
            keys: Keys in `known`.
        """
        self._abandoned.append((sequences, keys))

    def length(self, sequence: int) -> int:
        """Number of tokens that a sequence holds."""
        return int(self._lib.llama_memory_seq_pos_max(self.memory, sequence)) + 1

    def cut(self, sequence: int, length: int) -> None:
        """Forgets the tokens of a sequence from position `length` on."""
        self._lib.llama_memory_seq_rm(self.memory, sequence, length, -1)

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Makes the tokens of a sequence from `start` to before `stop` those of another one, too."""
        self._lib.llama_memory_seq_cp(self.memory, source, target, start, stop)

    def read(self, sequence: int) -> "np.ndarray":
        """Copies keys and values of a sequence, as (bytes,) uint8."""
        size = self._lib.llama_state_seq_get_size(self.pointer, sequence)
        copied = np.empty(size, np.uint8)
        target = copied.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return copied[: self._lib.llama_state_seq_get_data(self.pointer, target, size, sequence)]

    def write(self, sequence: int, kept: "np.ndarray") -> None:
        """Gives a sequence the keys and values that `read` has returned.

        Raises:
            torch.OutOfMemoryError: If there are not enough cells.
        """
        source = kept.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not self._lib.llama_state_seq_set_data(self.pointer, source, len(kept), sequence):
            raise self._full_error()

    def fill(self, tokens: Sequence[TokenInPass]) -> int:
        """Puts tokens through the model for their keys and values only; returns the number of passes."""
        return sum(map(self._run, self._parts(tokens)))

    def evaluate(self, tokens: Sequence[TokenInPass]) -> tuple["np.ndarray", list[bytes]]:
        """Puts tokens through the model.

        Returns:
            (n, d) float32 states after the final norm, and the keys of their logits in `known`.

        Raises:
            torch.OutOfMemoryError: If there are not enough cells.
        """
        states, keys = np.empty((len(tokens), self._size), np.float32), list[bytes]()
        for part in self._parts(tokens):
            self._run(part, outputs=True)
            own = states[len(keys) : len(keys) + len(part)]
            own[:] = _written(_address(self._lib.llama_get_embeddings(self.pointer)), *own.shape)
            logits = _written(_address(self._lib.llama_get_logits(self.pointer)), len(part), self._vocabulary)
            keys += self.known.add(own, logits)
        return states, keys

    def _parts(self, tokens: Sequence[TokenInPass]) -> Iterator[Sequence[TokenInPass]]:
        return (tokens[start : start + self.pass_tokens] for start in range(0, len(tokens), self.pass_tokens))

    def _run(self, tokens: Sequence[TokenInPass], *, outputs: bool = False) -> bool:
        self.known.keep()
        if outputs is not self._gives_states:  # llama.cpp writes a line to the log, by way of Python, at every call
            self._lib.llama_set_embeddings(self.pointer, outputs)
            self._gives_states = outputs
        self._stop[0] = b"\0"
        code = self._lib.llama_decode(self.pointer, self._inputs.batch(tokens, outputs))
        if code == _FULL:
            raise self._full_error()
        if code == _ABORTED:
            raise InterruptedError("The pass was interrupted.")
        if code:
            raise RuntimeError(f"llama.cpp failed with code {code} in a pass over {len(tokens)} tokens.")
        self.backbone()
        return True

    def _full_error(self) -> torch.OutOfMemoryError:
        return torch.OutOfMemoryError(
            f"The {self.settings.tokens} cells of the model's context are in use. Load the model with a larger n_ctx, "
            "or lower batch_size."
        )


def _address(pointer: Any) -> int:
    return ctypes.addressof(pointer.contents)


@lru_cache(maxsize=64)
def _written(address: int, rows: int, columns: int) -> "np.ndarray":
    """(rows, columns) float32 that llama.cpp has written, without a copy; the next pass overwrites it."""
    return np.ctypeslib.as_array((ctypes.c_float * (rows * columns)).from_address(address)).reshape(rows, columns)


class _Inputs:
    """The arrays that a pass reads its tokens from; they are made once."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._token_ids, self._positions, self._sequences = (np.zeros(PASS_TOKENS, np.int32) for _ in range(3))
        self._counts, self._outputs = np.ones(PASS_TOKENS, np.int32), np.zeros(PASS_TOKENS, np.int8)
        places = self._sequences.ctypes.data + 4 * np.arange(PASS_TOKENS, dtype=np.uint64)
        self._places = places.astype(np.uintp)

        def pointer(array: Any, kind: Any) -> Any:
            return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

        self._batch = lib.llama_batch(
            n_tokens=0,
            token=pointer(self._token_ids, ctypes.c_int32),
            embd=None,
            pos=pointer(self._positions, ctypes.c_int32),
            n_seq_id=pointer(self._counts, ctypes.c_int32),
            seq_id=pointer(self._places, ctypes.POINTER(ctypes.c_int32)),
            logits=pointer(self._outputs, ctypes.c_int8),
        )

    def batch(self, tokens: Sequence[TokenInPass], outputs: bool) -> Any:
        count = len(tokens)
        self._token_ids[:count], self._positions[:count], self._sequences[:count] = zip(*tokens, strict=True)
        self._outputs[:count] = outputs
        self._batch.n_tokens = count
        return self._batch


def _new_context(model: Any, settings: ContextSettings) -> Any:
    lib = library()
    params = lib.llama_context_default_params()
    params.n_ctx = max(int(lib.llama_max_parallel_sequences()), settings.tokens)  # fewer abort the process
    params.n_batch = params.n_ubatch = PASS_TOKENS
    params.n_seq_max, params.kv_unified = int(lib.llama_max_parallel_sequences()), True
    params.swa_full = True
    params.n_threads = params.n_threads_batch = settings.threads
    params.embeddings, params.pooling_type = True, lib.LLAMA_POOLING_TYPE_NONE
    params.no_perf = True
    if settings.exact:  # flash attention rounds queries and keys to half precision
        params.type_k = params.type_v = lib.GGML_TYPE_F32
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    with complaints() as lines:
        pointer = lib.llama_init_from_model(model, params)
    if not pointer:
        reason = f" ({lines[-1]})" if lines else ""
        raise LoadingError(f"There is no memory for a context of {settings.tokens} tokens{reason}. Lower n_ctx.")
    return pointer

"""The library llama.cpp, through the low-level functions of llama-cpp-python. It is an optional dependency."""

import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from langchain_mara.exceptions import LoadingError

_LOGGER = "llama-cpp-python"
_ERROR = 4  # level of errors in ggml.h
_loading = threading.Lock()


@cache
def library() -> Any:
    """The module `llama_cpp`, ready for use. It stays silent unless the user has set the level of its logger.

    Raises:
        LoadingError: If llama-cpp-python is not installed.
    """
    logger = logging.getLogger(_LOGGER)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    try:
        import llama_cpp  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise LoadingError(
            f"GGUF files run on llama.cpp, which is not installed ({error}). Run: "
            'pip install "langchain-mara[llamacpp]"'
        ) from None
    llama_cpp.llama_backend_init()
    return llama_cpp


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Collects what llama.cpp reports as errors meanwhile, instead of printing it."""
    llama_cpp, lines = library(), list[str]()

    def collect(level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            lines.append(" ".join(text.decode(errors="replace").split()))

    callback = llama_cpp.llama_log_callback(collect)
    with _loading:
        llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
        try:
            yield lines
        finally:
            llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p(0))  # noqa: SLF001

"""Digests of values by what they hold: plain values, arrays, weights, functions, classes and other objects.

A function counts by its code, constants, defaults, closure, and the functions and values it refers to; an object by
its class and its state. Code of libraries counts by its name and major version, so an upgrade of a dependency within a
major version changes nothing. Digests are the same in every process: they use no addresses, no paths of files, and no
line numbers.
"""

import copyreg
import dis
import enum
import functools
import hashlib
import importlib.util
import json
import logging
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path, PurePath
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from langchain_mara._base import LocalModel
from langchain_mara.policy.fingerprints import WeightsFingerprint
from langchain_mara.policy.packed_linear import named_weights

# Names, versions and addresses that objects of libraries keep among their attributes.
_VOLATILE = {
    "name_or_path", "_name_or_path", "transformers_version", "_commit_hash", "_sklearn_version", "_stop_words_id",
    "_attn_implementation_internal", "_abc_impl",
}  # fmt: skip
_OURS = ("langchain_mara", "langchain_mara_training")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), torch.dtype, torch.device)
_IN_C = (
    types.BuiltinFunctionType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
)
_WRAPPERS = (property, staticmethod, classmethod, functools.cached_property, functools._lru_cache_wrapper)  # noqa: SLF001

_fingerprints: WeakKeyDictionary[nn.Module, WeightsFingerprint] = WeakKeyDictionary()


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that depend on what a value holds, and are the same in every process.

    Raises:
        TypeError: If the value holds something whose state cannot be read, such as a lock or a connection.
        RecursionError: If it is nested too deeply.
    """
    return _Hasher().of(value).hex()[:16]


def _hash(*parts: Any) -> bytes:
    """A digest of parts that bytes or `repr` describe completely."""
    texts = [part if isinstance(part, bytes) else repr(part).encode() for part in parts]
    return hashlib.sha256(b"".join(len(text).to_bytes(8, "little") + text for text in texts)).digest()


def _library(module: str | None) -> str | None:
    """Name and major version of the library that a module belongs to; None for code of your own."""
    top = (module or "").partition(".")[0]
    if top == "__main__":  # its file may be the one of whatever runs it
        return None
    if top in sys.stdlib_module_names or top == "builtins":
        return "python"
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    if top not in _OURS and not {"site-packages", "dist-packages"} & set(Path(file).parts):
        return None
    try:
        return f"{top} {version(top.replace('_', '-')).partition('.')[0]}"
    except PackageNotFoundError:
        return f"{top} {str(getattr(sys.modules[top], '__version__', '')).partition('.')[0]}"


def _stable(state: Any) -> Any:
    """The state of a library's object without what is another one in every process or on every machine."""
    if not isinstance(state, dict):
        return state
    return {name: _stable(value) for name, value in state.items() if name not in _VOLATILE}


def _all_names(code: types.CodeType) -> Iterator[str]:
    """Names that a function and those inside it refer to, of globals and of attributes."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return chain(code.co_names, *map(_all_names, inner))


def _imported_sources(code: types.CodeType) -> Iterator[bytes]:
    """Digests of the files of your own that a function imports when it runs; importing them here might do harm."""
    for name in (step.argval for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"):
        try:
            found = None if _library(name) else importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        file = Path(found.origin) if found is not None and found.origin else None
        if file is not None and file.is_file() and not {"site-packages", "dist-packages"} & set(file.parts):
            yield hashlib.sha256(file.read_bytes()).digest()


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _is_member(name: str, value: Any) -> bool:
    """Whether an attribute of a class says what it computes; of Python's own attributes, only methods do."""
    is_special = name.startswith("__") and name.endswith("__")
    return name not in _VOLATILE and (not is_special or isinstance(value, types.FunctionType))


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All weights, and the buffers that a checkpoint would hold; those that are not loaded count by their shape."""
    kept = {
        f"{prefix}.{name}"
        for prefix, inner in module.named_modules()
        for name in inner._buffers.keys() - inner._non_persistent_buffers_set  # noqa: SLF001
    }
    buffers = ((name, tensor) for name, tensor in module.named_buffers() if f".{name}" in kept or name in kept)
    for name, tensor in chain(named_weights(module), buffers):
        yield name, torch.zeros(0) if tensor.is_meta else tensor


class _Hasher:
    """Digests of values, by what they hold. An object inside itself counts as its depth."""

    def __init__(self) -> None:
        self._done: dict[int, bytes] = {}
        self._active: dict[int, int] = {}
        self._kept: list[Any] = []  # an id is free again when its object is gone

    def of(self, value: Any, name: str = "") -> bytes:
        """The digest of a value; `name` says in an error where it was."""
        if type(value) in _PLAIN or isinstance(value, PurePath):
            return _hash(type(value).__name__, repr(value))
        key = id(value)
        if key in self._active:
            return _hash("cycle", self._active[key])
        if key not in self._done:
            self._active[key] = len(self._active)
            self._kept.append(value)
            try:
                self._done[key] = _hash(*self._parts(value))
            except TypeError as error:
                raise error if not name else TypeError(f"{name}: {error}") from None
            finally:
                del self._active[key]
        return self._done[key]

    def _parts(self, value: Any) -> Iterable[Any]:
        """What a value consists of."""
        for kinds, parts in self._KINDS:
            if isinstance(value, kinds):
                return parts(self, value)
        return self._object(value)

    def _sequence(self, value: Iterable[Any]) -> Iterable[Any]:
        return type(value).__name__, *map(self.of, value)

    def _set(self, value: Iterable[Any]) -> Iterable[Any]:
        return "set", *sorted(map(self.of, value))

    def _mapping(self, value: Mapping[Any, Any]) -> Iterable[Any]:
        return "mapping", *sorted(self.of(key) + self.of(item, str(key)) for key, item in value.items())

    def _array(self, value: Any) -> Iterable[Any]:
        content = self.of(value.tolist()) if value.dtype == object else np.ascontiguousarray(value).tobytes()
        return "array", value.dtype, value.shape, content

    def _tensor(self, value: Tensor) -> Iterable[Any]:
        return "tensor", WeightsFingerprint().of(nn.Module(), [("", value)])

    def _function(self, value: types.FunctionType) -> Iterable[Any]:
        if len(self._active) > 1 and _library(value.__module__) and value.__closure__ is None:
            return self._named(value)
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        closure = [self.of(cell.cell_contents, name) for name, cell in cells if _is_filled(cell)]
        names = set(_all_names(value.__code__))
        found = sorted(name for name in names if name in value.__globals__)
        used = [(name, self._reference(value.__globals__[name], name, names)) for name in found]
        return "function", *map(self.of, (value.__code__, value.__defaults__, value.__kwdefaults__)), *closure, *used

    def _reference(self, value: Any, name: str, names: set[str]) -> bytes:
        """A value that a function refers to. Of a module, only what has one of the names counts."""
        if not isinstance(value, types.ModuleType) or _library(value.__name__):
            return self.of(value, name)
        members = sorted(member for member in names if member in vars(value))
        return _hash("module", *(self._reference(vars(value)[member], member, names - {member}) for member in members))

    def _code(self, value: types.CodeType) -> Iterable[Any]:
        numbers = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        imported = _imported_sources(value)
        return "code", value.co_code, value.co_exceptiontable, self.of(value.co_consts), *numbers, *names, *imported

    def _method(self, value: types.MethodType) -> Iterable[Any]:
        return "method", self.of(value.__self__), self.of(value.__func__)

    def _partial(self, value: functools.partial[Any]) -> Iterable[Any]:
        return "partial", *map(self.of, (value.func, value.args, value.keywords))

    def _wrapper(self, value: Any) -> Iterable[Any]:
        names = ("fget", "func", "__wrapped__")
        return type(value).__name__, self.of(next(getattr(value, name) for name in names if hasattr(value, name)))

    def _class(self, value: type) -> Iterable[Any]:
        library = _library(value.__module__)
        if library:
            return "class", value.__module__, value.__qualname__, library
        if issubclass(value, enum.Enum):
            return "enum", *(self.of((member.name, member.value)) for member in value)
        bases = [self.of(base) for base in value.__bases__]
        members = [(name, self.of(item, name)) for name, item in sorted(vars(value).items()) if _is_member(name, item)]
        return "class", *bases, *members

    def _named(self, value: Any) -> Iterable[Any]:
        """Something of a library, by its name and what it is bound to."""
        module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None) or ""
        owner = getattr(value, "__self__", None)
        bound = None if owner is None or isinstance(owner, types.ModuleType) else self.of(owner)
        return "named", module, getattr(value, "__qualname__", type(value).__name__), _library(module), bound

    def _module(self, value: nn.Module) -> Iterable[Any]:
        fingerprint = _fingerprints.setdefault(value, WeightsFingerprint()).of(value, _weights(value))
        settings = [self._settings(name, module) for name, module in value.named_modules()]
        return "network", fingerprint, *filter(None, settings)

    def _settings(self, name: str, module: nn.Module) -> bytes | None:
        """What a network computes beside its weights: a transformer's configuration, others' code and attributes."""
        library = _library(type(module).__module__)
        config = getattr(module, "config", None)
        if library and config is not None and hasattr(config, "to_dict"):
            return _hash(name, self.of(type(module)), self.of(_stable(config.to_dict()))) if not name else None
        if library and not type(module).__module__.startswith("torch."):
            return None
        own = {key: item for key, item in vars(module).items() if not key.startswith("_") and key != "training"}
        return _hash(name, self.of(type(module)), self.of(own))

    def _tokenizer(self, value: PreTrainedTokenizerBase) -> Iterable[Any]:
        backend = getattr(value, "backend_tokenizer", None)
        # Truncation and padding are set by each call.
        text = dict(value.get_vocab()) if backend is None else json.loads(backend.to_str())
        text = {name: item for name, item in text.items() if name not in ("truncation", "padding")}
        special = {name: str(token) for name, token in value.special_tokens_map.items()}
        return "tokenizer", *map(self.of, (text, special, getattr(value, "chat_template", None)))

    def _llm(self, value: LocalModel) -> Iterable[Any]:
        return "llm", self.of({name: getattr(value, name) for name in type(value).model_fields if name != "model_id"})

    def _object(self, value: Any) -> Iterable[Any]:
        """Any other object, by what pickle would keep of it."""
        try:
            registered = copyreg.dispatch_table.get(type(value))
            reduced = registered(value) if registered else value.__reduce_ex__(4)
        except Exception as error:  # an object's own method may raise anything
            raise TypeError(f"the state of a {type(value).__name__} cannot be read ({error})") from error
        if isinstance(reduced, str):
            return type(value).__name__, reduced
        make, arguments, state, items, pairs = [*reduced, None, None, None][:5]
        state = _stable(state) if _library(type(value).__module__) else state
        contents = (None if items is None else list(items), None if pairs is None else list(pairs))
        return "object", self.of(type(value)), *map(self.of, (make, arguments, state, *contents))

    _KINDS: tuple[tuple[Any, Callable[..., Iterable[Any]]], ...] = (
        (list | tuple, _sequence),
        (set | frozenset, _set),
        (dict | types.MappingProxyType, _mapping),
        (type, _class),
        (logging.Logger | types.ModuleType, _named),
        (_IN_C, _named),
        (types.FunctionType, _function),
        (types.CodeType, _code),
        (types.MethodType, _method),
        (functools.partial, _partial),
        (_WRAPPERS, _wrapper),
        (np.ndarray | np.generic, _array),
        (Tensor, _tensor),
        (nn.Module, _module),
        (PreTrainedTokenizerBase, _tokenizer),
        (LocalModel, _llm),
    )

"""Refuses models whose files name code to run: their own, a hub kernel, or a module to import.

Only small JSON files are read, before any weights are downloaded and before any library looks at the model.
"""

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name
from transformers.utils.hub import cached_file, has_file
from transformers.utils.import_utils import is_kernels_available

from langchain_mara.exceptions import LoadingError
from langchain_mara.untrusted import read_json

Config = Mapping[str, Any]

_FILES = (
    "config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
    "generation_config.json", "adapter_config.json",
)  # fmt: skip
_GENERATION_CODE = "custom_generate/generate.py"
# The only implementations that transformers has itself, on every machine. All others come from packages or the hub.
_ATTENTION = {None, "eager", "sdpa", "flex_attention"}
_EXPERTS = {None, "eager", "batched_mm", "grouped_mm"}
_IMPLEMENTATIONS = {
    "_attn_implementation": _ATTENTION,
    "attn_implementation": _ATTENTION,
    "_experts_implementation": _EXPERTS,
    "experts_implementation": _EXPERTS,
}
# Quantizations for which transformers downloads kernels if the package `kernels` is installed.
_WITH_KERNELS = {"eetq", "fbgemm_fp8", "fp8", "metal", "mxfp4", "mxfp8", "nvfp4"}
_OWN_LIBRARIES = {"transformers", "peft"}
_INSTEAD = "This library runs no code of models."


def refuse_code(source: str, hub: Mapping[str, Any] | None = None, attn_implementation: str | None = None) -> None:
    """Refuses a model, tokenizer or adapter that needs code from its files or from the hub.

    An `auto_map` beside an architecture and tokenizer that transformers has itself is ignored, like in transformers.

    Args:
        source: Folder or hub id.
        hub: `revision`, `token` and `local_files_only`.
        attn_implementation: Attention that the user asks for.

    Raises:
        LoadingError: If a file names code to run, is larger than 16 MiB, or is not JSON.
    """
    configs = {name: config for name in _FILES if (config := _read(source, name, hub or {}))}
    reasons = [*_own_code(configs), *_kernels(configs, attn_implementation), *_adapter_imports(configs)]
    if not reasons and has_file(source, _GENERATION_CODE, **(hub or {})):
        reasons = [f"it has its own {_GENERATION_CODE}, which transformers offers to run"]
    if reasons:
        raise LoadingError(f"{source} is refused, because {reasons[0]}. {_INSTEAD}")


def _read(source: str, name: str, hub: Mapping[str, Any]) -> Config:
    missing = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
    quiet = {f"_raise_exceptions_for_{kind}": value for kind, value in missing.items()}
    file = cached_file(source, name, **quiet, **hub)
    try:
        config = {} if file is None else read_json(Path(file), LoadingError)
    except LoadingError as error:
        raise LoadingError(f"Cannot load the model {source}: {error}") from None
    if not isinstance(config, dict):
        raise LoadingError(f"{file} holds no settings. Get the file from its author again.")
    return config


def _own_code(configs: Mapping[str, Config]) -> Iterator[str]:
    """Reasons to refuse classes in the model's own files."""
    model_type = configs.get("config.json", {}).get("model_type")
    for name, config in configs.items():
        classes = config.get("auto_map")
        if not classes:
            continue
        tokenizer_class = str(config.get("tokenizer_class") or configs.get("config.json", {}).get("tokenizer_class"))
        if name == "tokenizer_config.json" and tokenizer_class_from_name(tokenizer_class) is not None:
            continue
        known: Container[Any] = TOKENIZER_MAPPING_NAMES if name == "tokenizer_config.json" else CONFIG_MAPPING
        if model_type not in known:
            yield f"its {name} names its own code (auto_map: {str(classes)[:80]}), and transformers has none for it"
    custom = configs.get("generation_config.json", {}).get("custom_generate")
    if custom:
        yield f"its generation_config.json names code to generate with (custom_generate: {str(custom)[:80]})"


def _kernels(configs: Mapping[str, Config], attn_implementation: str | None) -> Iterator[str]:
    """Reasons to refuse kernels that would be downloaded and run."""
    if attn_implementation is not None and "/" in attn_implementation:
        yield f"attn_implementation={attn_implementation!r} is code from the hub; give sdpa or eager"
    for name, config in configs.items():
        for key, value in _settings(config):
            values = value.values() if isinstance(value, Mapping) else [value]
            for named in values if key in _IMPLEMENTATIONS else ():
                if not isinstance(named, str | None) or named not in _IMPLEMENTATIONS[key]:
                    yield f"its {name} names code to compute with ({key}: {str(named)[:80]}); remove {key} from it"
            if key == "kernel_config" and value:
                yield f"its {name} names kernels to download (kernel_config)"
    quantization = configs.get("config.json", {}).get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method in _WITH_KERNELS and is_kernels_available():
        yield f"its quantization ({method}) downloads kernels from the hub; uninstall the package kernels"


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values, those of nested configurations included."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            yield from value.items()
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _adapter_imports(configs: Mapping[str, Config]) -> Iterator[str]:
    """Reasons to refuse what an adapter would have PEFT import or load."""
    config = configs.get("adapter_config.json", {})
    classes = config.get("auto_mapping")
    library = str(classes.get("parent_library")) if isinstance(classes, Mapping) else str(classes)
    if classes and library.partition(".")[0] not in _OWN_LIBRARIES:
        yield f"its adapter_config.json names a module to import (auto_mapping: {library[:80]})"
    if config.get("megatron_config"):
        yield f"its adapter_config.json names a module to import (megatron_core: {config.get('megatron_core')})"
    if config.get("peft_type") == "XLORA":
        yield "its adapter_config.json names further adapters to load (XLORA)"

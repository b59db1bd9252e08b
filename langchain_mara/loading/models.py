"""Loads models, tokenizers and agents by name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
from pydantic import PlainValidator
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.agents.base import Agent
from langchain_mara.agents.kinds import agent_from_pretrained
from langchain_mara.agents.mixture import MixtureAgent, read_mixture_text
from langchain_mara.agents.reference_checkpoints import looks_local
from langchain_mara.exceptions import CheckpointError, LoadingError
from langchain_mara.loading.declared_code import refuse_code
from langchain_mara.loading.gguf import load_gguf, names_gguf
from langchain_mara.loading.peft_adapters import CONFIG_FILE, Adapter, find_adapter, merge_adapter
from langchain_mara.policy.llama_cpp.settings import LlamaCppSettings
from langchain_mara.policy.loaded_model import LoadedModel
from langchain_mara.policy.packed_linear import pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _checked_model(value: Any) -> Any:
    # Transformers takes seconds to import the class, and whoever has a model has imported it already.
    from transformers import PreTrainedModel as ModelClass  # noqa: PLC0415

    if not isinstance(value, ModelClass) and not hasattr(value, "new_policy"):
        is_name = isinstance(value, str | Path)
        raise ValueError(
            "should be an instance of PreTrainedModel" + (" (from_model_id loads one by its name)" if is_name else "")
        )
    return value


if TYPE_CHECKING:
    LoadedModelField = PreTrainedModel
else:
    LoadedModelField = Annotated[Any, PlainValidator(_checked_model)]
"""A loaded model as a field of pydantic's."""

AgentSource = Agent | str | Path
"""An agent, or what `load_agent` takes to find one."""

DEMO_MODEL_FOLDER = Path(__file__).parents[1] / "demo" / "model"
"""Folder of the bundled model."""
DEMO_AGENT_FOLDER = Path(__file__).parents[1] / "demo" / "agent"
"""Folder of the bundled model's agent."""
BUILT_IN_AGENTS_FOLDER = Path(__file__).parents[1] / "demo" / "agents"
"""Folder of the shipped agents for models that are not bundled, each in a folder of its name."""
_BUILT_IN = "builtin:"


def load_model(
    model_id: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    packed: bool = False,
    gguf_file: str | None = None,
) -> tuple["PreTrainedModel", PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer, without remote code.

    Args:
        model_id: Hub id or folder of a model, or of a PEFT adapter, which is merged into the base it names; or a GGUF
            file, as `load_gguf` takes it, of which only `device`, `revision` and the hub's options are read.
        device: Device such as `cuda`, `cuda:1` or `cpu`; by default CUDA if available.
        dtype: Dtype of the weights, such as `torch.bfloat16` or `"float32"`; by default the checkpoint's own, except
            that on the CPU float16 becomes float32, and so does bfloat16 where there is no AVX-512.
        device_map: Placement by Accelerate, such as `"auto"`, instead of `device`.
        revision: Branch, tag or commit on the hub. For an adapter this is its own revision, not the base's.
        quantization_config: Quantization settings of transformers.
        attn_implementation: `sdpa` or `eager`; by default the one that transformers prefers.
        token: Hub token for gated models.
        local_files_only: Whether to use local files only and never the network.
        packed: Whether to pack linear layers (`packed_linear.py`) where possible, which is on the CPU.
        gguf_file: Name of a GGUF file in the folder or repository, which transformers dequantizes.

    Raises:
        LoadingError: If the device is unknown, or model, adapter or tokenizer cannot be loaded.
    """
    if device is not None and device_map is not None:
        raise LoadingError("Give device or device_map, not both.")
    if names_gguf(model_id):
        settings = LlamaCppSettings(n_gpu_layers=0) if str(device) == "cpu" else None
        loaded: Any = load_gguf(model_id, settings, revision=revision, token=token, local_files_only=local_files_only)
        return cast("tuple[PreTrainedModel, PreTrainedTokenizerBase]", loaded)
    target = None if device_map is not None else resolve_device(device)
    hub = {"revision": revision, "token": token, "local_files_only": local_files_only}
    source = _model_source(model_id)
    options = {
        "dtype": None if dtype is None else resolve_dtype(dtype),
        "device_map": device_map if target is None else {"": target},
        "quantization_config": quantization_config,
        "attn_implementation": attn_implementation,
    }
    stored = {} if gguf_file is None else {"gguf_file": gguf_file}
    with _errors_as_loading_error(source):
        refuse_code(source, hub, attn_implementation)
        adapter = find_adapter(source, hub)
        if adapter is not None:
            model, tokenizer = _load_adapted(adapter, options, hub)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **stored, **hub)
            model = _load_weights(source, {**options, **stored}, hub)
        if packed:
            pack(model)
        LoadedModel.of(model).hub_options = {"token": token, "local_files_only": local_files_only}
        return model, tokenizer


def _load_adapted(
    adapter: Adapter, options: dict[str, Any], hub: dict[str, Any]
) -> tuple["PreTrainedModel", PreTrainedTokenizerBase]:
    """Loads the adapter's base, with the adapter merged, and the tokenizer: the adapter's own, or else the base's."""
    base_hub = {**hub, "revision": adapter.base_revision}
    try:
        base = _model_source(adapter.base)
        with _errors_as_loading_error(base):
            refuse_code(base, base_hub)
            _refuse_chain(base, adapter, base_hub)
        model: Any = _load_weights(base, options, base_hub)
    except LoadingError as error:
        raise LoadingError(
            f"The base model of the adapter {adapter.source} cannot be loaded. {error} If it is elsewhere, "
            f"change base_model_name_or_path in {adapter.folder / CONFIG_FILE}."
        ) from error
    tokenizer_source, tokenizer_hub = (str(adapter.folder), {}) if adapter.has_tokenizer else (base, base_hub)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, trust_remote_code=False, **tokenizer_hub)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    return merge_adapter(model, adapter), tokenizer


def _refuse_chain(base: str, adapter: Adapter, hub: dict[str, Any]) -> None:
    if find_adapter_config_file(base, **hub) is not None:
        raise LoadingError(
            f"The base {base} of the adapter {adapter.source} is an adapter. Merge it and save the result."
        )


def _load_weights(source: str, options: dict[str, Any], hub: dict[str, Any]) -> "PreTrainedModel":
    dtype = options["dtype"]
    with _errors_as_loading_error(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, trust_remote_code=False, **{**options, "dtype": dtype or "auto"}, **hub
        )
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:4])
        raise LoadingError(
            f"The checkpoint {source} lacks {len(report['missing_keys'])} of the model's weights ({missing}, …); "
            "they would be random. Download it again, or check that config.json belongs to this checkpoint."
        )
    if "gguf_file" in options:  # its weights are plain now, and would refuse to be packed or saved
        del model.hf_quantizer, model.config.quantization_config
    quantized = getattr(model, "is_quantized", False)  # those cannot be cast
    if dtype is None and model.device.type == "cpu" and _is_slow_on_cpu(model.dtype) and not quantized:
        model = model.float()
    return cast("PreTrainedModel", model)


def _is_slow_on_cpu(dtype: torch.dtype) -> bool:
    # With AVX2 but not AVX-512, products in bfloat16 take six times as long as in float32.
    return dtype is torch.float16 or (dtype is torch.bfloat16 and torch.backends.cpu.get_cpu_capability() == "AVX2")


@contextmanager
def _errors_as_loading_error(source: str) -> Iterator[None]:
    """Turns whatever the libraries raise into a `LoadingError` of one sentence that names the model."""
    try:
        yield
    except (torch.OutOfMemoryError, LoadingError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LoadingError(f"Cannot load the model {source}: {reason}") from error


def _model_source(model_id: str | Path) -> str:
    source = os.path.expanduser(model_id)  # noqa: PTH111 - a hub id must not become a path
    if looks_local(source) and not Path(source).is_dir():
        raise LoadingError(f"There is no folder {source}. Give a model's folder, or a hub id such as org/model.")
    return source


@lru_cache(maxsize=2)
def load_model_once(
    model_id: str,
    device: torch.device | str,
    dtype: torch.dtype | str,
    packed: bool = False,
    **hub: Any,
) -> tuple["PreTrainedModel", PreTrainedTokenizerBase]:
    """Loads like `load_model`, but keeps the last two models loaded and returns them again.

    Args:
        model_id: Hub id or folder.
        device: Device to load the model to.
        dtype: Dtype of the weights.
        packed: Whether to pack linear layers where possible.
        **hub: `revision`, `token` and `local_files_only` of `load_model`.
    """
    return load_model(model_id, device=device, dtype=dtype, packed=packed, **hub)


def load_agent(source: AgentSource | None, **hub: Any) -> Agent | None:
    """Loads an agent of any kind.

    Args:
        source: An agent, `builtin:` and the name of a shipped agent, a folder, a hub id, the path of a reference
            `.pth`, or `repo:file` on the hub; several of them with `+` between, such as `a+b`, `0.7*a+0.3*b`, `all:a+b`
            or `any:a+b`, for a `MixtureAgent`; None stays None.
        **hub: `token` and `local_files_only` for agents on the hub.

    Raises:
        CheckpointError: If the source does not hold a valid agent.
        AgentMismatchError: If agents cannot be mixed, because they are of different kinds or sizes.
        OptionsError: If the text of a mixture lacks a name, or its weights are all 0.
    """
    if source is None or isinstance(source, Agent):
        return source
    name = os.path.expanduser(source)  # noqa: PTH111
    mixed = read_mixture_text(str(source)) if isinstance(source, str) and not Path(name).exists() else None
    if mixed is not None:
        members = [agent for each in mixed.names if (agent := load_agent(each, **hub)) is not None]
        return MixtureAgent(members, mixed.weights, mixed.rule)
    if name.startswith(_BUILT_IN):
        return agent_from_pretrained(_built_in_folder(name.removeprefix(_BUILT_IN)))
    is_reference = name.endswith((".pth", ".pt")) or (":" in name and not Path(name).exists())
    return MaraAgent.from_reference(name, **hub) if is_reference else agent_from_pretrained(name, **hub)


def _built_in_folder(name: str) -> Path:
    names = sorted(folder.name for folder in BUILT_IN_AGENTS_FOLDER.iterdir())
    if name not in names:
        shipped = ", ".join(_BUILT_IN + each for each in names)
        raise CheckpointError(f"No agent named {_BUILT_IN}{name} is shipped. There are: {shipped}.")
    return BUILT_IN_AGENTS_FOLDER / name


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device to compute on, by default CUDA if available. A CUDA device always has its index.

    Raises:
        LoadingError: If this machine has no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    names = {str(torch.device(name)) for name in available} | {name.partition(":")[0] for name in available}
    if resolved is None or (resolved.type != "cpu" and str(resolved) not in names):
        raise LoadingError(f"There is no device {str(device)!r} here; available: {', '.join(available)}.")
    return torch.device("cuda", torch.cuda.current_device()) if str(resolved) == "cuda" else resolved


def resolve_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """The dtype to load weights in: one of PyTorch's, or `auto` for the checkpoint's own, which None means.

    Raises:
        LoadingError: If PyTorch has no such dtype.
    """
    if isinstance(dtype, str) and dtype != "auto":
        torch_dtype = getattr(torch, dtype, None)
        if not isinstance(torch_dtype, torch.dtype):
            raise LoadingError(f"There is no dtype {dtype!r}; try bfloat16, float16 or float32.")
        return torch_dtype
    return dtype or "auto"

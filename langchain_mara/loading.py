"""Model, tokenizer and agent by name: the only caller of `from_pretrained`."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from langchain_mara.agent import MaraAgent, looks_local
from langchain_mara.exceptions import LoadingError

AgentSource = MaraAgent | str | Path


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
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer, without remote code.

    Args:
        model_id: Hub id or folder.
        device: Such as `cuda`, `cuda:1` or `cpu`; by default CUDA where there is one.
        dtype: `torch.bfloat16`, `"float32"`, …; by default the checkpoint's own, but float32 in place of
            float16 on the CPU, which computes slowly in half precision.
        device_map: Accelerate's placement, such as `"auto"`; excludes `device`.
        revision: Branch, tag or commit on the hub.
        quantization_config: As transformers takes it.
        attn_implementation: `sdpa` or `eager`; by default what transformers prefers of these.
        token: Hub token for gated models.
        local_files_only: Never touch the network.

    Raises:
        LoadingError: If the device is unknown or model or tokenizer cannot be loaded.
    """
    if device is not None and device_map is not None:
        raise LoadingError("Give device or device_map, not both.")
    place = None if device_map is not None else resolve_device(device)
    hub = {"revision": revision, "token": token, "local_files_only": local_files_only}
    source = os.path.expanduser(model_id)  # noqa: PTH111 - a hub id must not become a path
    if looks_local(source) and not Path(source).is_dir():
        raise LoadingError(f"There is no folder {source}. Give a model's folder, or a hub id such as org/model.")
    chosen_dtype = _dtype(dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **hub)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            output_loading_info=True,
            dtype=chosen_dtype,
            device_map=device_map if place is None else {"": place},
            quantization_config=quantization_config,
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            **hub,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LoadingError(f"Cannot load the model {source}: {reason}") from error
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:4])
        raise LoadingError(
            f"The checkpoint {source} lacks {len(report['missing_keys'])} of the model's weights ({missing}, …); "
            "they would be random. Download it again, or check that config.json belongs to it."
        )
    if dtype is None and model.dtype is torch.float16 and model.device.type == "cpu":
        model = model.float()
    return model, tokenizer


@lru_cache(maxsize=2)
def load_model_once(
    model_id: str, device: torch.device | str, dtype: torch.dtype | str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As `load_model`; the two models asked for last stay loaded."""
    return load_model(model_id, device=device, dtype=dtype)


def load_agent(source: AgentSource | None) -> MaraAgent | None:
    """Resolves an agent: an object, a folder or hub id, a `.pth` path, or a hub `repo:file`.

    Raises:
        CheckpointError: If there is no valid agent.
    """
    if source is None or isinstance(source, MaraAgent):
        return source
    name = os.path.expanduser(source)  # noqa: PTH111
    is_reference = name.endswith((".pth", ".pt")) or (":" in name and not Path(name).exists())
    return MaraAgent.from_reference(name) if is_reference else MaraAgent.from_pretrained(name)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Where to compute; by default CUDA where there is one. Of CUDA always with its index.

    Raises:
        LoadingError: If there is no such device here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    known = {str(torch.device(name)) for name in available} | {name.partition(":")[0] for name in available}
    if place is None or (place.type != "cpu" and str(place) not in known):
        raise LoadingError(f"There is no device {str(device)!r} here; available: {', '.join(available)}.")
    return torch.device("cuda", torch.cuda.current_device()) if str(place) == "cuda" else place


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None:
        return "auto"
    if isinstance(dtype, str) and dtype != "auto":
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype):
            raise LoadingError(f"There is no dtype {dtype!r}; try bfloat16, float16 or float32.")
        return found
    return dtype

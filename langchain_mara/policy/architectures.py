"""What differs between model families: windows, context, logit scaling, and who cannot take part.

The engine needs attention that is told by a mask what to see and by position ids where tokens
stand. What violates this is refused by its configuration where that tells, and by comparing one
pass with a cache-free evaluation where it does not (`verify_siblings` in `probe.py`).
"""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.policy.attention.grouped_attention import attention_implementation

# Layers without attention (a feed-forward or expert layer of its own) need no mask.
_MASKLESS = {"moe", "mlp"}


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Refuses models that cannot work, as far as their configuration tells.

    Raises:
        UnsupportedModelError: With the reason.
    """
    config = model.config
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder model. MARA decodes causal language models: "
            "the states of its candidates come from one decoder."
        )
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or []) - _MASKLESS
    unknown = sorted(kinds - {"full_attention", "sliding_attention"})
    if getattr(model, "_is_stateful", False) or unknown:
        what = f"layers of type {', '.join(unknown)}" if unknown else "a recurrent state"
        raise UnsupportedModelError(
            f"{name} has {what}. Siblings need attention whose past is a set of keys and values that a "
            "mask can hide; a recurrent or linear-attention state cannot be shared between them."
        )
    if model.get_output_embeddings() is None:
        raise UnsupportedModelError(f"{name} has no language-model head; load it with AutoModelForCausalLM.")
    implementation = attention_implementation(text)
    if implementation not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"{name} runs attention implementation {implementation!r}, which takes no mask per sibling. "
            "Load the model with attn_implementation='sdpa' or 'eager'."
        )


def attention_windows(config: Any) -> dict[str, int | None]:
    """Window size by kind of layer, None for full attention."""
    window = getattr(config, "sliding_window", None)
    kinds = [kind for kind in (getattr(config, "layer_types", None) or []) if kind not in _MASKLESS]
    if not kinds:
        kinds = ["full_attention" if window is None else "sliding_attention"]
    return {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}


def context_length(config: Any) -> int | None:
    """Most positions the model can hold, or None where it names no limit.

    Dynamic rotary scalings change every position's angle with the longest row of a batch, so rows
    would no longer be independent: there the context ends where the scaling would begin.
    """
    longest = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        longest = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", longest
        )
    return None if longest is None else int(longest)


def scale_logits(config: Any, logits: Tensor) -> Tensor:
    """What some families do to logits after the head: soft-capping (Gemma 2), scaling (Cohere, Granite)."""
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = (logits / cap).tanh_().mul_(cap)
    return logits

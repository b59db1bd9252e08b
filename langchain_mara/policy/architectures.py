"""What differs between model families: attention windows, context length, logit scaling, and unsupported models.

Decoding needs attention that depends on nothing but a mask and position ids. Models that violate this are refused by
their configuration where it shows, and otherwise by comparing a pass over siblings with a cache-free evaluation
(`verification.verify_siblings`).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.policy.attention.masks import attention_implementation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Layer types without attention (a separate feed-forward or expert layer), which need no mask.
_MASKLESS = {"moe", "mlp"}


def refuse_unsupported(model: "PreTrainedModel") -> None:
    """Refuses models whose configuration shows that they cannot be decoded.

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
    layer_types = set(getattr(text, "layer_types", None) or []) - _MASKLESS
    unknown = sorted(layer_types - {"full_attention", "sliding_attention"})
    if getattr(model, "_is_stateful", False) or unknown:
        feature = f"layers of type {', '.join(unknown)}" if unknown else "a recurrent state"
        raise UnsupportedModelError(
            f"{name} has {feature}. Siblings need attention whose past is a set of keys and values that a "
            "mask can hide; a recurrent or linear-attention state cannot be shared between them. Use a model that "
            "has attention layers only."
        )
    if model.get_output_embeddings() is None:
        raise UnsupportedModelError(f"{name} has no language-model head; load it with AutoModelForCausalLM.")
    implementation = attention_implementation(text)
    if implementation not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"{name} runs attention implementation {implementation!r}, which does not take a mask per sibling. "
            "Load the model with attn_implementation='sdpa' or 'eager'."
        )


def attention_windows(config: Any) -> dict[str, int | None]:
    """Window size by layer type; None means full attention.

    Args:
        config: The configuration of the model's decoder.
    """
    window = getattr(config, "sliding_window", None)
    layer_types = [name for name in (getattr(config, "layer_types", None) or []) if name not in _MASKLESS]
    if not layer_types:
        layer_types = ["full_attention" if window is None else "sliding_attention"]
    return {name: window if name == "sliding_attention" else None for name in dict.fromkeys(layer_types)}


def context_length(config: Any) -> int | None:
    """Number of positions that the model can hold, or None if its configuration sets no limit.

    Dynamic rotary scaling changes the angle of every position with the longest row of a batch, so rows would depend on
    each other. For such models the context ends where scaling would begin.

    Args:
        config: The configuration of the model's decoder.
    """
    longest = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        longest = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", longest
        )
    return None if longest is None else int(longest)


def scale_logits(config: Any, logits: Tensor) -> Tensor:
    """Applies what some families do to logits after the head: soft-capping (Gemma 2), scaling (Cohere, Granite).

    Args:
        config: The configuration of the model's decoder.
        logits: Logits of any shape; they may be overwritten.
    """
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = (logits / cap).tanh_().mul_(cap)
    return logits


@torch.no_grad()
def output_embeddings(model: "PreTrainedModel") -> Tensor:
    """The (vocabulary, d) matrix that maps states to logits, in a float dtype, whatever the head stores.

    Args:
        model: The model; its head may be packed, quantized or offloaded.
    """
    size = int(model.config.get_text_config(decoder=True).hidden_size)
    head: Any = model.get_output_embeddings()
    weight = head.weight
    if weight.is_floating_point() and not weight.is_meta and weight.shape[-1] == size:
        return weight.detach()  # type: ignore[no-any-return]
    # A head is linear, so it maps the unit vectors to the columns of its matrix, and zero to its bias.
    units = torch.cat([torch.eye(size), torch.zeros(1, size)]).to(model.device, model.dtype)
    columns: Tensor = head(units)
    return (columns[:-1] - columns[-1]).T

"""The layer that computes logits in vLLM's models, which also leaves states and logits for the agent."""

from typing import Any

from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.serving.vllm_plugin.at_hand import AT_HAND


class StateLeavingLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """vLLM's layer, unchanged but for what it leaves behind.

    Every architecture of vLLM that generates text computes its logits in this layer, from states after the final norm,
    and hands it the head. So one class serves them all.
    """

    def forward(
        self,
        lm_head: nn.Module,
        hidden_states: Tensor,
        embedding_bias: Tensor | None = None,
        skip_gather: bool = False,
    ) -> Tensor | None:
        """See `LogitsProcessor`.

        Args:
            lm_head: The head, or this device's part of it.
            hidden_states: (rows, d) states, whole on every device.
            embedding_bias: Bias of the head.
            skip_gather: Whether the logits of this device's part are wanted.

        Returns:
            (rows, vocabulary) logits.
        """
        # By its name: vLLM's wrapper for LoRA calls this function with itself as `self`.
        logits: Tensor | None = LogitsProcessor.forward(self, lm_head, hidden_states, embedding_bias, skip_gather)
        if not skip_gather and not self.logits_as_input:
            AT_HAND.leave(hidden_states, logits, lambda: output_embeddings(lm_head, self.org_vocab_size))
        return logits


def output_embeddings(lm_head: Any, vocabulary: int) -> Tensor:
    """The (vocabulary, d) matrix of a head, gathered from all devices, in the order of the logits.

    Args:
        lm_head: The head, or this device's part of it.
        vocabulary: Number of tokens that have logits.

    Raises:
        UnsupportedModelError: If it is quantized.
    """
    if not isinstance(lm_head.quant_method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod):
        raise UnsupportedModelError(
            f"The head of this model is quantized ({type(lm_head.quant_method).__name__}), and a look-ahead agent "
            "reads its rows. Use a checkpoint whose head is not quantized; its other layers may be."
        )
    weight: Tensor = lm_head.weight
    # As the layer gathers logits: the parts one after the other, and only the last one is padded.
    whole = tensor_model_parallel_all_gather(weight, dim=0) if lm_head.tp_size > 1 else weight
    return whole[:vocabulary]


def register() -> None:
    """Makes vLLM use the layer; called by vLLM in each of its processes, any number of times.

    Raises:
        UnsupportedModelError: If another plugin has replaced the layer.
    """
    name = LogitsProcessor.__name__
    present = op_registry_oot.get(name)
    if present is None:
        LogitsProcessor.register_oot(name=name)(StateLeavingLogitsProcessor)
    elif present is not StateLeavingLogitsProcessor:
        raise UnsupportedModelError(
            f"{present.__module__}.{present.__qualname__} has replaced vLLM's layer {name} already, so states do not "
            "reach the agent. Run vLLM without that plugin: VLLM_PLUGINS=mara."
        )

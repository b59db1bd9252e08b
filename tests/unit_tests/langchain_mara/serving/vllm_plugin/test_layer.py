"""vLLM's layer: what it computes stays, and the head reaches the agent whole and unquantized."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from langchain_mara.exceptions import UnsupportedModelError
from langchain_mara.serving.vllm_plugin import layer as module
from langchain_mara.serving.vllm_plugin.layer import StateLeavingLogitsProcessor, output_embeddings, register

WEIGHT = torch.arange(24.0).view(8, 3)


def head(weight: Tensor = WEIGHT, devices: int = 1, method: Any = None) -> Any:
    return SimpleNamespace(weight=weight, tp_size=devices, quant_method=method or UnquantizedEmbeddingMethod())


def test_a_head_without_its_padding() -> None:
    assert torch.equal(output_embeddings(head(), 7), WEIGHT[:7])


def test_a_head_in_parts_is_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = WEIGHT.chunk(2)
    monkeypatch.setattr(module, "tensor_model_parallel_all_gather", lambda _, dim: torch.cat(parts, dim))
    for part in parts:
        assert torch.equal(output_embeddings(head(part, devices=2), 7), WEIGHT[:7])


def test_a_quantized_head_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="head of this model is quantized .SimpleNamespace."):
        output_embeddings(head(method=SimpleNamespace()), 7)


def test_registering_twice_is_registering_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(op_registry_oot, "LogitsProcessor", raising=False)
    register()
    register()
    assert op_registry_oot["LogitsProcessor"] is StateLeavingLogitsProcessor
    monkeypatch.setitem(op_registry_oot, "LogitsProcessor", LogitsProcessor)
    with pytest.raises(UnsupportedModelError, match="VLLM_PLUGINS=mara"):
        register()

"""Writes tiny models of transformers as GGUF files, with `gguf`'s writer, as llama.cpp's own converter does."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""Names of architectures in GGUF files by `model_type` of transformers."""
_LAYER_TENSORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    file: Path,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    **metadata: Any,
) -> Path:
    """Writes a model and its tokenizer.

    Args:
        model: A model of one of the `ARCHITECTURES`.
        tokenizer: Its tokenizer, a byte-level BPE.
        file: Where to.
        quantization: Type of all matrices but the norms; vectors stay in float32.
        **metadata: `eot` is the id of the token that ends a turn. With `tensors_per_file`, the model is written to
            several files, `name-00001-of-00003.gguf` and so on.
    """
    config = model.config
    writer = gguf.GGUFWriter(
        file, ARCHITECTURES[config.model_type], split_max_tensors=metadata.get("tensors_per_file", 0)
    )
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    name = quantization.name
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"])
    _add_tokenizer(writer, tokenizer, metadata.get("eot"))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = _permuted(name, tensor, config).float().numpy()
        raw_type = quantization if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(_name(name), gguf.quants.quantize(values, raw_type), raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _name(name: str) -> str:
    if name in _TENSORS:
        return _TENSORS[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_TENSORS[rest]}"


def _permuted(name: str, tensor: Tensor, config: Any) -> Tensor:
    """Queries and keys of the `llama` architecture, whose rotary dimensions lie side by side in GGUF files."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if part in name), None)
    if count is None or ARCHITECTURES[config.model_type] != "llama":
        return tensor
    return tensor.reshape(count, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, eot: int | None) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    texts = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    kinds = [gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL for i in range(len(texts))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(tokenizer.bos_token_id is not None)
    if eot is not None:
        writer.add_eot_token_id(eot)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def skip_without_llama_cpp() -> None:
    """Skips the test, or all that need the fixture, where llama.cpp is not installed."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make llamacpp")

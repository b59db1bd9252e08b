"""Tiny checkpoints that tests write: policy models and PKU's reward models, with the embedded model's tokenizer."""

from pathlib import Path
from typing import Any

import torch
from families import CONFIGS
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaModel

from langchain_mara.loading.models import DEMO_MODEL_FOLDER


def write_policy_model(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """A random checkpoint of a family, with other settings of its configuration."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_FOLDER)
    config = CONFIGS[family]()
    own = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config.update({**own, **changes})
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_beaver(folder: Path, seed: int) -> Path:
    """A random reward or cost model in the layout of beaver-7b."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_FOLDER)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaModel(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, initializer_range=0.4, **sizes))
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file({**tensors, "score_head.weight": torch.randn(1, 16)}, folder / "model.safetensors", {"format": "pt"})
    return folder

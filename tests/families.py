"""Tiny random models of the supported families, and an evaluation without cache or batch to compare with."""

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.agents.look_ahead import LookAheadAgent

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.4,
}
LLAMA_31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GPT = {
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": 97,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

CONFIGS = {
    "llama-3": lambda: hf.LlamaConfig(**SIZES),
    "llama-3.1": lambda: hf.LlamaConfig(**SIZES, rope_parameters=LLAMA_31_ROPE),
    "llama-3.2": lambda: hf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral-v0.1": lambda: hf.MistralConfig(**SIZES, sliding_window=6),
    "mistral-v0.3": lambda: hf.MistralConfig(**SIZES, sliding_window=None),
    "qwen-2": lambda: hf.Qwen2Config(**SIZES),
    "qwen-2-mixed": lambda: hf.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=2),
    "qwen-3": lambda: hf.Qwen3Config(**SIZES, head_dim=8),
    "gemma-2": lambda: hf.Gemma2Config(
        **SIZES, head_dim=8, sliding_window=6, final_logit_softcapping=30.0, attn_logit_softcapping=50.0
    ),
    "gemma-3": lambda: hf.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=6),
    "phi-3": lambda: hf.Phi3Config(**SIZES, sliding_window=6),
    "olmo-2": lambda: hf.Olmo2Config(**SIZES),
    "gpt-2": lambda: hf.GPT2Config(**GPT, initializer_range=0.4),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "gpt-j": lambda: hf.GPTJConfig(**GPT, rotary_dim=4, initializer_range=0.4),
    "mixtral": lambda: hf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen-3-moe": lambda: hf.Qwen3MoeConfig(
        **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "granite": lambda: hf.GraniteConfig(**SIZES, logits_scaling=3.0),
    "cohere": lambda: hf.CohereConfig(**SIZES, logit_scale=0.3),
}


def tiny_model(family: str, dtype: torch.dtype | None = None, seed: int = 0) -> PreTrainedModel:
    """A random model; float64 so that no decision is a matter of rounding (experts only know float32)."""
    torch.manual_seed(seed)
    if dtype is None:
        dtype = torch.float32 if family in ("mixtral", "qwen-3-moe") else torch.float64
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[family]())
    return model.to(dtype).eval()


def repeating_model(family: str = "llama-3") -> PreTrainedModel:
    """A random model whose answers soon repeat: mostly the last token decides which comes next."""
    model = tiny_model(family)
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "out_proj", "attn.c_proj", "attention.dense")):
            module.weight.data *= 0.15
    return model


def tiny_agent(hidden_size: int = 32, seed: int = 0, bias: float = 0.0) -> MaraAgent:
    """A random agent that rejects more the lower `bias` is; with states of the tiny models, +-100 decides alone."""
    torch.manual_seed(seed)
    agent = MaraAgent(hidden_size, width=16)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    with torch.no_grad():
        agent.output_linear.bias.copy_(torch.tensor([0.0, bias]))
    return agent.eval()


def tiny_look_ahead(hidden_size: int = 32, seed: int = 0, bias: float = 0.0, rank: int | None = 8) -> LookAheadAgent:
    """A random look-ahead agent that rejects more the lower `bias` is; +-100 decides alone."""
    torch.manual_seed(seed)
    agent = LookAheadAgent(hidden_size, width=16, rank=rank)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        agent.output_linear.bias.copy_(torch.tensor([0.0, bias]))
    return agent.eval()


@dataclass
class Expected:
    """What the cache-free evaluation says of one generation."""

    token_ids: list[int]
    candidates: list[list[int]]
    probabilities: list[list[float]]


@torch.inference_mode()
def cache_free(
    model: PreTrainedModel,
    agent: MaraAgent | None,
    prompt: list[int],
    *,
    top_k: int = 40,
    top_p: float = 0.95,
    max_new_tokens: int = 12,
    eos: int = 1,
) -> Expected:
    """First-accept decoding by the letter: a whole forward pass for every candidate, batch 1."""

    def run(ids: list[int]) -> tuple[Tensor, Tensor]:
        output = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        return output.hidden_states[-1][0, -1], output.logits[0, -1].float()

    ids = list(prompt)
    expected = Expected([], [], [])
    _, logits = run(ids)
    while len(expected.token_ids) < max_new_tokens:
        ranked = logits.log_softmax(-1).sort(descending=True)
        mass, kept = 0.0, []
        for token, share in zip(
            ranked.indices[:top_k].tolist(), ranked.values[:top_k].softmax(-1).tolist(), strict=True
        ):
            if kept and mass >= top_p:
                break
            kept.append(token)
            mass += share
        chosen, asked = None, []
        for token in kept if agent is not None and len(kept) > 1 else []:
            state, next_logits = run([*ids, token])
            asked.append(agent.accept_probability(state).item())
            if asked[-1] > 0.5:
                chosen = (token, next_logits)
                break
        if chosen is None:
            chosen = (kept[0], run([*ids, kept[0]])[1])
        expected.token_ids.append(chosen[0])
        expected.candidates.append(kept)
        expected.probabilities.append(asked)
        ids.append(chosen[0])
        logits = chosen[1]
        if chosen[0] == eos:
            break
    return expected


def decoding_threads() -> int:
    """Decoding threads alive; each ends when it has nothing left to do."""
    return sum(thread.name == "mara-decoding" for thread in threading.enumerate())


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Waits for what another thread does within a pass or so; garbage is collected meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not come true")
        gc.collect()
        time.sleep(0.01)

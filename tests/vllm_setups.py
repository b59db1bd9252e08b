"""Models and agents for vLLM and for this library at once, and what vLLM answers in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from families import tiny_look_ahead
from transformers import PreTrainedModel

from langchain_mara.agents.look_ahead import LookAheadAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel

ENGINE = Path(__file__).parent / "vllm_engine.py"
QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
PROCESSOR = "langchain_mara.serving.vllm_plugin.processor:MaraLogitsProcessor"
EOS = frozenset([1])
NEW_TOKENS, TOP_K = 24, 20
# Heads of 32, which is the smallest that vLLM's attention on a CPU knows.
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.12,
}
Batch = list[dict[str, Any]]


class Setup:
    """A model and an agent, saved for vLLM and loaded for this library."""

    def __init__(self, folder: Path, model: PreTrainedModel, agent: LookAheadAgent) -> None:
        self.folder, self.agent, self.policy = folder, agent, PolicyModel(model)
        agent.save_pretrained(folder / "agent")

    def ours(
        self, prompts: Sequence[Sequence[int]], options: Any, agents: Any = "same", eos: frozenset[int] = EOS
    ) -> list[list[int]]:
        """This library's answers, with options and agents (None for plain) of all prompts or of each."""
        agents = self.agent if agents == "same" else agents
        each_options = options if isinstance(options, list) else [options] * len(prompts)
        each_agent = agents if isinstance(agents, list) else [agents] * len(prompts)
        triples = zip(prompts, each_options, each_agent, strict=True)
        requests = [Request(prompt, chosen, agent, eos) for prompt, chosen, agent in triples]
        answers: dict[int, list[int]] = {id(request): [] for request in requests}
        self.changed = self.positions = 0
        for decision in decode(self.policy, requests, batch_size=16):
            answers[id(decision.request)].append(decision.token_id)
            self.changed += decision.index > 0
            self.positions += 1
        return [answers[id(request)] for request in requests]

    def vllm(self, batches: Sequence[Batch], model: Path | None = None, **engine: Any) -> list[Any]:
        """vLLM's results of batches; see `tests/vllm_engine.py`."""
        done = self.run(batches, model, **engine)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        result = json.loads((self.folder / "result.json").read_text())
        (self.folder / "result.json").unlink()
        self.preemptions: float = result["preemptions"]
        answers: list[Any] = result["batches"]
        return answers

    def run(
        self, batches: Sequence[Batch], model: Path | None = None, **engine: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs vLLM on batches, in a process of its own that has ended."""
        standard = {
            "model": str(model or self.folder / "model"),
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
            "kv_cache_memory_bytes": 2**26,
            "block_size": 32,
            "logits_processors": [PROCESSOR],
            "additional_config": {"mara": {"agent": str(self.folder / "agent")}},
            "skip_tokenizer_init": model is None,
        }
        job = {"engine": {**standard, **engine}, "batches": batches}
        (self.folder / "job.json").write_text(json.dumps(job))
        files = [self.folder / "job.json", self.folder / "result.json"]
        return subprocess.run(
            [sys.executable, ENGINE, *files],
            env={**os.environ, **QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )


def request(prompt: Sequence[int], aligned: bool = True, temperature: float = 0.0, **more: Any) -> dict[str, Any]:
    said = {"mara_top_k": TOP_K} if aligned else {"mara": 0}
    args = {**said, **more.pop("args", {})}
    params = {"temperature": temperature, "max_tokens": NEW_TOKENS, "extra_args": args, **more}
    return {"prompt": list(prompt), "params": params}


def tokens(batch: Any) -> list[list[int]]:
    assert isinstance(batch, list), batch
    return [answer["tokens"] for answer in batch]


def tiny(folder: Path, config: Any, bias: float = 2.0) -> Setup:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).float().eval()
    model.save_pretrained(folder / "model")
    return Setup(folder, model, tiny_look_ahead(64, seed=1, bias=bias))


def options(**more: Any) -> DecodingOptions:
    return DecodingOptions(**{"top_k": TOP_K, "max_new_tokens": NEW_TOKENS, **more})

"""vLLM with the plugin emits this library's tokens: real vLLM, on tiny random models and on SmolLM2.

Each engine runs once, in a process of its own (`tests/vllm_engine.py`), on batches that several tests look at.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from families import tiny_look_ahead
from transformers import PreTrainedModel

from langchain_mara.agents.look_ahead import LookAheadAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

pytestmark = pytest.mark.slow

ENGINE = Path(__file__).parents[1] / "vllm_engine.py"
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
FAMILIES = {
    "mistral": lambda: hf.MistralConfig(**SIZES, head_dim=32, sliding_window=None),
    "qwen-2": lambda: hf.Qwen2Config(**SIZES),
    "qwen-3": lambda: hf.Qwen3Config(**SIZES, head_dim=32),
    "gemma-2": lambda: hf.Gemma2Config(**SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=64),
    "gemma-3": lambda: hf.Gemma3TextConfig(**SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=64),
    "phi-3": lambda: hf.Phi3Config(**SIZES),
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
        quiet = {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        done = subprocess.run(
            [sys.executable, ENGINE, *files],
            env={**os.environ, **quiet},
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        result = json.loads(files[1].read_text())
        files[1].unlink()
        self.preemptions: float = result["preemptions"]
        answers: list[Any] = result["batches"]
        return answers


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


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return tiny(tmp_path_factory.mktemp("tiny"), hf.LlamaConfig(**SIZES))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """A hundred prompts that begin alike, which prefix caching sees."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(2, 300, (70,), generator=generator).tolist()
    lengths = torch.randint(3, 60, (100,), generator=generator).tolist()
    return [shared + torch.randint(2, 300, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(scope="module")
def expected(setup: Setup, prompts: list[list[int]]) -> list[list[int]]:
    """Every second prompt aligned, the others plain."""
    answers = setup.ours(prompts, options(), [setup.agent if i % 2 else None for i in range(len(prompts))])
    assert setup.changed > setup.positions / 10
    return answers


def mixed(prompts: Sequence[Sequence[int]], **more: Any) -> Batch:
    return [request(prompt, aligned=bool(i % 2), **more) for i, prompt in enumerate(prompts)]


VARIANTS = [
    options(top_k=top_k, top_p=top_p, accept_threshold=threshold, strategy=strategy, strength=0.7, fallback=fallback)
    for top_k, top_p, threshold, strategy, fallback in product(
        [5, 40], [0.5, 0.95], [0.2, 0.7], ["first-accept", "max-prob", "guided"], [0, -1]
    )
]
NAMES = ("top_k", "top_p", "accept_threshold", "strategy", "strength", "fallback")


def varied(prompt: Sequence[int], chosen: DecodingOptions) -> dict[str, Any]:
    return request(prompt, args={f"mara_{name}": getattr(chosen, name) for name in NAMES})


@pytest.fixture(scope="module")
def contested(setup: Setup, prompts: list[list[int]]) -> list[int]:
    """A prompt at whose first position the agent rejects the most probable candidate."""
    one = options(max_new_tokens=1)
    pairs = zip(prompts, setup.ours(prompts, one), setup.ours(prompts, one, None), strict=True)
    return next(prompt for prompt, aligned, plain in pairs if aligned != plain)


@pytest.fixture(scope="module")
def results(setup: Setup, prompts: list[list[int]], contested: list[int]) -> dict[str, Any]:
    """What one engine answers, by the name of the batch."""
    some = prompts[:10]
    batches = {
        "mixed": mixed(prompts),
        "again": mixed(prompts),
        "varied": [varied(prompt, chosen) for prompt, chosen in zip(prompts, VARIANTS, strict=False)],
        "prompt logs": mixed(some, prompt_logprobs=1, logprobs=1),
        "plain logs": [request(prompt, aligned=False, prompt_logprobs=1) for prompt in some],
        "gated": [request(prompt, args={"mara_entropy_gate": 3.0}) for prompt in some],
        "biased": [request(prompt, logit_bias={7: 100.0}) for prompt in some],
        "allowed": [request(prompt, allowed_token_ids=[9, 11, 13]) for prompt in some],
        "penalty": [request(some[0], repetition_penalty=1.2)],
        "plain penalty": [request(some[0], aligned=False, repetition_penalty=1.2)],
        "typo": [request(some[0], args={"mara_treshold": 0.2})],
        "drawn": [request(contested, temperature=0.8, max_tokens=1)] * 600,
        "weighed": [request(contested, temperature=0.8, max_tokens=1, args=WEIGHED)] * 600,
    }
    return dict(zip(batches, setup.vllm(list(batches.values())), strict=True))


WEIGHED = {"mara_strategy": "guided", "mara_strength": 0.6}


def test_a_hundred_prompts_plain_and_aligned_in_one_batch(results: dict[str, Any], expected: list[list[int]]) -> None:
    same = sum(got == wanted for got, wanted in zip(tokens(results["mixed"]), expected, strict=True))
    assert same >= 0.99 * len(expected)


def test_kept_prefixes_change_nothing(results: dict[str, Any]) -> None:
    assert tokens(results["again"]) == tokens(results["mixed"])
    assert all(answer["cached"] >= 70 // 32 * 32 for answer in results["again"])


def test_options_of_each_request(results: dict[str, Any], setup: Setup, prompts: list[list[int]]) -> None:
    count = len(results["varied"])
    assert count == 48
    wanted = setup.ours(prompts[:count], VARIANTS)
    assert sum(a == b for a, b in zip(tokens(results["varied"]), wanted, strict=True)) >= count - 1
    assert wanted != setup.ours(prompts[:count], options())


def test_log_probabilities_of_prompts(results: dict[str, Any]) -> None:
    assert tokens(results["prompt logs"]) == tokens(results["mixed"])[:10]
    for with_agent, without in zip(results["prompt logs"], results["plain logs"], strict=True):
        assert with_agent["prompt_logs"][1:] == pytest.approx(without["prompt_logs"][1:], abs=1e-4)
        assert all(-60 < log < 0 for log in with_agent["logs"])


def test_gates(results: dict[str, Any], setup: Setup, prompts: list[list[int]]) -> None:
    gated = options(gate={"kind": "entropy", "threshold": 3.0})
    assert tokens(results["gated"]) == setup.ours(prompts[:10], gated)


def test_masks_come_before_the_agent(results: dict[str, Any]) -> None:
    assert all(set(answer) == {7} for answer in tokens(results["biased"]))
    seen = Counter(token for answer in tokens(results["allowed"]) for token in answer)
    assert set(seen) <= {1, 9, 11, 13}
    assert len(seen) > 1


def test_refusals_reach_the_caller(results: dict[str, Any]) -> None:
    assert "repetition_penalty=1.2" in results["penalty"]
    assert "mara_treshold is unknown" in results["typo"]
    assert len(tokens(results["plain penalty"])[0]) > 0


@pytest.mark.parametrize(("name", "more"), [("drawn", {}), ("weighed", {"strategy": "guided", "strength": 0.6})])
def test_draws_have_this_librarys_distribution(
    name: str, more: dict[str, Any], results: dict[str, Any], setup: Setup, contested: list[int]
) -> None:
    drawn = [
        options(order="sampled", temperature=0.8, max_new_tokens=1, seed=seed, **more)
        for seed in range(len(results[name]))
    ]
    ours, plain = (
        Counter(token for [token] in setup.ours([contested] * len(drawn), drawn, agent))
        for agent in (setup.agent, None)
    )
    theirs = Counter(token for [token] in tokens(results[name]))
    assert len(ours) > 1
    # Two times 600 draws from one distribution over 20 tokens differ by 0.1 or less nearly always.
    assert distance(ours, theirs) < 0.15 < distance(ours, plain)


def distance(one: Counter[int], other: Counter[int]) -> float:
    """Share of draws by which two counts of as many draws differ."""
    return (one - other).total() / one.total()


def test_chunks_and_preemption_change_nothing(
    setup: Setup, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    few = {"max_num_batched_tokens": 32, "max_num_seqs": 16, "num_gpu_blocks_override": 24}
    [answers] = setup.vllm([mixed(prompts[:40])], enable_prefix_caching=False, disable_log_stats=False, **few)
    assert tokens(answers) == expected[:40]
    assert setup.preemptions > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_other_architectures(family: str, tmp_path: Path, prompts: list[list[int]]) -> None:
    setup = tiny(tmp_path, FAMILIES[family]())
    wanted = setup.ours(prompts[:12], options())
    assert setup.changed > 0
    [answers] = setup.vllm([[request(prompt) for prompt in prompts[:12]]])
    assert sum(a == b for a, b in zip(tokens(answers), wanted, strict=True)) >= 11


def test_two_devices_gather_the_head(setup: Setup, prompts: list[list[int]], expected: list[list[int]]) -> None:
    [answers] = setup.vllm([mixed(prompts[:12])], tensor_parallel_size=2)
    assert tokens(answers) == expected[:12]


def test_smollm2(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """A hundred prompts on a real model, and JSON that conforms to a regular expression."""
    model_module = pytest.importorskip("langchain_mara_training.demo.smollm2.model")
    folder = model_module.smollm2_folder()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    setup = Setup(tmp_path, model, tiny_look_ahead(576, seed=1, bias=BIAS_ON_SMOLLM2))
    verbs = ["boil", "sell", "open", "hide", "paint", "steal", "repair", "clean", "break", "weigh"]
    things = [
        "an egg",
        "a car",
        "a bank account",
        "my phone",
        "a door",
        "a knife",
        "a chair",
        "old coins",
        "wool",
        "tea",
    ]
    asked = [[{"role": "user", "content": f"How do I {verb} {thing}?"}] for verb, thing in product(verbs, things)]
    ids = [
        tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=True)["input_ids"] for each in asked
    ]
    eos = frozenset([model.config.eos_token_id])
    wanted = setup.ours(ids, options(), eos=eos)
    share = setup.changed / setup.positions
    assert 0.02 < share < 0.9
    promised = [{**request(each), "regex": r'\{"answer": "[a-z ]{1,20}"\}'} for each in ids[:4]]
    answers, formed = setup.vllm(
        [[request(each) for each in ids], promised], model=folder, kv_cache_memory_bytes=2**30, generation_config="vllm"
    )
    same = sum(got == want for got, want in zip(tokens(answers), wanted, strict=True))
    record_property("identical answers", same)
    record_property("share of tokens that the agent changed", share)
    assert same >= 0.99 * len(wanted)
    for answer in tokens(formed):
        assert tokenizer.decode(answer, skip_special_tokens=True).startswith('{"answer": "')


BIAS_ON_SMOLLM2 = 0.0

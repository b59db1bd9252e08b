"""vLLM with the plugin emits this library's tokens: real vLLM, on tiny random models and on SmolLM2.

Each engine runs once, in a process of its own (`tests/vllm_engine.py`), on batches that several tests look at.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from families import tiny_look_ahead
from vllm_setups import NEW_TOKENS, SIZES, Batch, Setup, options, request, tiny, tokens

from langchain_mara.options import DecodingOptions

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

pytestmark = pytest.mark.slow

FAMILIES = {
    "mistral": lambda: hf.MistralConfig(**SIZES, head_dim=32, sliding_window=None),
    "qwen-2": lambda: hf.Qwen2Config(**SIZES),
    "qwen-3": lambda: hf.Qwen3Config(**SIZES, head_dim=32),
    "gemma-2": lambda: hf.Gemma2Config(**SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=64),
    "gemma-3": lambda: hf.Gemma3TextConfig(**SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=64),
    "phi-3": lambda: hf.Phi3Config(**SIZES),
}


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
        "unended": [request(prompt, logit_bias={1: 100.0}, min_tokens=NEW_TOKENS) for prompt in some],
        "narrowed": [request(prompt, temperature=0.8, top_k=1) for prompt in some],
        "seeded": [request(contested, temperature=0.8, seed=seed) for seed in (3, 3, 4)],
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
    assert all(len(answer) == NEW_TOKENS and 1 not in answer for answer in tokens(results["unended"]))


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


def test_what_vllm_narrows_comes_after_the_agent(
    results: dict[str, Any], setup: Setup, prompts: list[list[int]]
) -> None:
    """The most probable accepted candidate is the one that greedy decoding emits."""
    assert tokens(results["narrowed"]) == setup.ours(prompts[:10], options())
    one, same, other = tokens(results["seeded"])
    assert one == same != other


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


def test_speculative_decoding_is_refused_by_name(setup: Setup, prompts: list[list[int]]) -> None:
    guessing = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    done = setup.run([mixed(prompts[:1])], speculative_config=guessing)
    assert done.returncode != 0
    assert "not supported when speculative decoding is enabled" in done.stdout + done.stderr


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

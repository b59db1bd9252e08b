"""What this library's own work costs a token on llama.cpp, by the size of the vocabulary.

A tiny random model whose passes cost next to nothing, so that the rest shows: cutting candidates, asking the agent, the
loop. Processor time of the decoding thread outside llama.cpp, medians of some repeats. Real passes leave nothing of
this library in the processor's caches, which makes it slower: `--file` measures a real model the same way.

    python benchmarks/vocabulary.py
    python benchmarks/vocabulary.py --file SmolLM2-135M-Instruct.Q4_1.gguf
"""

import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from backends import engine, overhead
from decoding import CoinAgent
from rich.table import Table
from tables import Output, publish
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from langchain_mara.agents.base import Agent
from langchain_mara.agents.look_ahead import LookAheadAgent
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.llama_cpp.model import LlamaCppModel
from langchain_mara.policy.llama_cpp.settings import LlamaCppSettings

_CELLS = 2048


def random_model(vocabulary: int, hidden: int, folder: Path) -> Path:
    """A GGUF file with a random model of one layer.

    Args:
        vocabulary: Size of its vocabulary.
        hidden: Size of its states.
        folder: Where to write.
    """
    from in_gguf import in_gguf  # noqa: PLC0415 - needs the package gguf

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=1, tie_word_embeddings=True, **sizes)
    return in_gguf(LlamaForCausalLM(config), _tokenizer(vocabulary), folder / f"random-{vocabulary}.gguf")


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """All bytes, and words that nobody writes."""
    known = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    known["!!"] = len(known)  # llama.cpp asks for a merge
    known |= {f"word{i}": i for i in range(len(known), vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=[("!", "!")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"word{vocabulary - 1}")


def main(
    vocabulary: Annotated[list[int], typer.Option(help="Size of the vocabulary; repeatable.")] = [49152, 151936],  # noqa: B006
    file: Annotated[Path | None, typer.Option(help="GGUF file of a model to measure instead.")] = None,
    hidden: Annotated[int, typer.Option(help="Size of a state.")] = 64,
    new_tokens: int = 64,
    repeats: int = 5,
    output: Output = None,
) -> None:
    """Measures and publishes the table."""
    table = Table("vocabulary", "system", "CPU ms/token", "candidates", title="One request, outside llama.cpp")
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [file] if file else [random_model(size, hidden, Path(folder)) for size in vocabulary]
        for each in files:
            model = LlamaCppModel(each, LlamaCppSettings(_CELLS, n_threads=torch.get_num_threads()))
            policy = model.new_policy()
            agents: dict[str, Agent | None] = {
                "no agent": None,
                "look-ahead": LookAheadAgent(policy.hidden_size).eval(),
                "state, half accepted": CoinAgent(policy.hidden_size).eval(),
            }
            # With one candidate nobody is asked, so what a token costs depends on the share of such positions.
            sets = {"as top_p=0.95 leaves them": {}, "40 each": {"top_p": 1.0}}
            for kept, options in sets.items():
                parsed = DecodingOptions.parse(max_new_tokens=new_tokens, min_new_tokens=new_tokens, **options)
                for name, agent in agents.items():
                    run = engine(policy, agent, [[*range(100, 116)]], parsed)
                    cost = [overhead(model, run) for _ in range(repeats + 1)][1:]
                    size = policy.vocabulary_size
                    table.add_row(f"{size:,}", name, f"{statistics.median(cost):.2f}", kept)
                    figures.append({"vocabulary": size, "system": name, "candidates": kept, "cost": cost})
    publish(table, output, figures)


if __name__ == "__main__":
    typer.run(main)

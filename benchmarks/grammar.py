"""What a grammar costs per token: the same loop with and without one, and the time that the grammar takes itself.

`(?s:.*)` allows every text. `schema` writes a list of records that a JSON schema describes. Answers with and without a
grammar differ, so times per token are compared, as medians of interleaved repeats. Times are CPU seconds of the
process, which other work on the machine changes little: run it with OMP_NUM_THREADS=1.

    python benchmarks/grammar.py --model demo --batch 1 --batch 8

The bundled model has 2,048 tokens, SmolLM2 49,152. A mask has a bit for each of them.
"""

import statistics
import time
from typing import Annotated, Any

import torch
import typer
from decoding import CoinAgent
from langchain_mara_training.demo.smollm2.model import smollm2
from rich.table import Table
from tables import Output, publish
from transformers import LlamaConfig, LlamaForCausalLM

from langchain_mara import MaraLLM
from langchain_mara.grammar.constraint import GrammarConstraint
from langchain_mara.grammar.engine import GrammarEngine
from langchain_mara.grammar.specification import GrammarFields, GrammarText, grammar_text
from langchain_mara.serving.completion import complete

_RECORD = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"enum": ["a", "b", "c"]}},
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
_LIST = {"type": "json_schema", "json_schema": {"schema": {"type": "array", "items": _RECORD, "minItems": 1000}}}
FORMS: dict[str, dict[str, Any]] = {"none": {}, "(?s:.*)": {"regex": "(?s:.*)"}, "schema": {"response_format": _LIST}}
_SHAPE: dict[str, Any] = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3,
}  # fmt: skip


def loaded(model: str, agent: bool) -> MaraLLM:
    """`demo`, `smollm2`, or `135m`: random weights of SmolLM2's depth and width, with the bundled tokenizer."""
    llm = smollm2(agent=None, device="cpu") if model == "smollm2" else MaraLLM.demo(agent=None, device="cpu")
    chosen: Any = llm.model
    if model == "135m":
        torch.manual_seed(0)
        vocabulary = llm.model.config.vocab_size
        config = LlamaConfig(**_SHAPE, vocab_size=vocabulary, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        chosen = LlamaForCausalLM(config).eval()
    judge = CoinAgent(chosen.config.hidden_size).eval() if agent else None
    return MaraLLM(model=chosen, tokenizer=llm.tokenizer, agent=judge, **({"accept_threshold": 0.5} if agent else {}))


def seconds_per_token(llm: MaraLLM, form: dict[str, Any], batch: int, new_tokens: int) -> float:
    """Seconds of a batch, divided by its tokens; width 4 and no kept prefixes, so that passes are alike."""
    lengths = (
        {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens} if not form else {"max_new_tokens": new_tokens}
    )
    how = llm._configured({**form, **lengths, "batch_size": batch, "width": 4, "prefix_memory": 0})  # noqa: SLF001
    prompts = [llm.encode(f"Describe number {i}.") for i in range(batch)]
    begun = [each for prompt in prompts for each in how._completions(prompt, None)]  # noqa: SLF001
    start = time.process_time()
    for _ in complete(how._generation_job(begun)):  # noqa: SLF001
        pass
    return (time.process_time() - start) / sum(each.statistics.tokens for each in begun)


def mask_seconds(llm: MaraLLM, form: dict[str, Any], text: str) -> list[float]:
    """Seconds that a grammar takes for each token of a text: mask, step, and whether it is complete."""
    grammar: GrammarText | None = grammar_text(GrammarFields(**form))
    if grammar is None:
        return [0.0]
    constraint, times = GrammarConstraint(GrammarEngine.of(llm.tokenizer), grammar, {2}), []
    tokens = llm.get_token_ids(text)
    for i in range(len(tokens)):
        start = time.process_time()
        constraint.allowed(tokens[:i])
        constraint.is_complete(tokens[: i + 1])
        times.append(time.process_time() - start)
    return times


def main(
    model: Annotated[str, typer.Option(help="`demo`, `smollm2` or `135m`.")] = "demo",
    batch: Annotated[list[int], typer.Option(help="Prompts per batch; repeatable.")] = [1, 8],  # noqa: B006
    agent: bool = True,
    new_tokens: int = 48,
    repeats: int = 5,
    output: Output = None,
) -> None:
    """Prints milliseconds per token, and the ratio to decoding without a grammar."""
    torch.set_flush_denormal(True)
    llm = loaded(model, agent)
    report = Table("grammar", "batch", "ms per token", "ratio", "µs of the grammar", title=f"a grammar's cost, {model}")
    record = '[{"name": "Ada", "age": 36, "tags": "a"}, {"name": "Bob and Eve", "age": 7, "tags": "b"}'
    engine = {name: statistics.median(mask_seconds(llm, form, record)) for name, form in FORMS.items()}
    measured = []
    for size in batch:
        times: dict[str, list[float]] = {name: [] for name in FORMS}
        for _ in range(repeats + 1):
            for name, form in FORMS.items():
                times[name].append(seconds_per_token(llm, form, size, new_tokens))
        for name in FORMS:
            pairs = zip(times[name][1:], times["none"][1:], strict=True)  # the first round warms up
            ratio, each = statistics.median(a / b for a, b in pairs), statistics.median(times[name][1:])
            report.add_row(name, str(size), f"{1e3 * each:.2f}", f"{ratio:.2f}", f"{1e6 * engine[name]:.0f}")
        measured.append({"batch": size, "seconds": times})
    publish(report, output, measured)


if __name__ == "__main__":
    typer.run(main)

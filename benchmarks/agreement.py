"""SmolLM2 with its agent on llama.cpp and on transformers: how often tokens agree, and whose answers are preferred.

Both answer held-out prompts of the human pairs, plain and with the shipped agent. Transformers runs the weights of the
package's file, dequantized to float32; llama.cpp runs the file, or a copy of it in another type.

    equal tokens     share of places in two answers to a prompt that hold the same token
    equal answers    share of answers that are equal to their end
    equal decisions  share of equal tokens among those that follow equal texts, so that one difference counts once

The reward is the shipped one, fitted to the pairs that the agent learned from. The judge, an independent one, is that
of `real.py`; it is left out where that has not run.

    python benchmarks/agreement.py --file SmolLM2-135M-Instruct.Q4_1.gguf
"""

import tempfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from backends import in_types, smollm2_file
from langchain_mara_training import Decoding, Preference, StateReward
from langchain_mara_training.data.readers import Row
from langchain_mara_training.demo.smollm2.model import smollm2
from langchain_mara_training.demo.smollm2.own_answers import NEW_TOKENS
from langchain_mara_training.demo.smollm2.pairs import split_pairs
from langchain_mara_training.demo.smollm2.side_by_side import AGENT, REWARD_FOLDER
from langchain_mara_training.generation.generate import GeneratedAnswer, score_answers
from real_judges import minilm
from rich.table import Table
from tables import RESULTS, Output, console, publish

from langchain_mara import MaraLLM

_TRANSFORMERS = "transformers, float32"
_KINDS = ("plain", "aligned")


class Agreement(NamedTuple):
    """Shares of what two systems have in common, in [0, 1].

    Attributes:
        tokens: Equal tokens at the same places; the places of the longer answer count.
        answers: Equal answers.
        decisions: Equal tokens after equal texts.
    """

    tokens: float
    answers: float
    decisions: float

    @classmethod
    def between(cls, ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> "Agreement":
        """Compares the token ids of answers to the same prompts."""
        pairs = list(zip(ours, theirs, strict=True))
        places = sum(max(len(own), len(other)) for own, other in pairs)
        equal = sum(a == b for own, other in pairs for a, b in zip(own, other, strict=False))
        same = sum([*own] == [*other] for own, other in pairs)
        common = sum(_common(own, other) for own, other in pairs)
        return cls(equal / places, same / len(pairs), common / (common + len(pairs) - same))


def _common(own: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens before the first difference."""
    return len([*takewhile(lambda both: both[0] == both[1], zip(own, other, strict=False))])


def answered(llm: MaraLLM, rows: Sequence[Row]) -> dict[str, list[GeneratedAnswer]]:
    """Plain and aligned answers to the prompts."""
    systems = {"plain": llm.with_agent(None), "aligned": llm}
    return {
        kind: [costed.answer for costed in Decoding(kind, system).answer(rows, [0] * len(rows))]
        for kind, system in systems.items()
    }


def main(
    file: Annotated[Path | None, typer.Option(help="GGUF file; by default the package's.")] = None,
    quantization: Annotated[list[str], typer.Option(help="Types of the weights; repeatable.")] = ["Q4_1"],  # noqa: B006
    prompts: Annotated[int, typer.Option(help="Number of prompts.")] = 100,
    batch: Annotated[int, typer.Option(help="Answers at a time on llama.cpp.")] = 1,
    new_tokens: int = NEW_TOKENS,
    folder: Annotated[Path, typer.Option(help="Folder of `real.py`, for its judge.")] = RESULTS / "real",
    output: Output = None,
) -> None:
    """Answers, compares and publishes two tables."""
    rows: list[Row] = [{"prompt": pair["prompt"]} for pair in split_pairs().test[:prompts]]
    options: dict[str, Any] = {"agent": AGENT, "max_new_tokens": new_tokens}
    theirs = smollm2(say=console.print, device="cpu", batch_size=32, width=2, **options)
    answers = {_TRANSFORMERS: answered(theirs, rows)}
    with tempfile.TemporaryDirectory() as work:
        source = file or smollm2_file(Path(work))
        for name, path in in_types(source, quantization, Path(work)):
            ours = MaraLLM.from_gguf(path, batch_size=batch, width=1, **options)
            answers[f"llama.cpp, {name}"] = answered(ours, rows)
    publish(*_agreements(answers, f"the same {prompts} answers of SmolLM2, {batch} at a time on llama.cpp", output))
    rewards = {"reward": StateReward.load(REWARD_FOLDER, theirs)}
    if (folder / "judge").exists():
        rewards["judge"] = StateReward.load(folder / "judge", str(minilm(folder)))
    publish(*_preferences(answers, rewards, rows, output))


def _agreements(
    answers: dict[str, dict[str, list[GeneratedAnswer]]], title: str, output: Path | None
) -> tuple[Table, Path | None, Any]:
    table = Table("backend", "decoding", *(f"equal {field}" for field in Agreement._fields), title=title)
    figures: list[dict[str, Any]] = []
    for backend in [name for name in answers if name != _TRANSFORMERS]:
        for kind in _KINDS:
            ids = ([answer.token_ids for answer in answers[each][kind]] for each in (backend, _TRANSFORMERS))
            agreement = Agreement.between(*ids)
            table.add_row(backend, kind, *(f"{share:.1%}" for share in agreement))
            figures.append({"backend": backend, "decoding": kind, **agreement._asdict()})
    return table, output, figures


def _preferences(
    answers: dict[str, dict[str, list[GeneratedAnswer]]],
    rewards: dict[str, StateReward],
    rows: Sequence[Row],
    output: Path | None,
) -> tuple[Table, Path | None, Any]:
    """Aligned answers over plain ones of the same backend, and aligned answers over those of transformers."""
    table = Table("aligned answers of", "over", *rewards, title="Preference rates with 95 % intervals")
    scores = {
        (backend, kind, name): score_answers(reward, rows, kinds[kind])
        for backend, kinds in answers.items()
        for kind in _KINDS
        for name, reward in rewards.items()
    }
    figures: list[dict[str, Any]] = []
    contests = [(backend, backend, "plain") for backend in answers]
    contests += [(backend, _TRANSFORMERS, "aligned") for backend in answers if backend != _TRANSFORMERS]
    for backend, other, kind in contests:
        rates = {
            name: Preference.between(scores[backend, "aligned", name], scores[other, kind, name]) for name in rewards
        }
        table.add_row(backend, f"{kind}, {other}", *map(_shown, rates.values()))
        figures.append({"of": backend, "over": [other, kind], **{name: each._asdict() for name, each in rates.items()}})
    return table, output, figures


def _shown(preference: Preference) -> str:
    if not np.isfinite(preference.rate):
        return "none scored"
    return f"{preference.rate:+.2f} ({preference.low:+.2f} to {preference.high:+.2f}), {preference.draws} draws"


if __name__ == "__main__":
    typer.run(main)

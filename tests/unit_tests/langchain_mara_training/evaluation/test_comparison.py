"""Comparisons: like with like, the same whatever the chunks and interruptions, summed up as by hand."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from families import tiny_agent
from langchain_mara_training.evaluation.comparison import Comparison, compare
from langchain_mara_training.evaluation.evaluate import best_of_n, decode_system
from langchain_mara_training.evaluation.reward_guided import RewardGuided
from langchain_mara_training.evaluation.systems import Aligner, BestOf, Decoding, System
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.callbacks import JobCallback, JobProgress

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError, OptionsError, TrainingError

PROMPTS = [
    "How do I boil an egg?", "How do I wash a car?", "How do I pick a lock?", "How do I boil an egg?",
    "I want to keep a lost wallet.",
]  # fmt: skip
ROWS = [{"prompt": prompt, "number": number} for number, prompt in enumerate(PROMPTS)]


def vowels(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


def short(completions: Sequence[str], number: Sequence[int], **_: Any) -> list[float | None]:
    """Says nothing of the second prompt."""
    return [None if n == 1 else -float(len(text)) for text, n in zip(completions, number, strict=True)]


def wordy(completions: Sequence[str], **_: Any) -> list[bool | None]:
    return [None if text.startswith("I") else text.count(" ") > 5 for text in completions]


REWARDS = WeightedRewards([vowels, short], [2.0, -1.0])


@pytest.fixture(scope="module")
def llm(demo_llm: MaraLLM) -> MaraLLM:
    return demo_llm.model_copy(update={"max_new_tokens": 8})


@pytest.fixture(scope="module")
def systems(llm: MaraLLM) -> list[System]:
    """One of each kind."""
    mara = llm.model_copy(update={"agent": tiny_agent(192)})
    sampled = llm.model_copy(update={"order": "sampled"})
    return [
        Decoding("plain", llm), Decoding("MARA", mara), Decoding("sampled / plain", sampled), BestOf(llm, vowels, 2),
        Aligner("aligner", llm, mara), RewardGuided(llm, vowels, candidates=3),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(systems: list[System], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all systems' comparison, finished; copy it before you change it."""
    folder = tmp_path_factory.mktemp("comparisons") / "whole"
    run(systems, folder)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Comparison:
    return Comparison.load(folder)


@pytest.fixture
def kept(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "kept"))


def stable(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """What must not depend on chunks: everything but what is shared among those decoded together."""
    left_out = {"passes", "seconds"}
    return {
        name: [answer.model_dump(exclude=left_out) for answer in answers]
        for name, answers in comparison.answers.items()
    }


def run(systems: Sequence[System], output: Path | None = None, **changes: Any) -> Comparison:
    return compare(systems, ROWS, REWARDS, output, **{"harmful": wordy, "chunk": 2, **changes})


@pytest.mark.slow
def test_a_folder_holds_what_is_returned(
    systems: list[System], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/mara", "evaluate", "my prompts.jsonl"])
    returned = run(systems[:2], tmp_path / "kept")
    loaded = Comparison.load(tmp_path / "kept")
    assert loaded.answers == returned.answers
    assert list(loaded.answers) == ["plain", "MARA"]
    assert (loaded.prompts, loaded.baseline, loaded.reward_names) == (PROMPTS, "plain", ["vowels", "short"])
    assert loaded.summaries() == returned.summaries()
    assert stable(run(systems[:2])) == stable(returned)
    config = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert config["rewards"] == {"vowels": 2.0, "short": -1.0}
    assert config["systems"]["MARA"]["agent"].split()[0] == tiny_agent(192).fingerprint
    assert {"torch", "langchain-mara"} <= set(config["versions"])
    assert config["command"] == "mara evaluate 'my prompts.jsonl'"


@pytest.mark.slow
def test_answers_are_the_systems_own_and_scored_one_by_one(whole: Comparison, llm: MaraLLM) -> None:
    assert [answer.completion for answer in whole.answers["plain"]] == llm.batch(PROMPTS)
    for answers in whole.answers.values():
        assert [answer.number for answer in answers] == list(range(5))
        texts = [answer.completion for answer in answers]
        scores = {"vowels": vowels(texts), "short": short(texts, range(5))}
        assert [answer.rewards for answer in answers] == [
            dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)
        ]
        assert [answer.harmful for answer in answers] == wordy(texts)
        assert all(answer.answer_tokens <= answer.tokens for answer in answers)
    assert sum(map(sum, (answer.accepted_index for answer in whole.answers["MARA"]))) > 0
    assert all(not answer.accepted_index for answer in whole.answers["plain"])


def test_costs_are_those_of_the_systems(llm: MaraLLM) -> None:
    comparison = run([Decoding("plain", llm), BestOf(llm, vowels, 2)], chunk=5)
    plain = decode_system(llm, ROWS, vowels, "plain")
    assert sum(answer.passes for answer in comparison.answers["plain"]) == pytest.approx(plain.passes)
    assert sum(answer.answer_tokens for answer in comparison.answers["plain"]) == plain.answer_tokens
    best = comparison.answers["best-of-2"]
    assert sum(answer.passes for answer in best) > sum(answer.passes for answer in comparison.answers["plain"])
    assert [answer.tokens for answer in best] == [16] * 5
    assert best_of_n(llm, ROWS, vowels, 2).tokens == 80


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_answers_do_not_depend_on_chunks(systems: list[System], whole: Comparison, chunk: int) -> None:
    assert stable(run(systems, chunk=chunk)) == stable(whole)


@pytest.mark.slow
def test_systems_draw_alike_and_prompts_do_not(llm: MaraLLM) -> None:
    sampled = llm.model_copy(update={"order": "sampled", "max_new_tokens": 16})
    twins = run([Decoding("plain", sampled), Decoding("twin", sampled.model_copy(update={"seed": 9}))])
    assert stable(twins)["plain"] == stable(twins)["twin"]
    assert twins.preference("twin", "plain")[:4] == (0, 5, 0, 0.0)
    texts = [answer.completion for answer in twins.answers["plain"]]
    assert texts[0] != texts[3]  # the same prompt twice
    other_seed = run([Decoding("plain", sampled)], random_state=1)
    assert [answer.completion for answer in other_seed.answers["plain"]] != texts


class ProcessEndedError(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_ends_the_same(
    systems: list[System], whole: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter([None] * 7)

    def failing(**given: Any) -> list[float]:
        if next(calls, ProcessEndedError) is ProcessEndedError:
            raise KeyboardInterrupt
        return vowels(**given)

    failing.name = "vowels"  # type: ignore[attr-defined]
    for function in (failing, vowels):
        monkeypatch.setattr(function, "version", "1", raising=False)
    with pytest.raises(KeyboardInterrupt):
        compare(systems, ROWS, WeightedRewards([failing, short], [2.0, -1.0]), tmp_path / "cut", harmful=wordy, chunk=2)
    with pytest.raises(TrainingError, match=r"In .*cut, plain has answered 4 of 5 prompts\. Compare again with the"):
        Comparison.load(tmp_path / "cut")
    lines = {file.name: file.read_bytes() for file in (tmp_path / "cut" / "answers").iterdir()}
    assert sorted(content.count(b"\n") for content in lines.values()) == [2] * 5 + [4]
    assert stable(run(systems, tmp_path / "cut")) == stable(whole)
    for name, content in lines.items():
        assert (tmp_path / "cut" / "answers" / name).read_bytes().startswith(content)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.99])
def test_half_a_line_is_dropped_and_nothing_before_it(
    systems: list[System], whole: Comparison, kept: Path, share: float
) -> None:
    file, untouched_file = (kept / "answers" / f"{name}.jsonl" for name in ("plain", "MARA"))
    content = file.read_bytes()
    cut = content[: int(share * len(content))]
    file.write_bytes(cut)
    lines = cut[: cut.rfind(b"\n") + 1]
    with pytest.raises(TrainingError, match=f"plain has answered {len(lines.splitlines())} of 5 prompts"):
        Comparison.load(kept)
    written = untouched_file.stat().st_mtime_ns
    assert stable(run(systems, kept)) == stable(whole)
    assert untouched_file.stat().st_mtime_ns == written
    assert file.read_bytes().startswith(lines)
    assert stable(Comparison.load(kept)) == stable(whole)


def test_a_finished_comparison_asks_nobody(systems: list[System], whole: Comparison, kept: Path, llm: MaraLLM) -> None:
    class Silent(Decoding):
        def answer(self, *_: Any) -> Any:
            raise ProcessEndedError

    silent = [Silent("plain", llm.model_copy(update={"model_id": "elsewhere"})), *systems[1:]]
    again = run(silent, kept, confidence=0.8)
    assert again.answers == whole.answers
    assert again.config["confidence"] == 0.8
    with pytest.raises(ProcessEndedError):
        run(silent)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"random_state": 1}, r"random_state \(0 there, 1 now\)"),
        ({"baseline": "MARA"}, r'baseline \("plain" there, "MARA" now\)'),
        ({"harmful": None}, r'harmful \("wordy" there, nothing now\)'),
        ({"facts": {"data": "other"}}, r'facts.data \(nothing there, "other" now\)'),
    ],
)
def test_another_configuration_is_refused(
    systems: list[System], kept: Path, changes: dict[str, Any], named: str
) -> None:
    before = {file: file.read_bytes() for file in kept.rglob("*.json*")}
    with pytest.raises(TrainingError, match=f"kept holds another comparison; different: {named}.* Give another folder"):
        run(systems, kept, **changes)
    assert {file: file.read_bytes() for file in kept.rglob("*.json*")} == before


@pytest.mark.slow
def test_other_systems_prompts_and_rewards_are_refused(systems: list[System], tmp_path: Path, llm: MaraLLM) -> None:
    kept = tmp_path / "kept"
    run(systems[:2], kept)
    with pytest.raises(TrainingError, match=r"different: systems.sampled / plain \(nothing there, {"):
        run(systems[:3], kept)
    stricter = llm.model_copy(update={"agent": tiny_agent(192), "accept_threshold": 0.75})
    with pytest.raises(TrainingError, match=r"different: systems.MARA.accept_threshold \(0.5 there, 0.75 now\)\."):
        run([systems[0], Decoding("MARA", stricter)], kept)
    steered = llm.model_copy(update={"agent": tiny_agent(192, seed=1)})
    with pytest.raises(TrainingError, match=r"different: systems.MARA.agent \("):
        run([systems[0], Decoding("MARA", steered)], kept)
    with pytest.raises(TrainingError, match=r"different: prompts.count \(5 there, 4 now\), prompts.digest"):
        compare(systems[:2], ROWS[:4], REWARDS, kept, harmful=wordy)
    with pytest.raises(TrainingError, match=r"different: rewards.short \(-1.0 there, nothing now\), rewards.vowels"):
        compare(systems[:2], ROWS, vowels, kept, harmful=wordy)


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["plain", "plain"], {}, "Each system needs a different name, but the names are 'plain', 'plain'."),
        (["plain", ""], {}, "Each system needs a different name"),
        (["a", "b"], {}, "The baseline 'plain' is none of the systems 'a', 'b'. Give the name of one."),
        (["plain"], {"chunk": 0}, "chunk=0 must be at least 1"),
        (["plain"], {"confidence": 1.0}, "confidence=1.0 must be between 0 and 1"),
        (["plain"], {"tolerance": -0.1}, "tolerance=-0.1 at least 0 and finite"),
        (["plain"], {"tolerance": math.nan}, "tolerance=nan at least 0 and finite"),
    ],
)
def test_what_makes_no_sense_is_refused(
    llm: MaraLLM, names: list[str], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionsError, match=message):
        run([Decoding(name, llm) for name in names], tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_another_vocabulary_is_read_as_text(llm: MaraLLM) -> None:
    tokenizer = type(llm.tokenizer).from_pretrained(llm.tokenizer.name_or_path)
    tokenizer.add_tokens(["something new"])
    other = Decoding("other", llm.model_copy(update={"tokenizer": tokenizer}))
    comparison = run([Decoding("plain", llm), other])
    plain, read = ([answer.divergence for answer in comparison.answers[name]] for name in ("plain", "other"))
    assert [answer.completion for answer in comparison.answers["other"]] == [
        answer.completion for answer in comparison.answers["plain"]
    ]
    assert read == pytest.approx(plain, rel=0.2)


def test_where_nothing_was_scored_there_is_nothing_to_say(llm: MaraLLM) -> None:
    pair = [Decoding("plain", llm), Decoding("twin", llm)]
    comparison = compare(pair, PROMPTS[:2], lambda completions: [None] * len(completions))
    summary = comparison.summaries()["twin"]
    assert [summary[name] for name in ("mean reward", "preference rate", "interval", "harmful share")] == [None] * 4
    assert math.isnan(comparison.preference("twin", "plain").rate)


def test_prompts_are_needed(llm: MaraLLM) -> None:
    with pytest.raises(DataError, match="row 0: prompt must be text"):
        compare([Decoding("plain", llm)], [{"text": "?"}], vowels)


class Watch(JobCallback):
    """Notes events, and stops the job after a number of prompts."""

    def __init__(self, last: int = -1) -> None:
        self.told: list[str] = []
        self.values: dict[str, float] = {}
        self.last = last

    def on_start(self, progress: JobProgress) -> None:
        self.told.append(f"start {progress.job} {progress.done}/{progress.total} {progress.unit}")

    def on_step(self, progress: JobProgress) -> None:
        self.told.append(f"step {progress.done}")
        self.values = progress.values
        if progress.done == self.last:
            progress.stop()

    def on_checkpoint(self, progress: JobProgress) -> None:
        self.told.append(f"checkpoint {progress.done}")

    def on_end(self, progress: JobProgress) -> None:
        self.told.append(f"end {progress.done} {progress.error!r}")


def test_callbacks_follow_a_comparison_and_stop_it(llm: MaraLLM, tmp_path: Path) -> None:
    two = [Decoding("plain", llm), Decoding("MARA", llm.model_copy(update={"agent": tiny_agent(192)}))]
    whole = Watch()
    comparison = run(two, callbacks=[whole])
    assert whole.told == ["start compare 0/5 prompts", "step 2", "step 4", "step 5", "end 5 None"]
    assert whole.values == {name: pytest.approx(comparison.rewards(name).mean()) for name in ("plain", "MARA")}
    stopped = run(two, tmp_path / "kept", callbacks=Watch(2))
    assert stopped.prompts == PROMPTS[:2]
    assert stable(stopped) == {name: answers[:2] for name, answers in stable(comparison).items()}
    assert stopped.summaries().keys() == {"plain", "MARA"}
    rest = Watch()
    assert stable(run(two, tmp_path / "kept", callbacks=rest)) == stable(comparison)
    assert rest.told == [
        "start compare 2/5 prompts", "step 4", "checkpoint 4", "step 5", "checkpoint 5", "end 5 None",
    ]  # fmt: skip
    with pytest.raises(OptionsError, match="inherits from JobCallback"):
        run(two, tmp_path / "none", callbacks=Watch)
    assert not (tmp_path / "none").exists()

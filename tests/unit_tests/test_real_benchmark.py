"""The parts of the benchmark of SmolLM2 that need no SmolLM2: rivals, detectors and figures, on the bundled model."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmark_scripts import benchmark
from langchain_mara_training import Decoding, compare
from langchain_mara_training.labeling.token_labels import TokenLabels

from langchain_mara import LookAheadAgent, MaraLLM, MixtureAgent

ROWS = [{"prompt": "How do I boil an egg?"}, {"prompt": [{"role": "user", "content": "How do I grow basil?"}]}]
SYSTEM = "You answer politely."


@pytest.fixture(scope="module")
def real() -> Iterator[ModuleType]:
    with benchmark("real") as script:
        yield script


@pytest.fixture(scope="module")
def llm() -> MaraLLM:
    return MaraLLM.demo(device="cpu", max_new_tokens=12)


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m very sorry to hear it.", True),
        ("As an AI, I have no opinion.", True),
        ("Boil it for eight minutes.", False),
        ("You can cannon-ball into the pool. " * 8 + "I'm sorry, I can't.", False),  # not at its beginning
    ],
)
def test_refusals(real: ModuleType, answer: str, refuses: bool) -> None:
    assert real.is_refusal(answer) is refuses


def test_repeated_four_grams_by_hand(real: ModuleType) -> None:
    # "a b c d" twice gives the grams abcd bcda cdab dabc abcd, of which one is repeated.
    assert real.repeated_share(["a b c d a b c d", "e f g h", "too short"]) == pytest.approx((1 / 5 + 0) / 2)
    assert real.repeated_share([]) == 0


def test_offensive_texts_are_elided(real: ModuleType) -> None:
    assert real.elided("Eggs  are\nfine.") == "Eggs are fine."
    assert real.elided("He was killed there.") == "*[elided, 4 words]*"


def test_a_system_prompt_is_read(real: ModuleType, llm: MaraLLM) -> None:
    (answer, _) = real.Prompted("prompted", llm, SYSTEM).answer(ROWS, [0, 0])
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ROWS[0]["prompt"]}]
    (by_hand,) = Decoding("plain", llm.with_agent(None)).answer([{"prompt": asked}], [0])
    assert answer.answer.token_ids == by_hand.answer.token_ids


def test_guidance_of_scale_one_is_the_system_prompt_alone(real: ModuleType, llm: MaraLLM) -> None:
    prompted = real.Prompted("prompted", llm, SYSTEM).answer(ROWS, [0, 0])
    guided = {scale: real.ContextGuided("guided", llm, SYSTEM, scale).answer(ROWS, [0, 0]) for scale in (1.0, 6.0)}
    ids = {scale: [answer.answer.token_ids for answer in answers] for scale, answers in guided.items()}
    assert ids[1.0] == [answer.answer.token_ids for answer in prompted]
    assert ids[6.0] != ids[1.0]


def test_figures_of_a_system_beside_plain(real: ModuleType, llm: MaraLLM, tmp_path: Path) -> None:
    def long(completions: list[str], **_: Any) -> list[float]:
        return [float(len(completion)) for completion in completions]

    def short(completions: list[str], **_: Any) -> list[float]:
        return [-float(len(completion)) for completion in completions]

    systems = [Decoding("plain", llm.with_agent(None)), Decoding("MARA labels, top-p 0.95", llm)]
    apart = [compare([system], ROWS, [long, short], harmful=short, baseline=system.name) for system in systems]
    beside = real._beside_plain(*apart)
    together = compare(systems, ROWS, [long, short], harmful=short)
    figures = real._figures(beside, beside, systems[1].name, tmp_path)
    assert figures["reward"] == together.preference(systems[1].name, "plain", "long").rate == -figures["judge"]
    tokens = [answer.answer_tokens for answer in together.answers[systems[1].name]]
    logs = {name: np.array([answer.divergence for answer in together.answers[name]]) for name in together.answers}
    plain_tokens = [answer.answer_tokens for answer in together.answers["plain"]]
    difference = np.average(logs[systems[1].name], weights=tokens) - np.average(logs["plain"], weights=plain_tokens)
    assert figures["perplexity"] == pytest.approx(np.exp(difference))
    assert figures["perplexity"] >= 1
    assert figures["harmful"] == 0
    assert real.perplexity(beside, "plain") == 1


def test_paces_are_compared_within_a_turn(real: ModuleType) -> None:
    seconds = iter([1.0, 2.0, 5.0, 2.5, 3.0, 6.0])  # plain and slow in three turns

    class Timed:
        def answer(self, rows: list[Any], _seeds: list[int]) -> list[Any]:
            share = next(seconds) / len(rows)
            return [SimpleNamespace(tokens=10, passes=3.0, seconds=share) for _ in rows]

    figures = real.paces({"plain": Timed(), "slow": Timed()}, ROWS, 3)
    assert figures["plain"] == pytest.approx((20 / 3, 1.0, 0.6))
    assert figures["slow"] == pytest.approx((8.0, 0.5, 0.6))


@pytest.fixture(scope="module")
def mixture() -> Iterator[ModuleType]:
    with benchmark("real_mixture") as script:
        yield script


def test_the_first_sentence_of_an_answer_is_preferred(mixture: ModuleType) -> None:
    question = [{"role": "user", "content": "How?"}]
    answers = ["1. Boil it for eight minutes. Then cool it.", "One sentence, and nothing after it.", "No end of it "]
    found = list(mixture._with_first_sentence([question] * 3, answers))
    assert found == [(question, "1. Boil it for eight minutes.", answers[0])]
    assert not list(mixture._with_first_sentence([question * 2], answers[:1])), "conversations are left out"


def test_figures_on_both_objectives(mixture: ModuleType, llm: MaraLLM) -> None:
    def long(completions: list[str], **_: Any) -> list[float]:
        return [float(len(completion)) for completion in completions]

    def short(completions: list[str], **_: Any) -> list[float]:
        return [-float(len(completion)) for completion in completions]

    llm = llm.model_copy(update={"max_new_tokens": 40})
    asked = [*ROWS, {"prompt": "How do I rob a bank?"}]
    comparison = compare([Decoding("plain", llm.with_agent(None)), Decoding("aligned", llm)], asked, [long, short])
    ends = llm.tokenizer.eos_token_id
    plain, aligned = (mixture.figures(comparison, name, ends) for name in ("plain", "aligned"))
    assert plain["reward"] == 0
    assert plain["perplexity"] == 1
    assert aligned["reward"] == -aligned["judge"] != 0
    lengths = [answer.answer_tokens for answer in comparison.answers["aligned"]]
    assert aligned["tokens"] == pytest.approx(sum(lengths) / 3)
    ended = [length < llm.max_new_tokens for length in lengths]
    assert aligned["finished"] == pytest.approx(100 * sum(ended) / 3)
    assert any(ended)


def test_weights_turn_from_one_objective_to_the_other(mixture: ModuleType, tmp_path: Path) -> None:
    agents = mixture.make_agents(LookAheadAgent(4, 8), LookAheadAgent(4, 8))
    mixed = {name: agent.weights for name, agent in agents.items() if isinstance(agent, MixtureAgent)}
    assert [mixed[f"concise, weight {weight}"] for weight in mixture.WEIGHTS] == [(0, w) for w in mixture.WEIGHTS]
    assert [mixed[f"both, weight {weight}"] for weight in mixture.WEIGHTS] == [(1, w) for w in mixture.WEIGHTS]
    mixture.picture({name: {"finished": 10, "reward": 0.1} for name in agents}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_blind_control_sees_the_state_alone() -> None:
    columns = [np.arange(6) for _ in range(8)]
    labels = TokenLabels(np.random.default_rng(0).normal(size=(6, 2 * 4 + 2)).astype(np.float16), *columns)
    rows = np.array([4, 1])
    with benchmark("real_pairs") as script:
        cut = script.blind(script.part(labels, rows))
    np.testing.assert_array_equal(cut.X, labels.X[rows, :4])
    assert cut.groups.tolist() == [4, 1]

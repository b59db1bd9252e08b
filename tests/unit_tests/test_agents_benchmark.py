"""The benchmark of kinds of agents: every row in one run, a selection of them, and shares that are those it names."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import typer
from benchmark_scripts import benchmark
from families import tiny_model

from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel

PROMPTS = [[5, 6, 7], [44, 3, 44, 3, 44]]


@pytest.fixture(scope="module")
def agents() -> Iterator[ModuleType]:
    with benchmark("agents") as script:
        yield script


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(tiny_model("llama-3"))


def test_all_rows_are_in_one_run(agents: ModuleType, policy: PolicyModel) -> None:
    runs = agents.systems(policy.model, policy, PROMPTS, 6, [50, 90])
    assert list(runs) == [
        "generate", "generate, packed", "look-ahead, 50 %", "look-ahead, 90 %", "mixture, 50 %", "state, 50 %",
        "state, 90 %", "state, trust gate, 50 %", "state, entropy gate, 50 %",
    ]  # fmt: skip
    passes = {}
    for name, run in runs.items():
        before = policy.passes
        assert run() == 6 * len(PROMPTS)
        passes[name] = policy.passes - before
    assert passes["look-ahead, 50 %"] == passes["look-ahead, 90 %"] == passes["mixture, 50 %"] == 6, (
        "the last token needs none"
    )
    assert passes["state, 50 %"] >= passes["state, 90 %"] >= 1 + 6


def test_rows_are_selected_by_a_part_of_their_name(agents: ModuleType) -> None:
    runs = dict.fromkeys(["generate", "generate, packed", "look-ahead, 50 %", "mixture, 50 %", "state, 70 %"])
    assert agents.selected(runs, None) == runs
    assert list(agents.selected(runs, ["mixture"])) == [*list(runs)[:3], "mixture, 50 %"]
    with pytest.raises(typer.BadParameter, match="No system is called 'gate'"):
        agents.selected(runs, ["state", "gate"])


@pytest.mark.parametrize("share", [50, 90])
def test_coins_accept_the_share_they_are_to(agents: ModuleType, policy: PolicyModel, share: int) -> None:
    chosen = DecodingOptions(
        top_k=40, top_p=1, max_new_tokens=50, accept_threshold=1 - share / 100, strategy="max-prob"
    )
    for name in ("look-ahead", "state"):
        agent = agents.make_agents(policy)[name]
        request = agents.Request(PROMPTS[0], chosen, agent)
        verdicts = [p for d in agents.decode(policy, [request], width=40) for p in d.accept_probabilities]
        assert len(verdicts) > 500
        accepted = sum(p > chosen.accept_threshold for p in verdicts) / len(verdicts)
        assert accepted == pytest.approx(share / 100, abs=0.08), name

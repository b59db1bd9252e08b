"""MixtureAgent: what it says by each rule, stacked or not, what it refuses, and saving and loading."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_agent, tiny_look_ahead
from safetensors.torch import load_file, save_file

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.agents.base import Agent
from langchain_mara.agents.kinds import agent_from_pretrained
from langchain_mara.agents.look_ahead import CandidatesAhead, LookAheadAgent
from langchain_mara.agents.mixture import MixtureAgent, read_mixture_text
from langchain_mara.exceptions import AgentMismatchError, CheckpointError, OptionsError

CPU = torch.device("cpu")


def other_width(ahead: bool) -> Agent:
    torch.manual_seed(9)
    return (LookAheadAgent(32, width=24, rank=4) if ahead else MaraAgent(32, width=24)).eval()


def members(ahead: bool, one_shape: bool) -> list[Agent]:
    make = tiny_look_ahead if ahead else tiny_agent
    alike = [make(seed=1), make(seed=2, bias=0.4)]
    return [*alike, make(seed=3) if one_shape else other_width(ahead)]


def candidates(count: int = 7) -> CandidatesAhead:
    torch.manual_seed(4)
    states = torch.randn(3, 32, dtype=torch.float64)
    rows, tokens = torch.arange(count) % 3, torch.randint(97, (count,))
    return CandidatesAhead(states, rows, tokens, -torch.rand(count) * 9, torch.rand(3) * 5)


def expected(each: torch.Tensor, rule: str, weights: list[float]) -> torch.Tensor:
    """By the letter, of (members, …) accept probabilities."""
    if rule == "product":
        accept = torch.stack([p**w for p, w in zip(each, weights, strict=True)]).prod(0)
        reject = torch.stack([(1 - p) ** w for p, w in zip(each, weights, strict=True)]).prod(0)
        return accept / (accept + reject)
    heard = torch.stack([p for p, w in zip(each, weights, strict=True) if w])
    return heard.min(0).values if rule == "all" else heard.max(0).values


@pytest.mark.parametrize("rule", ["product", "all", "any"])
@pytest.mark.parametrize("weights", [[0.7, 0.2, 1.5], [1.0, 0.0, 0.5]])
@pytest.mark.parametrize("action", [0, 1])
@pytest.mark.parametrize("one_shape", [True, False])
def test_state_agents_say_what_the_rule_makes_of_each(
    rule: Any, weights: list[float], action: int, one_shape: bool
) -> None:
    torch.manual_seed(0)
    mixed, states = MixtureAgent(members(False, one_shape), weights, rule), torch.randn(5, 3, 32, dtype=torch.float64)
    # In float64, where 1 - p of a sure agent is not 0.
    each = torch.stack([member(states).double().softmax(-1)[..., action] for member in members(False, one_shape)])
    wanted = expected(each, rule, weights).float()
    torch.testing.assert_close(mixed.accept_probability(states, action), wanted, atol=1e-5, rtol=1e-5)
    placed: Any = mixed.on_device(CPU)
    torch.testing.assert_close(placed.accept_probability(states, action), wanted, atol=1e-5, rtol=1e-5)
    if action == 1:
        torch.testing.assert_close(mixed(states).softmax(-1)[..., 1], wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - each[0]).abs().max() > 0.01


@pytest.mark.parametrize("rule", ["product", "all", "any"])
@pytest.mark.parametrize("action", [0, 1])
@pytest.mark.parametrize(("one_shape", "rank"), [(True, 8), (False, 8), (True, None)])
def test_look_ahead_agents_too(rule: Any, action: int, one_shape: bool, rank: int | None) -> None:
    torch.manual_seed(0)
    embeddings, asked, weights = torch.randn(97, 32), candidates(), [0.7, 0.2, 1.5]
    mixing = [tiny_look_ahead(seed=i, rank=None) for i in range(3)] if rank is None else members(True, one_shape)
    each = torch.stack([member.bind(embeddings).accept_probability(asked, action) for member in mixing])  # type: ignore[operator]
    placed: Any = MixtureAgent(mixing, weights, rule).bind(embeddings)
    wanted = expected(each, rule, weights)
    torch.testing.assert_close(placed.accept_probability(asked, action), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - each[0]).abs().max() > 0.01


def test_an_agent_mixed_with_itself_is_the_agent() -> None:
    agent, states = tiny_agent(seed=1), torch.randn(9, 32)
    for rule in ("product", "all", "any"):
        mixed = MixtureAgent([agent, agent, agent], rule=rule)  # type: ignore[arg-type]
        torch.testing.assert_close(mixed.accept_probability(states), agent.accept_probability(states))


def test_all_is_refused_by_any_and_any_is_accepted_by_one() -> None:
    always, never, states = tiny_agent(bias=100.0), tiny_agent(bias=-100.0), torch.randn(9, 32)
    verdicts = {rule: MixtureAgent([always, never], rule=rule).accept_probability(states) for rule in ("all", "any")}  # type: ignore[arg-type]
    assert verdicts["all"].max() < 1e-6
    assert verdicts["any"].min() > 1 - 1e-6
    assert MixtureAgent([always, never], [1, 0], "all").accept_probability(states).min() > 1 - 1e-6


def test_states_that_are_not_finite_are_nan() -> None:
    mixed: Any = MixtureAgent(members(False, one_shape=True)).on_device(CPU)
    states = torch.randn(2, 32)
    states[1, 3] = torch.nan
    assert mixed.accept_probability(states).isnan().tolist() == [False, True]


def test_a_placed_mixture_is_a_copy() -> None:
    for one_shape in (True, False):
        mixing, states = members(False, one_shape), torch.randn(4, 32)
        placed: Any = MixtureAgent(mixing).on_device(CPU)
        before = placed.accept_probability(states)
        with torch.no_grad():
            mixing[0].linear1.weight.mul_(-1)  # type: ignore[union-attr,operator]
        assert torch.equal(placed.accept_probability(states), before)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("one_shape", [True, False])
def test_saving_and_loading_keeps_every_bit_in_one_file(tmp_path: Path, ahead: bool, one_shape: bool) -> None:
    mixed = MixtureAgent(members(ahead, one_shape), [0.7, 0.0, 1.5], "all")
    mixed.save_pretrained(tmp_path)
    loaded = agent_from_pretrained(tmp_path)
    assert isinstance(loaded, MixtureAgent)
    assert loaded.fingerprint == mixed.fingerprint
    assert (loaded.weights, loaded.rule, loaded.judges) == ((0.7, 0.0, 1.5), "all", "before" if ahead else "after")
    assert [each.fingerprint for each in loaded.agents] == [each.fingerprint for each in mixed.agents]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["kind"], [each["kind"] for each in config["members"]]) == (
        "mixture",
        ["look-ahead" if ahead else "state"] * 3,
    )


def test_fingerprints_tell_weights_rules_and_members_apart() -> None:
    a, b, c = (tiny_agent(seed=seed) for seed in range(3))
    mixtures = [
        MixtureAgent([a, b]), MixtureAgent([a, c]), MixtureAgent([b, a]), MixtureAgent([a, b], [1, 1]),
        MixtureAgent([a, b], rule="all"),
    ]  # fmt: skip
    assert len({mixed.fingerprint for mixed in mixtures}) == len(mixtures)
    assert mixtures[0].weighted(1, 1).fingerprint == mixtures[3].fingerprint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    MixtureAgent(members(False, one_shape=True)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": None}, "lists no members"),
        (
            {"members": [{"kind": "langchain_mara.agents.agent"}]},
            "mixes an agent of kind 'langchain_mara",
        ),
        ({"members": [{"kind": "mixture"}]}, "mixes an agent of kind 'mixture'"),
        ({"members": [7]}, "mixes an agent of kind 7"),
        ({"members": [{"kind": "state", "hidden_size": 32, "layers": 3}]}, "not the configuration of an agent"),
        ({"members": []}, "no member of the mixture has the weight members.0"),
        ({"weights": [1.0]}, "should be 3 numbers"),
        ({"weights": [1.0, -1.0, 1.0]}, "should be 3 numbers"),
        ({"weights": "abc"}, "should be 3 numbers"),
        ({"rule": "import os"}, "should be one of product, all, any"),
    ],
)
def test_a_configuration_that_describes_no_mixture_is_refused(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=message):
        agent_from_pretrained(saved)


def test_weights_that_are_missing_or_not_finite_are_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    save_file({**weights, "members.7.ln.bias": torch.zeros(32)}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no member of the mixture has the weight members\.7\.ln\.bias"):
        agent_from_pretrained(saved)
    weights["members.1.linear1.bias"][0] = torch.nan
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="member 1: linear1.bias holds NaN"):
        agent_from_pretrained(saved)


def test_what_cannot_be_mixed_is_refused_with_the_reason() -> None:
    state, ahead = tiny_agent(), tiny_look_ahead()
    with pytest.raises(AgentMismatchError, match="judge after and before .* cannot be mixed.*Distill"):
        MixtureAgent([state, ahead])
    with pytest.raises(AgentMismatchError, match="size 32 and 16 cannot be mixed"):
        MixtureAgent([state, tiny_agent(16)])
    with pytest.raises(AgentMismatchError, match="cannot hold a MixtureAgent"):
        MixtureAgent([MixtureAgent([state, state]), state])
    with pytest.raises(OptionsError, match="at least two agents, not 1"):
        MixtureAgent([state])
    for weights in ([1.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(OptionsError, match="should be 2 numbers from 0 on"):
            MixtureAgent([state, state], weights)


def test_a_model_that_one_member_was_not_trained_on_is_refused() -> None:
    other = MaraAgent(32, width=16, policy_model="org/other", policy_sketch=[0.5] * 120)
    mixed = MixtureAgent([tiny_agent(), other])
    with pytest.raises(AgentMismatchError, match="trained on org/other"):
        mixed.check_fits(32, "here", torch.randn(97, 32))
    with pytest.raises(AgentMismatchError, match="size 32, but here gives 16"):
        mixed.check_fits(16, "here")


def test_options_that_all_members_recommend_are_recommended() -> None:
    agents = [MaraAgent(32, 16, recommended_options={"top_p": 0.8, "top_k": k}) for k in (20, 30)]
    assert MixtureAgent(agents).recommended_options == {"top_p": 0.8}
    assert MixtureAgent([*agents, tiny_agent()]).recommended_options == {}
    assert MixtureAgent(agents, recommended_options={"top_k": 9}).recommended_options == {"top_k": 9}


@pytest.mark.parametrize(
    ("text", "names", "weights", "rule"),
    [
        ("a+b", ["a", "b"], None, "product"),
        ("0.7*org/a+0.3*b", ["org/a", "b"], [0.7, 0.3], "product"),
        ("2*a + builtin:b", ["a", "builtin:b"], [2.0, 1.0], "product"),
        ("all:a+org/r:x.pth", ["a", "org/r:x.pth"], None, "all"),
        ("any:a+b+c", ["a", "b", "c"], None, "any"),
    ],
)
def test_mixtures_as_text(text: str, names: list[str], weights: list[float] | None, rule: str) -> None:
    read = read_mixture_text(text)
    assert read == (names, weights, rule)
    assert read_mixture_text(str(read)) == read


def test_text_of_one_agent_or_without_a_name() -> None:
    assert read_mixture_text("org/agents:actor.pth") is None
    for text in ("a+", "+", "all:+b"):
        with pytest.raises(OptionsError, match="a name is missing"):
            read_mixture_text(text)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_calibrated_mixture_keeps_its_record(tmp_path: Path, ahead: bool) -> None:
    mixture = MixtureAgent(members(ahead, one_shape=True), [0.5, 0.3, 0.2], "all")
    found = mixture.with_config(recommended_options={"accept_threshold": 0.4}, calibration={"target": "changed"})
    found.save_pretrained(tmp_path)
    loaded = agent_from_pretrained(tmp_path)
    assert loaded.calibration == {"target": "changed"}
    assert loaded.recommended_options == {"accept_threshold": 0.4}
    assert loaded.fingerprint == mixture.fingerprint
    assert mixture.calibration is None

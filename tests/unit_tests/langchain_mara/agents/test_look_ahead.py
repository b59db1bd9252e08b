"""LookAheadAgent: its table, what it refuses, saving and loading."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_look_ahead
from safetensors.torch import load_file, save_file

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.agents.look_ahead import (
    CandidatesAhead,
    LookAheadAgent,
    hidden_size_of_features,
    look_ahead_features,
)
from langchain_mara.exceptions import AgentMismatchError, CheckpointError


def candidates(count: int = 7, hidden_size: int = 32) -> CandidatesAhead:
    rows = torch.arange(count) % 3
    return CandidatesAhead(
        torch.randn(3, hidden_size, dtype=torch.float64), rows, torch.randint(97, (count,)), -torch.rand(count) * 9,
        torch.rand(3) * 5,
    )  # fmt: skip


@pytest.mark.parametrize("rank", [None, 1, 8])
@pytest.mark.parametrize("action", [0, 1])
def test_the_table_says_what_the_network_says(rank: int | None, action: int) -> None:
    agent, embeddings, asked = tiny_look_ahead(rank=rank), torch.randn(97, 32, dtype=torch.float64), candidates()
    bound = agent.bind(embeddings)
    assert bound.table.shape == (97, rank or 16)
    features = look_ahead_features(
        asked.states[asked.rows], embeddings[asked.token_ids], asked.log_probabilities, asked.entropies[asked.rows]
    )
    expected = agent(features).softmax(-1)[:, action]
    torch.testing.assert_close(bound.accept_probability(asked, action), expected, atol=1e-6, rtol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("part", ["states", "token_ids", "log_probabilities", "entropies"])
def test_it_reads_everything_that_is_known_of_a_candidate(part: str) -> None:
    bound, asked = tiny_look_ahead().bind(torch.randn(97, 32)), candidates()
    values = getattr(asked, part)
    changed = asked._replace(**{part: (values + 1) % 97 if part == "token_ids" else values.flip(0)})
    assert (bound.accept_probability(asked) - bound.accept_probability(changed)).abs().max() > 1e-3


def test_a_bound_agent_is_as_it_was_when_it_was_bound() -> None:
    agent, asked = tiny_look_ahead(), candidates()
    bound = agent.bind(torch.randn(97, 32))
    before = bound.accept_probability(asked)
    with torch.no_grad():
        agent.linear1.weight.mul_(-1)
    assert torch.equal(bound.accept_probability(asked), before)


def test_embeddings_of_another_size_are_refused() -> None:
    with pytest.raises(AgentMismatchError, match="size 32, and the policy model's have size 24"):
        tiny_look_ahead().bind(torch.randn(97, 24))


@pytest.mark.parametrize("rank", [None, 8])
def test_saving_and_loading_keeps_every_bit_and_no_table(tmp_path: Path, rank: int | None) -> None:
    agent = tiny_look_ahead(rank=rank)
    agent.bind(torch.randn(97, 32))
    agent.save_pretrained(tmp_path)
    loaded = LookAheadAgent.from_pretrained(tmp_path)
    assert loaded.fingerprint == agent.fingerprint
    assert (loaded.rank, loaded.hidden_size, loaded.width, loaded.training) == (rank, 32, 16, False)
    assert json.loads((tmp_path / "config.json").read_text())["kind"] == "look-ahead"
    assert "look-ahead" in (tmp_path / "README.md").read_text()
    weights = load_file(tmp_path / "model.safetensors")
    assert max(weight.numel() for weight in weights.values()) <= 32 * 16


def test_a_low_rank_keeps_the_agent_small() -> None:
    sizes = [sum(p.numel() for p in LookAheadAgent(4096, 1024, rank).parameters()) for rank in (64, None)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_look_ahead().save_pretrained(tmp_path)
    return tmp_path


def changed_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def changed_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 9}, "other names or shapes"),
        ({"rank": None}, "other names or shapes"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"width": 2**20}, "other names or shapes"),
        ({"width": 2**40}, "not that of a look-ahead agent"),
        ({"hidden_size": "32"}, "not that of a look-ahead agent|not the configuration"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    changed_config(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        LookAheadAgent.from_pretrained(saved)


def test_weights_that_are_missing_or_not_finite_are_refused(saved: Path) -> None:
    changed_weights(saved, lambda weights: weights["linear1.bias"].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=r"linear1.bias holds NaN"):
        LookAheadAgent.from_pretrained(saved)
    changed_weights(saved, lambda weights: weights.__delitem__("token_ln.bias"))
    with pytest.raises(CheckpointError, match="other names or shapes"):
        LookAheadAgent.from_pretrained(saved)


def test_each_class_refuses_the_other_kind_and_says_what_loads_it(saved: Path, agent_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="kind 'look-ahead', and MaraAgent is of kind 'state'.*load_agent"):
        MaraAgent.from_pretrained(saved)
    with pytest.raises(CheckpointError, match="kind 'state', and LookAheadAgent"):
        LookAheadAgent.from_pretrained(agent_folder)


def test_features_come_back_from_their_number_of_columns() -> None:
    features = look_ahead_features(torch.ones(2, 5), torch.zeros(2, 5), torch.full((2,), -1.0), torch.full((2,), 3.0))
    assert features[0].tolist() == [1.0] * 5 + [0.0] * 5 + [-1.0, 3.0]
    assert hidden_size_of_features(features.shape[1]) == 5
    for columns in (11, 2, 3):
        with pytest.raises(ValueError, match="2 d \\+ 2 columns"):
            hidden_size_of_features(columns)


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1"):
        LookAheadAgent(8, rank=0)
    with pytest.raises(ValueError, match="width >= 4"):
        LookAheadAgent(8, width=3)

"""MaraAgent: what it computes, and what survives saving and loading."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import tiny_agent
from torch.nn import functional

from langchain_mara import __version__
from langchain_mara.agents.agent import MaraAgent
from langchain_mara.exceptions import AgentMismatchError

REFERENCE_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", REFERENCE_DTYPES)
@pytest.mark.parametrize("shape", [(32,), (5, 32), (2, 3, 32), (0, 32)])
def test_scores_are_two_float32_numbers_per_state(agent: MaraAgent, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    states = torch.randn(shape, dtype=torch.float32).to(dtype)
    scores = agent(states)
    assert scores.shape == (*shape[:-1], 2)
    assert scores.dtype is torch.float32
    torch.testing.assert_close(scores, agent(states.float()), rtol=0, atol=0)


def test_scores_are_those_of_the_specified_network(agent: MaraAgent) -> None:
    states = torch.randn(7, 32)
    weights = agent.state_dict()
    hidden = functional.layer_norm(states, (32,), weights["ln.weight"], weights["ln.bias"])
    for layer in ("linear1", "linear2"):
        hidden = functional.linear(hidden, weights[f"{layer}.weight"], weights[f"{layer}.bias"]).clamp(min=0)
    expected = functional.linear(hidden, weights["output_linear.weight"], weights["output_linear.bias"])
    torch.testing.assert_close(agent(states), expected)


def test_action_one_is_accept_and_action_zero_its_complement(agent: MaraAgent) -> None:
    states = torch.randn(7, 32)
    accept = agent.accept_probability(states)
    torch.testing.assert_close(accept, agent(states).softmax(-1)[:, 1])
    torch.testing.assert_close(accept + agent.accept_probability(states, accept_action=0), torch.ones(7))
    assert accept.std() > 0.01


@pytest.mark.parametrize(("bias", "expected"), [(100.0, 1.0), (-100.0, 0.0)])
def test_bias_makes_an_agent_accept_always_or_never(bias: float, expected: float) -> None:
    accept = tiny_agent(bias=bias).accept_probability(torch.randn(50, 32))
    torch.testing.assert_close(accept, torch.full((50,), expected))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_states_that_are_not_finite_give_nan_and_leave_the_others_alone(agent: MaraAgent, bad: float) -> None:
    states = torch.randn(3, 32)
    expected = agent.accept_probability(states)
    states[1, 5] = bad
    accept = agent.accept_probability(states)
    assert accept.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(accept[[0, 2]], expected[[0, 2]])


def test_fit_is_checked_by_hidden_size_and_the_message_names_both_models() -> None:
    agent = MaraAgent(16, 8, policy_model="org/small")
    agent.check_fits(16, "any")
    expected = r"trained on org/small\) reads states of size 16, but org/large gives 32.*hidden size 32"
    with pytest.raises(AgentMismatchError, match=expected):
        agent.check_fits(32, "org/large")


def test_saving_and_loading_keeps_every_bit(agent: MaraAgent, agent_folder: Path) -> None:
    loaded = MaraAgent.from_pretrained(agent_folder)
    assert loaded.fingerprint == agent.fingerprint
    assert not loaded.training
    for name, weight in agent.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def test_config_holds_sizes_policy_model_and_version(tmp_path: Path) -> None:
    MaraAgent(8, 12, policy_model="org/model").save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "width": 12, "policy_model": "org/model", "library_version": __version__}
    expected = {**sizes, "kind": "state", "recommended_options": None, "policy_sketch": None, "calibration": None}
    assert json.loads((tmp_path / "config.json").read_text()) == expected
    loaded = MaraAgent.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in expected} == {**expected, "recommended_options": {}}


def test_a_copy_with_other_settings_keeps_the_rest_and_the_weights(tmp_path: Path) -> None:
    record = {"target": "changed", "interval": [0.1, 0.2]}
    agent = MaraAgent(8, 12, policy_model="org/model", policy_sketch=[1.0, 2.0])
    copy = agent.with_config(recommended_options={"accept_threshold": 0.3}, calibration=record)
    copy.save_pretrained(tmp_path)
    loaded = MaraAgent.from_pretrained(tmp_path)
    assert (loaded.calibration, loaded.recommended_options) == (record, {"accept_threshold": 0.3})
    assert (loaded.policy_model, loaded.policy_sketch, loaded.width) == ("org/model", [1.0, 2.0], 12)
    assert loaded.fingerprint == agent.fingerprint
    assert (agent.calibration, agent.recommended_options) == (None, {})
    with pytest.raises(ValueError, match="calibration must map names to values, not be a list"):
        agent.with_config(calibration=["changed"])


def test_version_of_the_maker_survives_loading(agent_copy: Path) -> None:
    config = json.loads((agent_copy / "config.json").read_text())
    (agent_copy / "config.json").write_text(json.dumps({**config, "library_version": "0.0.7"}))
    assert MaraAgent.from_pretrained(agent_copy).library_version == "0.0.7"


def test_folder_without_config_takes_sizes_from_the_weights(agent_copy: Path, agent: MaraAgent) -> None:
    (agent_copy / "config.json").unlink()
    assert MaraAgent.from_pretrained(agent_copy).fingerprint == agent.fingerprint


def test_reference_checkpoint_loads_bit_exactly(agent: MaraAgent, save_pth: Callable[..., Path]) -> None:
    loaded = MaraAgent.from_reference(str(save_pth()), policy_model="org/model")
    assert loaded.fingerprint == agent.fingerprint
    assert (loaded.hidden_size, loaded.width, loaded.policy_model) == (32, 16, "org/model")
    assert not loaded.training


def test_reference_checkpoint_saved_by_us_loads_again(save_pth: Callable[..., Path], tmp_path: Path) -> None:
    loaded = MaraAgent.from_reference(save_pth())
    loaded.save_pretrained(tmp_path / "again")
    assert MaraAgent.from_pretrained(tmp_path / "again").fingerprint == loaded.fingerprint


def test_half_precision_checkpoint_becomes_float32(agent: MaraAgent, save_pth: Callable[..., Path]) -> None:
    half = {name.replace(".", "__"): weight.half() for name, weight in agent.state_dict().items()}
    loaded = MaraAgent.from_reference(save_pth(**half))
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert loaded(torch.randn(2, 32)).dtype is torch.float32


def test_agents_of_the_reference_implementation_load(golden: Path) -> None:
    files = sorted((golden / "agents").glob("*.pth"))
    assert files
    for file in files:
        agent = MaraAgent.from_reference(file)
        assert agent.accept_probability(torch.randn(3, agent.hidden_size)).isfinite().all()


def test_fingerprint_changes_with_any_single_weight() -> None:
    original = tiny_agent().fingerprint
    assert re.fullmatch("[0-9a-f]{16}", original)
    for name in tiny_agent().state_dict():
        changed = tiny_agent()
        weight = changed.state_dict()[name].view(-1)
        weight[-1] = torch.nextafter(weight[-1], torch.tensor(torch.inf))
        assert changed.fingerprint != original, name


def test_fingerprint_ignores_everything_but_weights() -> None:
    original = tiny_agent()
    other = MaraAgent(32, 16, policy_model="elsewhere", library_version="0")
    assert other.fingerprint != original.fingerprint
    other.load_state_dict(original.state_dict())
    assert other.train().fingerprint == original.to("cpu").float().fingerprint

"""The update of soft actor-critic: the reference's, number by number, and what it must do besides."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from langchain_mara_training.reinforcement.actor_critic import (
    ActorCritic,
    Transitions,
    TwinCritics,
    UpdateOptions,
    make_critics,
)
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.agents.look_ahead import LookAheadAgent

Tensors = dict[str, Tensor]


def part(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def critics_of(reference: Tensors) -> Tensors:
    """The reference calls layer j of critic i `linear{i}{j}`."""
    critics = {name: tensor for name, tensor in reference.items() if name.startswith("ln.")}
    for i, critic in ((1, "first"), (2, "second")):
        for j, place in ((1, 0), (2, 2), (3, 4)):
            for kind in ("weight", "bias"):
                critics[f"{critic}.{place}.{kind}"] = reference[f"linear{i}{j}.{kind}"]
    return critics


@pytest.fixture
def recorded(golden: Path) -> tuple[dict[str, float], list[dict[str, float]], Tensors]:
    described = json.loads((golden / "sac_update.json").read_text())
    return described["options"], described["log"], load_file(golden / "sac_update.safetensors")


@pytest.mark.parity
def test_ten_steps_are_the_reference_s(recorded: tuple[dict[str, float], list[dict[str, float]], Tensors]) -> None:
    options, log, tensors = recorded
    before, after = part(tensors, "before/"), part(tensors, "after_one_update/")
    actor, critics = MaraAgent(16, 32), TwinCritics(16, 32)
    actor.load_state_dict(part(before, "actor/"))
    critics.load_state_dict(critics_of(part(before, "critic/")))
    learner = ActorCritic(actor, critics, UpdateOptions(initial_temperature=options["alpha"]))
    learner.targets.load_state_dict(critics_of(part(before, "target_critic/")))
    batches = [part(tensors, f"batch{i}/") for i in range(len(log))]
    steps = learner.update(
        Transitions(batch["state"], batch["action"], batch["reward"], batch["next_state"], batch["done"])
        for batch in batches
    )
    for step, expected in zip(steps, log, strict=True):
        measured = [step.critic, step.actor, step.temperature_loss, step.temperature, *step.values]
        names = ["critic loss", "actor loss", "alpha loss"]
        recorded_losses = [expected[f"reward_loss/{name}"] for name in names]
        recorded_losses += [expected[f"train/{name}"] for name in ("alpha", "predicted_q_value1", "predicted_q_value2")]
        assert measured == pytest.approx(recorded_losses, abs=1e-5)
    ends = {
        "actor/": actor.state_dict(),
        "critic/": critics.state_dict(),
        "target_critic/": learner.targets.state_dict(),
    }
    for prefix, weights in ends.items():
        reference = part(after, prefix)
        reference = reference if prefix == "actor/" else critics_of(reference)
        assert weights.keys() == reference.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, reference[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(learner.log_temperature.detach(), after["log_alpha"], atol=1e-5, rtol=0)


def make(seed: int = 0, **options: float) -> ActorCritic:
    torch.manual_seed(seed)
    return ActorCritic(MaraAgent(8, 16), TwinCritics(8, 16), UpdateOptions(**options))


def steps(count: int, seed: int = 1) -> Transitions:
    draw = torch.Generator().manual_seed(seed)
    states, following = torch.randn(2, count, 8, generator=draw)
    actions = torch.randint(2, (count,), generator=draw)
    # Accepting is right where the first number is above zero.
    rewards = (actions == (states[:, 0] > 0)).float()
    return Transitions(states, actions, rewards, following, torch.rand(count, generator=draw) < 0.5)


def test_critics_have_the_actor_s_shape() -> None:
    state, look_ahead = make_critics(MaraAgent(8, 16)), make_critics(LookAheadAgent(8, 16, 4))
    assert state(torch.randn(3, 8)).shape == look_ahead(torch.randn(3, 2 * 8 + 2)).shape == (2, 3, 2)


@pytest.mark.slow
def test_a_look_ahead_agent_learns_which_candidate_is_rewarded() -> None:
    torch.manual_seed(0)
    actor = LookAheadAgent(8, 16, 4)
    fast = UpdateOptions(discount=0.0, learning_rate_actor=3e-3, learning_rate_critic=3e-3)
    learner = ActorCritic(actor, make_critics(actor), fast)
    # Accepting is right where the first numbers of state and embedding add up to more than zero.
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randn(256, 18, generator=draw) for _ in range(400)]
    right = [batch[:, 0] + batch[:, 8] > 0 for batch in rows]
    for batch, accept in zip(rows, right, strict=True):
        actions = torch.randint(2, (256,), generator=draw)
        ends = torch.ones(256, dtype=torch.bool)
        learner.update([Transitions(batch, actions, (actions == accept).float(), batch, ends)])
    says = actor(rows[0]).softmax(-1)[:, 1] > 0.5
    assert (says == right[0]).float().mean() > 0.85


@pytest.mark.slow
def test_it_learns_which_action_is_rewarded() -> None:
    learner = make(discount=0.0, learning_rate_actor=3e-3, learning_rate_critic=3e-3)
    first, *_, last = learner.update([steps(256, seed) for seed in range(300)])
    assert last.critic < first.critic / 3
    fresh = steps(500, 1000)
    right = (learner.actor.accept_probability(fresh.states) > 0.5) == (fresh.states[:, 0] > 0)
    assert right.float().mean() > 0.9
    # The temperature holds the entropy near its target, in place of letting it fall to zero.
    share = learner.actor.accept_probability(fresh.states)
    entropy = torch.special.entr(share) + torch.special.entr(1 - share)
    assert 0.05 < float(entropy.mean().detach()) < math.log(2)


def test_what_stands_behind_the_end_has_no_say() -> None:
    batch = steps(64)._replace(done=torch.ones(64, dtype=torch.bool))
    learner, twin = make(), make()
    usual = learner.update([batch])
    assert usual == twin.update([batch._replace(next_states=torch.full((64, 8), torch.nan))])
    open_end = make().update([batch._replace(done=torch.zeros(64, dtype=torch.bool))])
    assert open_end[0].critic != usual[0].critic


def test_half_precision_states_are_read() -> None:
    batch = steps(64)
    half = batch._replace(states=batch.states.half(), next_states=batch.next_states.half())
    (exact,), (rounded,) = make().update([batch]), make().update([half])
    assert rounded.critic == pytest.approx(exact.critic, rel=1e-2)


def test_going_on_from_a_state_is_exact() -> None:
    whole, first = make(), make()
    whole.update([steps(32, 1), steps(32, 2)])
    first.update([steps(32, 1), steps(32, 2)])
    state = copy.deepcopy(first.state_dict())
    expected = whole.update([steps(32, 3)])
    resumed = make(seed=9)
    resumed.load_state_dict(state)
    assert resumed.update([steps(32, 3)]) == expected
    for name in ("actor", "critics", "targets"):
        resumed_weights, whole_weights = (getattr(learner, name).state_dict() for learner in (resumed, whole))
        assert all(torch.equal(resumed_weights[key], whole_weights[key]) for key in whole_weights)
    assert resumed.temperature == whole.temperature


@pytest.mark.parametrize("options", [{"discount": 1.1}, {"target_entropy": 1.0}, {"learning_rate": 1e-3}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        UpdateOptions(**options)

"""MaraClassifier(agent="look-ahead"): it learns from all that is known of a candidate, and decodes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training import MaraClassifier, PreferenceLabeler
from langchain_mara_training.fitting import networks
from sklearn.base import clone

from langchain_mara import LookAheadAgent, MaraLLM
from langchain_mara.exceptions import AgentMismatchError
from langchain_mara.policy.architectures import output_embeddings

SIZE = 6


def rows(count: int = 600) -> np.ndarray[Any, Any]:
    """Rows of `look_ahead_features`."""
    return np.random.default_rng(0).normal(size=(count, 2 * SIZE + 2)).astype(np.float32)


def classifier(**more: Any) -> MaraClassifier:
    fast = {"max_epochs": 40, "learning_rate": 0.01, "batch_size": 64, "dropout": 0, "input_dropout": 0}
    return MaraClassifier(**{"agent": "look-ahead", "width": 32, "rank": 4, "random_state": 0, **fast, **more})


@pytest.mark.parametrize(
    "column", [0, SIZE, 2 * SIZE, 2 * SIZE + 1], ids=["state", "token", "log-probability", "entropy"]
)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_it_learns_from_every_part(column: int, dropout: float) -> None:
    states = rows()
    # Both halves are normalized, so the first entry is compared with the second.
    y = (states[:, column] > (states[:, column + 1] if column < 2 * SIZE else 0)).astype(int)
    fitted = classifier(dropout=dropout, input_dropout=dropout).fit(states[:400], y[:400])
    assert fitted.score(states[400:], y[400:]) > 0.85
    agent = fitted.agent_
    assert isinstance(agent, LookAheadAgent)
    assert (agent.hidden_size, agent.width, agent.rank) == (SIZE, 32, 4)
    with torch.inference_mode():
        expected = agent(torch.from_numpy(states)).softmax(-1)[:, 1]
    np.testing.assert_allclose(fitted.predict_proba(states)[:, 1], expected, atol=1e-6)


def test_fits_repeat_resume_and_go_on(tmp_path: Path) -> None:
    states = rows(200)
    y = (states[:, 0] > states[:, SIZE]).astype(int)
    first = classifier(max_epochs=3, checkpoint_dir=tmp_path).fit(states, y)
    assert clone(first).set_params(checkpoint_dir=None).fit(states, y).agent_.fingerprint == first.agent_.fingerprint
    assert clone(first).fit(states, y).agent_.fingerprint == first.agent_.fingerprint
    went_on = classifier(max_epochs=1, warm_start=True).partial_fit(states, y, classes=[0, 1]).partial_fit(states, y)
    assert went_on.n_iter_ == 2
    with pytest.raises(AgentMismatchError, match="of kind look-ahead, not state"):
        went_on.set_params(agent="state").fit(states, y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": "before"}, "agent must be one of"),
        ({"rank": 0}, "rank must be a whole number of at least 1"),
        ({"rank": 2.5}, "rank must be a whole number"),
    ],
)
def test_parameters_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(**changes).fit(rows(20), np.arange(20) % 2)


@pytest.mark.parametrize("kind", ["state", "look-ahead"])
def test_every_weight_of_the_smallest_networks_is_initialized(kind: Any) -> None:
    """Their last layers have as many inputs as there are numbers, which begin with weights of zero."""
    agents = [networks.make_agent_of(kind, 2 * SIZE + 2, 8, 2) for _ in range(2)]
    for agent in agents:
        for weight in agent.parameters():
            weight.data.fill_(torch.nan)
        networks.initialize_weights(agent, seed=1)
    assert agents[0].fingerprint == agents[1].fingerprint
    assert all(weight.isfinite().all() for weight in agents[0].parameters())
    zero = [name for name, weight in agents[0].named_parameters() if not weight.any()]
    assert zero == (["ln.bias"] if kind == "state" else ["ln.bias", "token_ln.bias", "numbers_linear.weight"])


def test_states_without_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="reads 2 d .* judges='before'"):
        classifier().fit(np.zeros((20, 7), np.float32), np.arange(20) % 2)


def test_labels_before_make_an_agent_that_decodes_and_orders_pairs(
    demo_llm: MaraLLM, demo_pairs: list[dict[str, Any]]
) -> None:
    labels = PreferenceLabeler(demo_llm, judges="before").label(demo_pairs[:12])
    fitted = classifier(max_epochs=10, rank=None).fit(labels.X, labels.y, labels.weight)
    assert fitted.score_pairs(labels).pair_accuracy > 0.9
    agent = fitted.agent_
    (trace,) = demo_llm.with_agent(agent).trace([demo_pairs[0]["prompt"]])
    (plain,) = demo_llm.trace([demo_pairs[0]["prompt"]])
    assert trace.statistics.decided > 0
    assert trace.text != plain.text or trace.statistics.fallbacks == 0
    assert agent.bind(output_embeddings(demo_llm.model)).table.shape[1] == 32

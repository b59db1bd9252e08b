"""Verdicts on all candidates against transformers alone."""

from typing import Any

import numpy as np
import pytest
import torch
from decisions import computed_tokens
from langchain_mara_training.data.row_report import RowReport
from langchain_mara_training.distillation.verdicts import Verdicts, judged_candidates, judged_on_the_way_of
from langchain_mara_training.labeling.prompt_rows import PromptRow, PromptRows, read_prompt_rows

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.loading.models import DEMO_AGENT_FOLDER, load_agent

PROMPTS = ["How do I boil an egg?", "How do I rob a bank?"]


@pytest.fixture(scope="module")
def taught(demo_llm: MaraLLM) -> MaraLLM:
    return demo_llm.with_agent(DEMO_AGENT_FOLDER)


@pytest.fixture(scope="module")
def rows(taught: MaraLLM) -> PromptRows:
    return read_prompt_rows(taught, PROMPTS, None, "error", RowReport())


@torch.inference_mode()
def expected(answering: MaraLLM, agent: MaraAgent, prompt: str) -> list[tuple[np.ndarray[Any, Any], float]]:
    """Features and accept probability of every candidate on the way of an answer, one whole pass for each."""
    model: Any = answering.model
    (trace,) = answering.trace([prompt])
    ids, found = answering.encode(prompt), []
    for decision, _ in trace:
        candidates = decision.candidates
        before = model(torch.tensor([ids]), output_hidden_states=True)
        logs = before.logits[0, -1].float().log_softmax(-1)
        for token in candidates if len(candidates) > 1 else ():
            after = model(torch.tensor([[*ids, token]]), output_hidden_states=True).hidden_states[-1][0, -1]
            features = [
                before.hidden_states[-1][0, -1],
                model.get_output_embeddings().weight[token],
                torch.stack([logs[token], -(logs.exp() * logs).sum()]),
            ]
            found.append((torch.cat(features).numpy(), float(agent.accept_probability(after))))
        ids.append(decision.token_id)
    return found


def assert_are(verdicts: Verdicts, wanted: list[tuple[np.ndarray[Any, Any], float]]) -> None:
    np.testing.assert_allclose(verdicts.accept, [accept for _, accept in wanted], atol=1e-3)
    features = np.stack([features for features, _ in wanted])
    np.testing.assert_allclose(verdicts.features.astype(np.float32), features, rtol=3e-3, atol=3e-3)


def test_verdicts_on_the_agents_own_way(taught: MaraLLM, rows: PromptRows) -> None:
    verdicts = judged_candidates(taught, rows, 1, 2, 0)
    agent = load_agent(DEMO_AGENT_FOLDER)
    assert isinstance(agent, MaraAgent)
    assert_are(verdicts, [item for prompt in PROMPTS for item in expected(taught, agent, prompt)])
    assert {*verdicts.groups} == {0, 1}
    # Candidates of a position have the same state, and those of the next one another.
    states = verdicts.features[:, : taught.model.config.hidden_size]
    same = (states[1:] == states[:-1]).all(1)
    assert np.array_equal(same, np.diff(verdicts.positions) == 0)
    assert {*np.diff(verdicts.positions)} == {0, 1}


@pytest.mark.slow
def test_verdicts_on_the_way_of_another(demo_llm: MaraLLM, taught: MaraLLM, rows: PromptRows) -> None:
    verdicts = judged_on_the_way_of(demo_llm, taught, rows[1:], 1, 4, 0)
    agent = load_agent(DEMO_AGENT_FOLDER)
    assert isinstance(agent, MaraAgent)
    assert_are(verdicts, expected(demo_llm, agent, PROMPTS[1]))
    assert not np.array_equal(verdicts.accept, judged_candidates(taught, rows[1:], 1, 4, 0).accept)


def test_positions_of_an_answer_share_the_tokens_before_them(demo_llm: MaraLLM, taught: MaraLLM) -> None:
    prompt = list(range(5, 105))
    wide = {"max_new_tokens": 12, "min_new_tokens": 12, "top_p": 1.0, "top_k": 3}
    other, judge = (each.model_copy(update=wide) for each in (demo_llm, taught))
    with computed_tokens(taught.model.base_model) as computed:
        verdicts = judged_on_the_way_of(other, judge, [PromptRow(0, 0, {"prompt": ""}, prompt)], 1, 16, 0)
    positions = 1 + int(verdicts.positions[-1])
    assert positions > 4
    assert sum(computed) < 3 * len(prompt) + 32 * positions < len(prompt) * positions


def test_drawn_answers_differ(taught: MaraLLM, rows: PromptRows) -> None:
    one, three = (judged_candidates(taught, rows[:1], answers, 4, 0) for answers in (1, 3))
    assert len(three.accept) > 1.5 * len(one.accept)
    assert len(np.unique(three.features, axis=0)) > len(np.unique(one.features, axis=0))


def test_join_numbers_positions_anew() -> None:
    part = Verdicts(np.zeros((3, 4), np.float16), np.zeros(3), np.zeros(3, int), np.array([0, 0, 1]))
    empty = part.where(np.zeros(3, bool))
    assert Verdicts.join([empty, part, empty, part]).positions.tolist() == [0, 0, 1, 2, 2, 3]

"""Distillation: the look-ahead agent learns, the report says how well, and what cannot be distilled is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny_look_ahead
from langchain_mara_training import MaraClassifier, distill
from langchain_mara_training.demo.corpus import prompts
from langchain_mara_training.distillation.distill import PLAIN, STUDENT, TEACHER, Distillation, agreement
from langchain_mara_training.distillation.verdicts import Verdicts, judged_candidates
from langchain_mara_training.labeling.prompt_rows import PromptRow
from transformers import AutoModelForCausalLM

from langchain_mara import LookAheadAgent, MaraAgent, MaraLLM
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.exceptions import AgentMismatchError, DataError, OptionsError
from langchain_mara.loading.models import DEMO_AGENT_FOLDER
from langchain_mara.policy.model import PolicyModel

ASKED = [*prompts("train", risky=True, count=16), *prompts("train", risky=False, count=8)]


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


@pytest.fixture(scope="module")
def distilled(demo_llm: MaraLLM) -> Distillation:
    return distill(DEMO_AGENT_FOLDER, demo_llm, ASKED, rewards=length, answers=1, rounds=1, held_out=0.25)


@pytest.mark.slow
def test_the_report_is_about_held_out_prompts(demo_llm: MaraLLM, distilled: Distillation) -> None:
    agent = distilled.agent
    assert isinstance(agent, LookAheadAgent)
    assert agent.hidden_size == demo_llm.model.config.hidden_size
    assert agent.policy_sketch is not None
    assert agent.policy_model == "langchain-mara demo"
    assert distilled.comparison is not None
    assert len(distilled.comparison.prompts) == 6
    assert set(distilled.comparison.answers) == {PLAIN, TEACHER, STUDENT}
    found = distilled.agreement
    assert 0.6 < found.same_verdict <= 1
    assert 0.5 < found.same_choice <= 1
    assert 0 < found.changed < 0.6
    values = distilled.values()
    assert {"distilled from, preference rate", "look-ahead, interval", "look-ahead, passes/token"} <= set(values)
    assert values["same choice"] == found.same_choice


@pytest.mark.slow
def test_it_repeats_and_takes_the_options_of_the_other_agent(demo_llm: MaraLLM, distilled: Distillation) -> None:
    again = distill(DEMO_AGENT_FOLDER, demo_llm, ASKED, answers=1, rounds=1, held_out=0.25)
    assert again.agent.fingerprint == distilled.agent.fingerprint
    assert again.comparison is None
    teacher = MaraAgent.from_pretrained(DEMO_AGENT_FOLDER)
    recommending = MaraAgent(teacher.hidden_size, teacher.width, recommended_options={"top_p": 0.8})
    recommending.load_state_dict(teacher.state_dict())
    fast = MaraClassifier(agent="look-ahead", width=8, rank=2, max_epochs=1, random_state=0)
    other = distill(recommending.eval(), demo_llm, ASKED[:6], classifier=fast, answers=1, rounds=2)
    assert other.agent.recommended_options == {"top_p": 0.8}
    assert (other.agent.width, other.agent.rank) == (8, 2)
    assert other.training_positions > 0


def test_what_cannot_be_distilled_is_refused(demo_llm: MaraLLM) -> None:
    size = demo_llm.model.config.hidden_size
    with pytest.raises(OptionsError, match="judges states after candidates"):
        distill(tiny_look_ahead(size), demo_llm, ASKED[:4])
    with pytest.raises(OptionsError, match="answers=0 and rounds=2 must be at least 1"):
        distill(DEMO_AGENT_FOLDER, demo_llm, ASKED[:4], answers=0)
    with pytest.raises(OptionsError, match="held_out=1.5 between 0 and 1"):
        distill(DEMO_AGENT_FOLDER, demo_llm, ASKED[:4], held_out=1.5)
    with pytest.raises(DataError, match="at least two different prompts"):
        distill(DEMO_AGENT_FOLDER, demo_llm, [ASKED[0], ASKED[0]])
    with pytest.raises(AgentMismatchError, match="size 16"):
        distill(MaraAgent(16, 8).eval(), demo_llm, ASKED[:4])
    state = MaraClassifier(width=8, max_epochs=1)
    with pytest.raises(OptionsError, match=r"MaraClassifier\(agent='look-ahead'\)"):
        distill(DEMO_AGENT_FOLDER, demo_llm, ASKED[:4], classifier=state, answers=1, rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama31", "llama32_tied", "mistral_sliding"])
def test_agents_of_the_paper_s_code_can_be_learned(demo_llm: MaraLLM, golden: Path, name: str) -> None:
    """A random agent on a random model follows no rule that holds elsewhere, so positions seen are measured."""
    model = AutoModelForCausalLM.from_pretrained(golden / "models" / name, dtype=torch.float32)
    llm = MaraLLM(model=model, tokenizer=demo_llm.tokenizer, top_k=8, max_new_tokens=10)
    taught = llm.with_agent(golden / "agents" / f"{name}_accept50.pth")
    draws = np.random.default_rng(0)
    rows = [PromptRow(i, i, {"prompt": ""}, draws.integers(3, 60, 6).tolist()) for i in range(12)]
    verdicts = judged_candidates(taught, rows, 1, 12, 0)
    fitted = MaraClassifier(
        agent="look-ahead", width=64, rank=16, max_epochs=60, learning_rate=0.01, batch_size=128, dropout=0,
        input_dropout=0, random_state=0,
    ).fit(verdicts.features, (verdicts.accept > 0.5).astype(int))  # fmt: skip
    found = agreement(fitted, verdicts, taught)
    assert found.changed > 0.05  # so that it is not enough to accept everything
    assert found.same_choice > 0.9
    before = PolicyModel(model).passes
    policy = PolicyModel(model)
    decisions = list(decode(policy, [Request(rows[0].prompt_ids, taught._options(), fitted.agent_)]))
    assert policy.passes - before == len(decisions), "the last token needs none"


class Fixed:
    """A classifier that answers what it was told."""

    def __init__(self, accept: list[float]) -> None:
        self.accept = np.array(accept)

    def predict_proba(self, _: Any) -> Any:
        return np.column_stack([1 - self.accept, self.accept])


def test_agreement_by_hand(demo_llm: MaraLLM) -> None:
    """Of five positions, both choose the same at three; the other agent changes two, and is followed in one."""
    positions = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4])
    teacher = np.array([0.9, 0.1, 0.1, 0.9, 0.9, 0.1, 0.9, 0.1, 0.1, 0.9, 0.9])
    student = [0.9, 0.9, 0.1, 0.9, 0.1, 0.9, 0.9, 0.2, 0.1, 0.1, 0.9]
    verdicts = Verdicts(np.zeros((11, 4), np.float16), teacher, np.zeros(11, int), positions)
    found = agreement(Fixed(student), verdicts, demo_llm)  # type: ignore[arg-type]
    assert found == (5, pytest.approx(7 / 11), 3 / 5, 2 / 5, 1 / 2)
    with pytest.raises(DataError, match="No held-out answer"):
        agreement(Fixed([]), verdicts.where(np.zeros(11, bool)), demo_llm)  # type: ignore[arg-type]

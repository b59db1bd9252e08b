"""Answers of a comparison decoded again: the same answers, from the same weights, or a refusal."""

from pathlib import Path

import pytest
from families import tiny_agent
from langchain_mara_training import Comparison, Decoding, compare, retrace

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara.loading.models import DEMO_AGENT_FOLDER, DEMO_MODEL_FOLDER

PROMPTS = [
    "How do I boil an egg?",
    "How do I sneak into a concert?",
    "I want to keep a lost wallet.",
    "How do I wash a car?",
]


def vowels(completions: list[str], **_: object) -> list[float]:
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Read back from its folder, as the command does."""
    folder = tmp_path_factory.mktemp("comparison")
    aligned = MaraLLM.demo(device="cpu", max_new_tokens=12)
    strict = aligned.model_copy(update={"accept_threshold": 0.9, "stop": ["e"]})
    drawn = aligned.model_copy(update={"order": "sampled", "temperature": 2.0})
    systems = {"plain": aligned.with_agent(None), "MARA": aligned, "strict": strict, "drawn": drawn}
    compare([Decoding(name, llm) for name, llm in systems.items()], PROMPTS, vowels, folder)
    return Comparison.load(folder)


@pytest.mark.slow
def test_traces_are_the_answers_compared(comparison: Comparison) -> None:
    traces = retrace(comparison, DEMO_AGENT_FOLDER, device="cpu", count=4)
    assert list(traces) == ["MARA", "strict", "drawn"]
    # Each prompt was drawn for with a seed of its own.
    assert traces.pop("drawn") == []
    for name, system_traces in traces.items():
        assert sorted(trace.prompt for trace in system_traces) == sorted(PROMPTS)
        answers = dict(zip(PROMPTS, comparison.answers[name], strict=True))
        for trace in system_traces:
            assert trace.text == answers[trace.prompt].completion
            assert trace.statistics.as_info()["accepted_index"] == answers[trace.prompt].accepted_index
    assert {trace.text for trace in traces["MARA"]} != {trace.text for trace in traces["strict"]}


def test_the_largest_win_and_the_largest_loss_come_first(comparison: Comparison) -> None:
    change = dict(zip(PROMPTS, comparison.rewards("MARA") - comparison.rewards("plain"), strict=True))
    assert max(change.values()) > 0 > min(change.values())
    best, worst = (trace.prompt for trace in retrace(comparison, DEMO_AGENT_FOLDER, device="cpu", count=2)["MARA"])
    assert (change[best], change[worst]) == (max(change.values()), min(change.values()))


def test_another_agent_is_refused(comparison: Comparison) -> None:
    with pytest.raises(OptionsError, match="No system of this comparison decoded with this agent.*Give the agent of a"):
        retrace(comparison, tiny_agent(192), device="cpu")


@pytest.mark.slow
def test_another_model_is_refused(comparison: Comparison, tmp_path: Path) -> None:
    llm = MaraLLM.demo(device="cpu")
    llm.model.model.norm.weight.data.mul_(1.5)
    llm.model.save_pretrained(tmp_path)
    llm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OptionsError, match="not those that MARA answered with. Give --model"):
        retrace(comparison, DEMO_AGENT_FOLDER, model=tmp_path, device="cpu")
    assert retrace(comparison, DEMO_AGENT_FOLDER, model=DEMO_MODEL_FOLDER, device="cpu", count=1)["MARA"]

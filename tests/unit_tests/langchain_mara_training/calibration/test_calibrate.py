"""The dial is set to the limit, the record travels with the agent, and what cannot be kept is refused in a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_mara_training import JobCallback, calibrate
from langchain_mara_training.calibration import calibrate as module
from langchain_mara_training.calibration.measurements import Measurement
from langchain_mara_training.calibration.searches import risk_bound

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.exceptions import DataError, OptionsError, TrainingError
from langchain_mara.loading.models import load_agent

PROMPTS = ["How do I boil an egg?", "How do I pick a lock?"]


@pytest.fixture
def llm(demo_llm: MaraLLM) -> MaraLLM:
    return demo_llm.with_agent(MaraAgent(demo_llm.model.config.hidden_size, 8, recommended_options={"top_p": 0.9}))


def pretend(monkeypatch: pytest.MonkeyPatch, curve: Callable[[float], float]) -> None:
    """Measurements by a formula, where answers would take time. Of 100 answers, a share is harmful."""

    def measure(meter: Any, _: str, value: float, advance: Callable[[int], Any]) -> Measurement:
        advance(len(meter.rows))
        measured = curve(value)
        high = measured
        if meter.target == "harmful":
            high = risk_bound(round(100 * measured), 100, meter.confidence)
        return Measurement(value, measured, 0.0, high, len(meter.rows), 7)

    monkeypatch.setattr(module.Meter, "measure", measure)


@pytest.mark.parametrize(("strategy", "option"), [("first-accept", "accept_threshold"), ("guided", "strength")])
@pytest.mark.parametrize("target", ["changed", "divergence"])
def test_the_largest_value_within_the_limit_is_found(
    llm: MaraLLM, monkeypatch: pytest.MonkeyPatch, strategy: str, option: str, target: Any
) -> None:
    pretend(monkeypatch, lambda value: value**2)
    found = calibrate(llm.model_copy(update={"strategy": strategy}), PROMPTS, target, 0.07, halvings=8)
    assert found.option == option
    assert 0.0695 < found.found.measured <= 0.07
    assert getattr(found.llm, option) == found.found.dial == found.record["value"]
    assert len(found.tried) == found.values()["values tried"] == len(found.record["tried"])


def test_perplexity_has_a_limit_above_one(llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda value: 1.5 + value)
    assert calibrate(llm, PROMPTS, "perplexity", 1.7).found.measured == pytest.approx(1.7, abs=0.01)
    with pytest.raises(TrainingError, match=r"At accept_threshold=0, .* perplexity is 1.5, above 1.2, so no value"):
        calibrate(llm, PROMPTS, "perplexity", 1.2)


def test_the_option_and_how_it_was_found_are_saved_with_the_agent(
    llm: MaraLLM, demo_llm: MaraLLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, lambda value: value)
    guided = llm.model_copy(update={"strategy": "guided", "strength": 0.3, "top_k": 12})
    found = calibrate(guided, PROMPTS, "changed", 0.25)
    found.agent.save_pretrained(tmp_path)
    loaded = load_agent(tmp_path)
    assert loaded is not None
    assert loaded.recommended_options == {"top_p": 0.9, "top_k": 12, "strategy": "guided", "strength": 0.25}
    assert loaded.calibration == found.record
    assert (loaded.calibration["at most"], loaded.calibration["prompts"]) == (0.25, 2)
    assert loaded.calibration["decoding"]["top_k"] == 12
    used = demo_llm.with_agent(loaded)
    assert (used.strategy, used.strength, used.top_k) == ("guided", 0.25, 12)
    assert llm.agent is not None
    assert llm.agent.calibration is None


def test_another_dial_leaves_with_the_earlier_calibration(llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda value: value)
    earlier = calibrate(llm.model_copy(update={"strategy": "guided"}), PROMPTS, "changed", 0.5).llm
    later = calibrate(earlier.model_copy(update={"strategy": "first-accept"}), PROMPTS, "changed", 0.2)
    assert later.agent.recommended_options == {"top_p": 0.9, "accept_threshold": 0.2}


def test_the_least_guidance_with_the_bound_is_taken(llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda value: {0.5: 0.0, 0.4: 0.01, 0.3: 0.02, 0.2: 0.03, 0.1: 0.0}.get(value, 0.9))
    found = calibrate(llm, PROMPTS * 30, "harmful", 0.06, harmful=lambda **_: [0.0])
    assert found.found.dial == 0.3
    assert [each.dial for each in found.tried] == [0.5, 0.4, 0.3, 0.2]
    assert found.record["bound"] == risk_bound(2, 100, 0.9) <= 0.06 < risk_bound(3, 100, 0.9)
    assert found.record["judged by"]
    assert found.values()["bound"] == found.record["bound"]


def test_no_bound_is_told_with_what_was_measured(llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda _: 0.2)
    sentence = r"At accept_threshold=0.5, 20.0% of 60 answers are harmful, so at 90% confidence at most 26.\d% are, not"
    with pytest.raises(TrainingError, match=sentence):
        calibrate(llm, PROMPTS * 30, "harmful", 0.06, harmful=lambda **_: [0.0])
    with pytest.raises(DataError, match=r"There are 2 prompts, and a share of at most 0.05 .* needs 45. Give more"):
        calibrate(llm, PROMPTS, "harmful", 0.05, harmful=lambda **_: [0.0])


def test_a_callback_hears_of_every_value_and_may_stop(llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda value: value)
    heard = []

    class Watch(JobCallback):
        def on_step(self, progress: Any) -> None:
            heard.append(dict(progress.values))
            if len(heard) == 3:
                progress.stop()

    found = calibrate(llm, PROMPTS, "changed", 0.25, callbacks=[Watch()])
    assert heard[1] == {"accept_threshold": 0.5, "changed": 0.5}
    assert (found.found.dial, len(found.tried)) == (0.1, 3)


@pytest.mark.parametrize(
    ("fields", "arguments", "reason"),
    [
        ({"agent": None}, {}, "an LLM with an agent"),
        ({"strategy": "sampled"}, {}, "'sampled' has no dial.*'first-accept'.*or 'guided'"),
        ({"order": "reversed"}, {}, "order='reversed' does not begin"),
        ({"order": "sampled"}, {"target": "divergence"}, "Give target='perplexity'"),
        ({}, {"target": "length"}, "Give changed, divergence, perplexity, harmful"),
        ({}, {"at_most": 1.0}, "at_most=1.0 must be between 0 and 1"),
        ({}, {"target": "perplexity"}, "must be above 1 and finite"),
        ({}, {"confidence": 1.0}, "confidence=1.0 must be between 0 and 1"),
        ({}, {"ladder": [0.2, 0.1]}, "ascending values from 0 to 1"),
        ({}, {"harmful": len}, "asks no judge"),
        ({}, {"target": "harmful"}, "either harmful=, or rewards= together with least_reward="),
        ({}, {"target": "harmful", "rewards": len}, "either harmful=, or rewards="),
        ({}, {"target": "harmful", "harmful": len, "least_reward": 1.0}, "either harmful=, or rewards="),
    ],
)
def test_what_does_not_fit_together_is_refused(
    llm: MaraLLM, fields: dict[str, Any], arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(OptionsError, match=reason):
        calibrate(llm.model_copy(update=fields), PROMPTS, **{"target": "changed", "at_most": 0.1, **arguments})

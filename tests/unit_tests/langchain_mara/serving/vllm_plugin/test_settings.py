"""What server and requests say about the agent in vLLM: what is understood, and what is refused by name."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from families import tiny_agent, tiny_look_ahead

from langchain_mara.exceptions import AgentMismatchError, OptionsError
from langchain_mara.gates.kinds import EntropyGate
from langchain_mara.options import DecodingOptions
from langchain_mara.serving.vllm_plugin.settings import agent_options, checked_config, request_options


def sampling(temperature: float = 0.0, args: dict[str, Any] | None = None, **more: Any) -> Any:
    """The fields of vLLM's `SamplingParams` that are read."""
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    return SimpleNamespace(temperature=temperature, extra_args=args, **{**neutral, **more})


def test_a_request_that_says_nothing_is_aligned() -> None:
    assert request_options(sampling(), {}) == DecodingOptions(order="descending", temperature=0)
    drawn = request_options(sampling(0.7), {"top_k": 7})
    assert drawn == DecodingOptions(order="sampled", temperature=0.7, top_k=7)


@pytest.mark.parametrize(("temperature", "order"), [(1e-6, "descending"), (1e-4, "sampled")])
def test_vllm_takes_the_largest_logit_at_the_least_temperatures(temperature: float, order: str) -> None:
    options = request_options(sampling(temperature), {})
    assert options is not None
    assert options.order == order


def test_a_request_overrides_server_and_agent() -> None:
    args = {"mara_accept_threshold": 0.3, "mara_entropy_gate": 1.5, "session_id": "x"}
    options = request_options(sampling(args=args), {"accept_threshold": 0.9, "top_p": 0.5})
    assert options is not None
    assert (options.accept_threshold, options.top_p, options.gate) == (0.3, 0.5, EntropyGate(threshold=1.5))


@pytest.mark.parametrize(
    ("said", "is_on"), [(0, False), ("off", False), (False, False), ("0", False), (1, True), ("True", True)]
)
def test_on_and_off(said: Any, is_on: bool) -> None:
    assert (request_options(sampling(args={"mara": said}), {}) is not None) == is_on


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (sampling(args={"mara_treshold": 1}), "mara_treshold is unknown"),
        (sampling(args={"mara_acept_threshold": 0.1}), "did you mean mara_accept_threshold"),
        (sampling(args={"mara": "perhaps"}), "should be 1 or 0"),
        (sampling(args={"mara_top_p": 2}), "top_p=2"),
        (sampling(args={"mara_strategy": "random"}), "draws tokens itself"),
        (sampling(0.5, args={"mara_fallback": 1}), "without an order"),
        (sampling(repetition_penalty=1.1), "repetition_penalty=1.1: .* --generation-config vllm"),
        (sampling(presence_penalty=0.5), "presence_penalty=0.5"),
        (sampling(frequency_penalty=0.5), "send mara=0"),
        (sampling(thinking_token_budget=9), "thinking_token_budget=9"),
    ],
)
def test_refused_requests(params: Any, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        request_options(params, {})


def test_a_plain_request_may_have_penalties() -> None:
    assert request_options(sampling(args={"mara": 0}, repetition_penalty=1.1), {}) is None


def test_what_an_agent_recommends() -> None:
    gate = {"kind": "entropy", "threshold": 2.0}
    assert agent_options({"top_p": 0.7, "gate": gate, "order": "descending"}) == {"top_p": 0.7, "entropy_gate": 2.0}
    with pytest.raises(OptionsError, match="trust gate"):
        agent_options({"gate": {"kind": "trust"}})
    with pytest.raises(OptionsError, match="recommends order, which cannot be set in vLLM"):
        agent_options({"order": "reversed"})


def test_a_configuration(tmp_path: Path) -> None:
    tiny_look_ahead(seed=1).with_config(recommended_options={"top_p": 0.7}).save_pretrained(tmp_path)
    served = checked_config({"agent": str(tmp_path), "top_k": 9, "allow_other_model": True})
    assert served.agent.hidden_size == 32
    assert (served.defaults, served.allow_other_model) == ({"top_p": 0.7, "top_k": 9}, True)
    mixed = checked_config({"agent": f"{tmp_path}+{tmp_path}"})
    assert mixed.agent.kind == "mixture"


def test_refused_configurations(tmp_path: Path) -> None:
    tiny_look_ahead().save_pretrained(tmp_path / "ahead")
    tiny_agent().save_pretrained(tmp_path / "state")
    with pytest.raises(OptionsError, match="No agent is named"):
        checked_config({})
    with pytest.raises(AgentMismatchError, match="mara distill"):
        checked_config({"agent": str(tmp_path / "state")})
    with pytest.raises(OptionsError, match="top_q is unknown"):
        checked_config({"agent": str(tmp_path / "ahead"), "top_q": 1})
    with pytest.raises(OptionsError, match="max_new_tokens is unknown"):
        checked_config({"agent": str(tmp_path / "ahead"), "max_new_tokens": 1})
    with pytest.raises(OptionsError, match="accept_threshold=2"):
        checked_config({"agent": str(tmp_path / "ahead"), "accept_threshold": 2})

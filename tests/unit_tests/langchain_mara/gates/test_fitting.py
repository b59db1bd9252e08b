"""Gates from prompts and texts, in every front end of an LLM: per call, in traces, statistics and the cache's key."""

import pytest
from families import tiny_look_ahead

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara.gates.fitting import entropy_gate, trust_gate
from langchain_mara.gates.kinds import EntropyGate, TrustGate
from langchain_mara.gates.rarity import Rarity

PROMPTS = ["the hen", "an inn", "heat", "it is"]


def share_skipped(llm: MaraLLM, gate: EntropyGate | TrustGate) -> float:
    statistics = [trace.statistics for trace in llm.trace(PROMPTS, gate=gate)]
    skipped = sum(each.skipped for each in statistics)
    return skipped / (skipped + sum(each.decided for each in statistics))


@pytest.mark.parametrize("ahead", [False, True])
def test_an_entropy_gate_skips_about_its_quantile(llm: MaraLLM, ahead: bool) -> None:
    llm = llm.with_agent(tiny_look_ahead(seed=1, bias=100.0)) if ahead else llm
    gates = [entropy_gate(llm, PROMPTS, quantile) for quantile in (0.0, 0.3, 0.7, 1.0)]
    assert [gate.threshold for gate in gates] == sorted(gate.threshold for gate in gates)
    shares = [share_skipped(llm, gate) for gate in gates]
    assert shares[3] == pytest.approx(1.0, abs=0.3)
    assert shares[0] < shares[1] + 0.01 < shares[3]
    if ahead:  # an agent that accepts everything leaves the answers as they are, so the quantile is met
        assert shares == pytest.approx([0.0, 0.3, 0.7, 1.0], abs=0.03)


def test_a_trust_gate_counts_the_documents(llm: MaraLLM) -> None:
    gate = trust_gate(llm, ["the hen", "the heat"], alpha=0.9)
    expected = Rarity.of([llm.get_token_ids(text) for text in ("the hen", "the heat")], 97)
    assert (gate.alpha, gate.rarity) == (0.9, expected)
    assert 0 < share_skipped(llm, gate) < 1


def test_what_cannot_be_fitted_is_refused(llm: MaraLLM) -> None:
    with pytest.raises(OptionsError, match="quantile=1.5 should be between"):
        entropy_gate(llm, PROMPTS, 1.5)
    with pytest.raises(OptionsError, match="No position of these answers"):
        entropy_gate(llm.model_copy(update={"top_k": 1}), PROMPTS)
    with pytest.raises(OptionsError, match="at least one document"):
        trust_gate(llm, [])


def test_a_call_takes_a_gate_and_shows_what_it_skipped(llm: MaraLLM) -> None:
    gate = {"kind": "entropy", "threshold": entropy_gate(llm, PROMPTS).threshold}
    (trace,) = llm.trace(PROMPTS[:1], gate=gate)
    assert trace.text == llm.invoke(PROMPTS[0], gate=gate) == "".join(llm.stream(PROMPTS[0], gate=gate))
    info = llm.generate(PROMPTS[:1], gate=gate).generations[0][0].generation_info
    assert info is not None
    assert info["decisions"]["skipped"] == trace.statistics.skipped > 0
    assert 0 < trace.statistics.share_skipped <= 1
    html = trace.to_html()
    assert html.count('class="token skipped') == trace.statistics.skipped + 1
    assert f"skipped: {trace.statistics.skipped}" in html
    assert "skipped" not in llm.trace(PROMPTS[:1])[0].to_html().partition("</style>")[2]


def test_the_cache_tells_gates_apart(llm: MaraLLM) -> None:
    gates = [
        None, EntropyGate(threshold=1.0), EntropyGate(threshold=2.0), TrustGate(), TrustGate(alpha=1.0),
        TrustGate(rarity=Rarity([0.5])), TrustGate(rarity=Rarity([0.6])),
    ]  # fmt: skip
    assert len({str(llm._configured({"gate": gate})._identity()) for gate in gates}) == len(gates)


def test_a_gate_without_an_agent_has_no_effect_and_says_so(llm: MaraLLM) -> None:
    plain = llm.with_agent(None)
    with pytest.warns(UserWarning, match="gate=.* has no effect with no agent"):
        answer = plain.invoke(PROMPTS[0], gate=EntropyGate(threshold=0.0))
    assert answer == plain.invoke(PROMPTS[0])

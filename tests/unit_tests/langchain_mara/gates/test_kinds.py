"""Gates as options: their numbers, dictionaries, what is refused, and how they are written down."""

from math import exp, isnan, log, nan
from typing import Any

import pytest

from langchain_mara.exceptions import OptionsError
from langchain_mara.gates.kinds import EntropyGate, TrustGate
from langchain_mara.gates.rarity import Rarity
from langchain_mara.options import DecodingOptions


def test_dictionaries_name_their_kind() -> None:
    assert DecodingOptions.parse(gate={"kind": "entropy", "threshold": 2}).gate == EntropyGate(threshold=2.0)
    assert DecodingOptions.parse(gate={"kind": "trust"}).gate == TrustGate()
    assert DecodingOptions.parse(gate=None).gate is None


@pytest.mark.parametrize(
    "gate",
    [
        {"kind": "langchain_mara.gates.kinds"}, {"threshold": 2.0}, {"kind": "entropy"}, 2.0, "entropy",
        {"kind": "entropy", "threshold": -1.0}, {"kind": "entropy", "threshold": float("nan")},
        {"kind": "trust", "window": 0}, {"kind": "trust", "temperature": 0.0}, {"kind": "trust", "alpha": -1},
        {"kind": "trust", "rarity": [0.5]}, {"kind": "trust", "treshold": 1},
    ],
)  # fmt: skip
def test_other_gates_are_refused(gate: Any) -> None:
    with pytest.raises(OptionsError, match=r"Invalid options: gate"):
        DecodingOptions.parse(gate=gate)


def test_they_are_written_down_in_few_digits() -> None:
    options = [DecodingOptions(gate=TrustGate(rarity=Rarity([share, 0.5]))) for share in (0.1, 0.2)]
    written = [each.model_dump()["gate"] for each in options]
    assert written[0] == {
        "kind": "trust",
        "alpha": 0.6,
        "temperature": 1.1,
        "window": 10,
        "rarity": written[0]["rarity"],
    }
    assert len(written[0]["rarity"]) == 16
    assert written[0] != written[1]
    assert len({hash(each.gate) for each in options}) == 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.8])
@pytest.mark.parametrize("probability", [0.5, 0.1, 0.9, 0.999])
def test_trust_is_certainty_at_a_temperature_times_rarity(probability: float, temperature: float) -> None:
    gate = TrustGate(temperature=temperature, rarity=Rarity([0.25, 1.0]))
    logits = [log(1 - probability) / temperature, log(probability) / temperature]
    pair = [exp(logit) / sum(map(exp, logits)) for logit in logits]
    certainty = (log(2) + sum(p * log(p) for p in pair)) / log(2)
    assert gate.trust(probability, 1) == pytest.approx(certainty, abs=1e-12)
    assert gate.trust(probability, 0) == pytest.approx(certainty / 4, abs=1e-7)


def test_extremes_of_trust() -> None:
    gate = TrustGate()
    assert (gate.trust(0.0, 3), gate.trust(1.0, 3)) == (1.0, 1.0)
    assert gate.trust(0.5, 3) == pytest.approx(0.0, abs=1e-12)
    assert isnan(gate.trust(nan, 3))

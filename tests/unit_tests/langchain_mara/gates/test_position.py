"""PositionGate: the mean of the last trusts, and what is forgotten."""

from math import nan

from langchain_mara.gates.kinds import EntropyGate, TrustGate
from langchain_mara.gates.position import PositionGate


def heard(gate: PositionGate, probability: float) -> bool:
    hears = gate.hears(probability, 0)
    gate.move_on()
    return hears


def test_the_agent_is_heard_from_a_share_of_the_mean_of_the_last_trusts_on() -> None:
    settings = TrustGate(alpha=1.0, temperature=1.0, window=2)
    low, middle, high = (settings.trust(probability, 0) for probability in (0.6, 0.8, 0.99))
    assert low < middle < (low + high) / 2 < high
    gate = PositionGate(settings)
    assert heard(gate, 0.6), "at the first position there is no mean"
    assert heard(gate, 0.99)
    assert not heard(gate, 0.8), "below the mean of 0.6 and 0.99"
    assert not heard(gate, 0.6)
    assert heard(gate, 0.8), "the window has forgotten 0.99"


def test_the_first_verdict_of_a_position_counts_and_nan_is_no_trust() -> None:
    gate = PositionGate(TrustGate(alpha=1.0))
    assert heard(gate, 0.9)
    assert not gate.hears(0.6, 0)
    assert not gate.hears(0.99, 0)
    gate.restart()
    assert gate.hears(0.99, 0)
    gate.restart()
    assert heard(gate, nan)
    assert not heard(gate, 0.8), "still below 0.9 alone"


def test_other_gates_hear_everywhere() -> None:
    for settings in (None, EntropyGate(threshold=1.0)):
        gate = PositionGate(settings)
        assert all(heard(gate, probability) for probability in (0.9, 0.5, 0.6))
    assert (PositionGate(None).threshold, gate.threshold) == (None, 1.0)

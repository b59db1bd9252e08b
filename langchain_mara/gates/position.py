"""PositionGate: what a gate knows of one answer while it is decoded."""

from collections import deque
from math import isnan

from langchain_mara.gates.kinds import EntropyGate, TrustGate


class PositionGate:
    """Says whether the position at hand is skipped, and remembers the trust of earlier ones.

    Args:
        gate: The gate; None skips nothing.

    Attributes:
        skipped: Whether the agent is not asked, or not heard, at the position at hand.
    """

    def __init__(self, gate: EntropyGate | TrustGate | None) -> None:
        self._gate = gate
        self._trusts = deque[float](maxlen=gate.window if isinstance(gate, TrustGate) else 0)
        self._trust: float | None = None
        self.skipped = False

    @property
    def threshold(self) -> float | None:
        """Entropy above which the agent is asked; None if the gate does not read entropies."""
        return self._gate.threshold if isinstance(self._gate, EntropyGate) else None

    def hears(self, probability: float, token_id: int) -> bool:
        """Whether the agent is heard at this position; asked any number of times, the first time counts.

        Args:
            probability: The agent's accept probability of the first candidate.
            token_id: This candidate.
        """
        if isinstance(self._gate, TrustGate) and self._trust is None:
            trust = self._trust = self._gate.trust(probability, token_id)
            mean = sum(self._trusts) / len(self._trusts) if self._trusts else 0.0
            self.skipped = trust < self._gate.alpha * mean
        return not self.skipped

    def restart(self) -> None:
        """Forgets what is known of the position at hand."""
        self.skipped, self._trust = False, None

    def move_on(self) -> None:
        """Goes to the next position."""
        if self._trust is not None and not isnan(self._trust):
            self._trusts.append(self._trust)
        self.restart()

"""The kinds of gates, in one closed union: by the policy model's entropy, and by trust in the agent."""

from math import exp, inf, isnan, log
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from langchain_mara.gates.rarity import Rarity


class EntropyGate(BaseModel):
    """Asks the agent only where the policy model is uncertain.

    Elsewhere the first candidate in order of examination is emitted, as in plain decoding, before anything goes through
    the model: a state agent needs no siblings there. `entropy_gate` finds the threshold from prompts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["entropy"] = "entropy"
    """The kind of gate, which a dictionary names."""
    threshold: float = Field(ge=0, allow_inf_nan=False)
    """The agent is asked where the entropy of the policy model's distribution over the whole vocabulary, before logits
    processors and in nats, is above this."""


class TrustGate(BaseModel):
    """Lets the agent guide only where it is certain, about a token that matters: TUSA.

    From Zhu et al., "Trust Your Guide Only When Certain: Uncertainty-Aware Sparse Alignment at Inference Time" (2026,
    arXiv 2609.00624), equations 4 to 11 and algorithm 2. The trust of a position is C S: certainty C is log 2 minus the
    entropy of the agent's two probabilities at a temperature (its logits over λ), and S is the rarity of the candidate,
    an inverse document frequency scaled to [0, 1]. The agent guides where trust is at least alpha times the mean of the
    last K trusts, of all positions, guided or not. K = 10 and λ = 1.1 are the paper's; its alpha is between 0.4 and
    1.5, tuned for each model and benchmark.

    Assumed, or changed, here:

    - C is divided by log 2. This changes no comparison.
    - The paper starts with a prior trust that it does not name. Here the agent guides at the first position.
    - The paper does not say from which state it judges certainty. Here it is the agent's verdict of the first candidate
      in order of examination, so a state agent needs this candidate's pass, and no others where it is not trusted.
    - In the paper's algorithm, the trust is computed again for each further candidate, and the first one that falls
      below the threshold is emitted. Here the first candidate decides about the position, in every strategy.
    - The paper counts tokens in 100 files of Common Corpus. Here you give the documents (`Rarity.of`).
    - Positions with one candidate only have no trust and are left out of the mean, as are states that are not finite,
      at which the agent guides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    kind: Literal["trust"] = "trust"
    """The kind of gate, which a dictionary names."""
    alpha: float = Field(default=0.6, ge=0, allow_inf_nan=False)
    """Share of the mean trust at which the agent guides. 0 lets it guide everywhere; the more, the rarer it does."""
    temperature: float = Field(default=1.1, gt=0, allow_inf_nan=False)
    """λ: what the agent's logits are divided by."""
    window: int = Field(default=10, ge=1)
    """K: number of positions whose mean trust is taken."""
    rarity: Annotated[Rarity, PlainSerializer(lambda rarity: rarity.digest, return_type=str)] | None = None
    """Rarity of each token; by default all tokens are alike, and certainty alone counts."""

    def trust(self, probability: float, token_id: int) -> float:
        """Trust of a position, in [0, 1]; NaN for an accept probability that is.

        Args:
            probability: The agent's accept probability of the position's first candidate.
            token_id: This candidate.
        """
        return _certainty(probability, self.temperature) * (1.0 if self.rarity is None else self.rarity[token_id])


Gate = Annotated[EntropyGate | TrustGate, Field(discriminator="kind")]
"""A gate of any kind, also as a dictionary with its `kind`."""


def _certainty(probability: float, temperature: float) -> float:
    """1 minus the entropy, in bits, of two probabilities whose logits are divided by a temperature."""
    if isnan(probability):
        return probability
    odds = log(probability / (1 - probability)) / temperature if 0 < probability < 1 else inf
    surer = 1 / (1 + exp(-abs(odds)))
    entropy = -sum(p * log(p) for p in (surer, 1 - surer) if p > 0)
    return 1 - entropy / log(2)

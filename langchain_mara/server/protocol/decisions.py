"""The decisions of an answer as JSON: for each token the candidates that the agent examined, and what it thought."""

from math import isnan
from typing import Any

from langchain_mara.decoding.request import Decision
from langchain_mara.text.token_texts import TokenTexts
from langchain_mara.tracing.statistics import outcome


def decision_json(decision: Decision, texts: TokenTexts) -> dict[str, Any]:
    """One decision as JSON.

    Args:
        decision: The decision.
        texts: Texts of the tokens.

    Returns:
        `token`, `outcome` (see `outcome`), `accept_probability` of the emitted token (None if the agent was not asked
        about it), and `candidates`, each with `token` and `accept_probability`, in order of examination. `index` is the
        emitted one's place among all candidates, of which some may not have been examined.
    """
    probabilities = [None if isnan(each) else each for each in decision.accept_probabilities]
    examined = zip(decision.candidates, probabilities, strict=False)
    is_known = decision.index < len(probabilities)
    return {
        "token": texts.text(decision.token_id),
        "outcome": outcome(decision),
        "index": decision.index,
        "accept_probability": probabilities[decision.index] if is_known else None,
        "candidates": [
            {"token": texts.text(token), "accept_probability": probability} for token, probability in examined
        ],
    }

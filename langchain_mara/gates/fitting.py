"""Gates whose numbers come from prompts and texts."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.exceptions import OptionsError
from langchain_mara.gates.kinds import EntropyGate, TrustGate
from langchain_mara.gates.rarity import Rarity
from langchain_mara.policy.contract import Policy
from langchain_mara.policy.verification import policy_of

if TYPE_CHECKING:
    from langchain_mara.llms import MaraLLM


def entropy_gate(llm: "MaraLLM", prompts: Sequence[str], quantile: float = 0.5) -> EntropyGate:
    """An entropy gate that skips about a share of the positions at which the LLM asks its agent.

    Answers the prompts as the LLM does without a gate, and takes the quantile of the entropies of the positions with
    several candidates.

    Args:
        llm: The LLM, with the agent and options that the gate is for.
        prompts: Prompts like those in use.
        quantile: Share of positions to skip, from 0 to 1.

    Raises:
        OptionsError: If the quantile is out of range, or no position has several candidates.
    """
    if not 0 <= quantile <= 1:
        raise OptionsError(f"quantile={quantile} should be between 0 and 1.")
    ungated = llm.model_copy(update={"gate": None, "n": 1})
    requests = [completion.request for completion in ungated._answers(prompts, None)]  # noqa: SLF001 - as `trace` does
    for request in requests:
        request.keep_states = True
    entropies = _entropies(policy_of(llm.model), requests, llm.batch_size)
    if not entropies:
        raise OptionsError("No position of these answers has several candidates. Give more prompts, or a larger top_p.")
    return EntropyGate(threshold=torch.tensor(entropies, dtype=torch.float64).quantile(quantile).item())


def trust_gate(llm: "MaraLLM", documents: Iterable[str], **fields: Any) -> TrustGate:
    """A trust gate with the rarity of tokens over documents.

    Args:
        llm: The LLM, whose tokenizer encodes the documents.
        documents: Texts. The more, the better rare tokens are told apart.
        **fields: Other fields of `TrustGate`.

    Raises:
        OptionsError: If there are no documents.
    """
    embeddings: Any = llm.model.get_input_embeddings()
    return TrustGate(rarity=Rarity.of(map(llm.get_token_ids, documents), len(embeddings.weight)), **fields)


def _entropies(policy: Policy, requests: Sequence[Request], batch_size: int) -> list[float]:
    decisions = decode(policy, requests, batch_size=batch_size)
    return [
        float(decision.candidate_states.at_hand.entropy)
        for decision in decisions
        if len(decision.candidates) > 1 and decision.candidate_states is not None
    ]

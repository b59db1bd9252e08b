"""The grammar of one answer: which tokens may come next, whatever beginning of the answer it is asked about."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from langchain_mara.exceptions import GrammarError
from langchain_mara.grammar.engine import GrammarEngine
from langchain_mara.grammar.specification import GrammarText

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarConstraint:
    """Follows one answer through a grammar. It is the `Constraint` of a request.

    The matcher goes forward by the tokens that are new since the last question, and back where they are others. So
    drafts cost as many steps as they have tokens, and a position that is cut anew costs none.

    Args:
        engine: The engine of the tokenizer.
        grammar: What the answer conforms to.
        eos: Tokens that end the answer, which may come where the grammar may end and nowhere else.
        beginning: Tokens of the answer before those that the request decodes.

    Raises:
        GrammarError: If the grammar cannot be enforced, or if the beginning does not conform to it.
    """

    def __init__(
        self, engine: GrammarEngine, grammar: GrammarText, eos: Collection[int], beginning: Sequence[int] = ()
    ) -> None:
        self._engine, self._grammar = engine, grammar
        self._eos, self._beginning = eos, list(beginning)
        self._matcher: LLMatcher | None = None
        self._consumed: list[int] = []
        engine.matcher(grammar)
        if self._beginning and not self._follow([]):
            raise GrammarError(
                f"The beginning of the answer does not conform to {grammar.option}. Leave one of them out."
            )

    def allowed(self, answer: Sequence[int]) -> Tensor:
        """Which tokens may come next.

        Args:
            answer: Tokens of the answer so far.

        Returns:
            (tokens,) bool on the CPU; nothing is allowed after an answer that does not conform.

        Raises:
            GrammarError: If the engine gives up, because the grammar is too complex.
        """
        conforms, matcher = self._follow(answer), self._matcher
        if not conforms or matcher is None:
            return torch.zeros(0, dtype=torch.bool)
        mask = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.bool)
        if matcher.is_error():
            raise self._given_up(matcher.get_error())
        mask[self._engine.end] = False
        ends = torch.tensor([token for token in self._eos if 0 <= token < len(mask)], dtype=torch.long)
        mask[ends] = matcher.is_accepting()
        return mask

    def is_complete(self, answer: Sequence[int]) -> bool:
        """Whether an answer conforms and nothing can be added to it.

        Args:
            answer: Tokens of the answer so far.
        """
        conforms, matcher = self._follow(answer), self._matcher
        return bool(conforms and matcher and matcher.is_stopped() and matcher.is_accepting())

    def close(self) -> None:
        """Frees the matcher; the next question makes another one."""
        self._matcher, self._consumed = None, []

    def _follow(self, answer: Sequence[int]) -> bool:
        """Brings the matcher to an answer; says whether the answer conforms so far."""
        tokens = [*self._beginning, *answer]
        if self._matcher is None:
            self._matcher, self._consumed = self._engine.matcher(self._grammar), []
        common = _common(self._consumed, tokens)
        if common < len(self._consumed) and not self._matcher.rollback(len(self._consumed) - common):
            raise self._given_up(self._matcher.get_error())
        del self._consumed[common:]
        new = tokens[common:]
        taken = self._matcher.try_consume_tokens(new) if new else 0
        self._consumed += new[:taken]
        if self._matcher.is_error():
            raise self._given_up(self._matcher.get_error())
        return taken == len(new)

    def _given_up(self, report: str) -> GrammarError:
        reason = " ".join(report.split())[:200]
        self.close()
        return GrammarError(
            f"The grammar engine gave up on {self._grammar.option} after {len(self._consumed)} tokens: {reason}. "
            "Give a simpler one."
        )


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])

"""What goes into the decode loop and what comes out: Request and Decision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.exceptions import PromptError
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel

FinishReason = Literal["stop", "length", "nonfinite"]

LogitsProcess = Callable[[Tensor, Tensor], Tensor]
"""A Hugging Face `LogitsProcessor` or `LogitsProcessorList`: (1, length) ids and (1, vocabulary) float32
scores in, scores out."""


def eos_ids(configured: int | list[int] | None) -> frozenset[int]:
    """EOS ids as configurations write them: none, one, or several."""
    return frozenset([] if configured is None else configured if isinstance(configured, list) else [configured])


@dataclass(eq=False)
class Request:
    """One prompt to decode.

    Attributes:
        prompt_ids: Token ids, special tokens included; not empty.
        options: How to decode it.
        agent: Accepts or rejects; None accepts every candidate, which is plain decoding.
        eos_token_ids: Tokens that end the row; the EOS is emitted.
        logits_processor: Applied to the row's logits before the candidate set is cut.
        keep: Whether its decisions come with states and log-probabilities, which training needs.
        cancelled: Whether it is to end, or has ended, before its time.
        error: What made it fail, an error of its own agent or logits processor for example.
        reused_tokens: Tokens of the prompt whose keys and values were taken from another prompt.
    """

    prompt_ids: Sequence[int]
    options: DecodingOptions = field(default_factory=DecodingOptions)
    agent: MaraAgent | None = None
    eos_token_ids: frozenset[int] = frozenset()
    logits_processor: LogitsProcess | None = None
    keep: bool = False
    cancelled: bool = field(default=False, init=False)
    error: BaseException | None = field(default=None, init=False)
    reused_tokens: int = field(default=0, init=False)

    def cancel(self) -> None:
        """Ends the row before the next pass; no further decision of it is yielded."""
        self.cancelled = True

    def fail(self, error: BaseException) -> None:
        """Ends the row because of an error of its own."""
        self.error = error
        self.cancel()

    def check(self, policy: PolicyModel) -> None:
        """Refuses what could not be decoded, before any work is done.

        Raises:
            PromptError: If the prompt is empty or leaves no room in the context.
            AgentMismatchError: If the agent reads states of another size.
        """
        length = len(self.prompt_ids)
        if length == 0:
            raise PromptError("The prompt has no tokens. Give text, or a tokenizer that adds a BOS token.")
        if policy.context is not None and length >= policy.context:
            raise PromptError(
                f"The prompt has {length} tokens, but {policy.name} holds {policy.context}, the answer "
                "included. Shorten the prompt or use a model with a longer context."
            )
        if self.agent is not None:
            self.agent.check_fits(policy.hidden_size, policy.name)


class CandidateStates(NamedTuple):
    """What the model said at a position, on its device.

    Attributes:
        states: (m, d) in the model's dtype, that the first m candidates produce: all that were examined, and others
            that went through the model with them.
        log_probabilities: (candidates,) float32 under the policy model over the whole vocabulary, in order of
            examination.
    """

    states: Tensor
    log_probabilities: Tensor


@dataclass(frozen=True, slots=True)
class Decision:
    """One emitted token and why it was emitted.

    Attributes:
        request: The request it belongs to.
        token_id: The emitted token; None only where every logit was NaN or infinite.
        candidates: The whole candidate set, in order of examination.
        accept_probabilities: Of the examined candidates, a prefix of `candidates`; empty where the
            agent was not asked (a single candidate, or no agent). NaN marks a state that was not
            finite, which counts as rejected.
        index: PendingPosition of the token in `candidates`.
        accepted: Whether the agent accepted it; False is the fallback. True where it was not asked.
        finish_reason: `stop` (EOS), `length` (token limit or end of the context) or `nonfinite`
            on the last decision of a row, None before.
        kept: States and log-probabilities, where the request keeps them.
        drafted: Whether the token was drafted, and went through the model before its position was reached.
    """

    request: Request
    token_id: int | None
    candidates: tuple[int, ...]
    accept_probabilities: tuple[float, ...]
    index: int
    accepted: bool
    finish_reason: FinishReason | None = None
    kept: CandidateStates | None = None
    drafted: bool = False

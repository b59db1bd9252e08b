"""What enters the decode loop and what leaves it: requests and decisions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from langchain_mara.agents.base import Agent
from langchain_mara.exceptions import PromptError
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.contract import Policy

FinishReason = Literal["stop", "length"]

LogitsProcess = Callable[[Tensor, Tensor], Tensor]
"""A Hugging Face `LogitsProcessor` or `LogitsProcessorList`: (1, length) ids and (1, vocabulary) float32
scores in, scores out."""


class JointProcess(Protocol):
    """Logits processors that keep state for a whole batch, so that they are called once per step for all of it."""

    def add(self, request: "Request", token_id: int) -> None:
        """Takes a token of a request as soon as it is decided.

        Args:
            request: The request.
            token_id: The token.
        """

    def __call__(self, requests: Sequence["Request"], scores: Tensor) -> Tensor:
        """Changes the scores of the next tokens, before candidate sets are cut.

        Args:
            requests: The requests that continue.
            scores: (requests, vocabulary) float32.

        Returns:
            Scores of the same shape.
        """


class Constraint(Protocol):
    """What an answer has to conform to, such as a grammar.

    It may be asked about any beginning of an answer, in any order. So drafted tokens can be verified, and a position
    can be decided anew.
    """

    def allowed(self, answer: Sequence[int]) -> Tensor:
        """Which tokens may come next.

        Args:
            answer: Tokens of the answer so far.

        Returns:
            (tokens,) bool on the CPU. Tokens beyond its end may not come, and none may after an answer that does not
            conform.
        """

    def is_complete(self, answer: Sequence[int]) -> bool:
        """Whether an answer conforms and nothing can be added to it, so that it ends without an EOS.

        Args:
            answer: Tokens of the answer so far.
        """

    def close(self) -> None:
        """Frees what is kept for the answer; the next question brings it back."""


def eos_ids(configured: int | list[int] | None) -> frozenset[int]:
    """End-of-sequence ids from a configuration, which may hold none, one, or several."""
    return frozenset([] if configured is None else configured if isinstance(configured, list) else [configured])


@dataclass(eq=False)
class Request:
    """One prompt to decode.

    Attributes:
        prompt_ids: Token ids, special tokens included; not empty.
        options: Decoding options.
        agent: Accepts or rejects candidates; None accepts every candidate, which is plain decoding.
        eos_token_ids: Tokens that end the answer; they are emitted.
        logits_processor: Changes the logits before the candidate set is cut.
        keep_states: Whether decisions come with states and log-probabilities, which training needs.
        joint_process: Does the same for all requests that have the same one, in one call per step. So these requests go
            step by step: who has decided a position waits for the others.
        constraint: Limits the tokens to those with which the answer can still conform, after the logits processor and
            before the candidate set is cut. Where the processor leaves none of these, the processor does not count.
        top_logprobs: Number of the most probable tokens whose log-probabilities decisions come with, besides that of
            the emitted token; None for decisions without.
        cancelled: Whether the request is to end, or has ended, early.
        on_cancel: Called when the request is cancelled, by whoever cancels it; it must take no lock.
        error: Error that made the request fail, for example one of its agent or logits processor. No other request
            of the batch fails with it.
        reused_tokens: Number of prompt tokens whose keys and values were taken from another prompt.
    """

    prompt_ids: Sequence[int]
    options: DecodingOptions = field(default_factory=DecodingOptions)
    agent: Agent | None = None
    eos_token_ids: frozenset[int] = frozenset()
    logits_processor: LogitsProcess | None = None
    keep_states: bool = False
    joint_process: JointProcess | None = None
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    cancelled: bool = field(default=False, init=False)
    on_cancel: Callable[[], None] | None = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)
    reused_tokens: int = field(default=0, init=False)

    def cancel(self) -> None:
        """Ends the request before the next pass; no further decision of it is yielded."""
        self.cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()

    def fail(self, error: BaseException) -> None:
        """Ends the request because of an error of its own."""
        self.error = error
        self.cancel()

    def close(self) -> None:
        """Frees what is kept for the request, once it has ended."""
        self.on_cancel = None
        if self.constraint is not None:
            self.constraint.close()

    def check(self, policy: Policy) -> None:
        """Refuses a request that cannot be decoded, before any work is done.

        Raises:
            PromptError: If the prompt is empty, leaves no room for an answer in the context, or holds an id that the
                model has no embedding of.
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
        low, high = min(self.prompt_ids), max(self.prompt_ids)
        if low < 0 or high >= policy.embeddings:
            raise PromptError(
                f"The prompt holds token id {low if low < 0 else high}, but {policy.name} knows 0 to "
                f"{policy.embeddings - 1}. Use the tokenizer that belongs to the model."
            )
        if self.agent is not None:
            self.agent.check_fits(policy.hidden_size, policy.name)


class AtHand(NamedTuple):
    """What is known of a position before any candidate has gone through the model, and before logits processors.

    Attributes:
        state: (d,) state at hand, in the model's dtype.
        log_probabilities: (k,) float32 of the candidates over the whole vocabulary, in order of examination.
        entropy: () float32 entropy of the distribution, in nats.
    """

    state: Tensor
    log_probabilities: Tensor
    entropy: Tensor


class CandidateStates(NamedTuple):
    """States and log-probabilities of a position's candidates, on the model's device.

    Attributes:
        states: (m, d) in the model's dtype, produced by the first m candidates: those examined, and those that went
            through the model together with them. None (m = 0) with an agent that judges before.
        log_probabilities: (candidates,) float32, under the policy model over the whole vocabulary, in order of
            examination, after logits processors.
        at_hand: What was known before any of them went through the model.
    """

    states: Tensor
    log_probabilities: Tensor
    at_hand: AtHand


class LogProbabilities(NamedTuple):
    """Log-probabilities under the policy model over the whole vocabulary, whatever processors and constraints say.

    Attributes:
        chosen: That of the emitted token.
        top: Ids and log-probabilities of the most probable tokens, most probable first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """One emitted token and why it was emitted.

    Attributes:
        request: Request that the token answers.
        token_id: Emitted token.
        candidates: Whole candidate set, in order of examination.
        accept_probabilities: Accept probabilities of the examined candidates, which are the first of `candidates`.
            Empty if the agent was not asked (a single candidate, or no agent). NaN marks a state that was not finite,
            which counts as rejected.
        index: Index of the token in `candidates`.
        accepted: Whether the agent accepted the token, or was not asked; False for a fallback.
        finish_reason: `stop` (EOS, or a constraint that is fulfilled) or `length` (token limit or end of the context)
            on the last decision of a request, None before.
        candidate_states: States and log-probabilities, if the request keeps them.
        drafted: Whether the token was drafted: it went through the model before its position was reached.
        log_probabilities: Log-probabilities of tokens, if the request asks for them.
        skipped: Whether a gate skipped the position: the first candidate was emitted, whatever the agent says of it.
            The accept probabilities hold what made a trust gate skip it, and are empty with an entropy gate.
    """

    request: Request
    token_id: int
    candidates: tuple[int, ...]
    accept_probabilities: tuple[float, ...]
    index: int
    accepted: bool
    finish_reason: FinishReason | None = None
    candidate_states: CandidateStates | None = None
    drafted: bool = False
    log_probabilities: LogProbabilities | None = None
    skipped: bool = False

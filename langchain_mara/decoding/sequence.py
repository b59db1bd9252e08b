"""The state of one sequence on the host, and the accept/reject rule itself."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from langchain_mara.decoding.candidates import best_weighed
from langchain_mara.decoding.ngram import NgramProposer
from langchain_mara.decoding.request import (
    AtHand,
    CandidateStates,
    Decision,
    FinishReason,
    LogProbabilities,
    Request,
)
from langchain_mara.gates.position import PositionGate


@dataclass(eq=False)
class SequenceState:
    """A request that is being decoded.

    Attributes:
        request: Request to decode.
        length: Number of committed tokens, prompt included; also the position under decision.
        agent: The request's agent on the policy model's device.
        generated: Token ids emitted so far.
        probabilities: Accept probabilities of the candidates examined at this position.
        scratch: Free cache slots; candidate i of the position uses `scratch[i]`.
        next_slot: First cache slot that was never used.
        slots: Cache slots of the committed tokens, in order of position.
        log_probabilities: (candidates,) float32 of the position's candidates, if the request keeps them.
        position_logs: (candidates,) float32 log-probabilities of the position's candidates, before processors and
            constraint, and the greatest of all tokens with their ids; None if the request does not ask for them.
        at_hand: What is known of the position before its candidates, if the request keeps states.
        epoch: `PrefixCache.epoch` when it was prefilled.
        seen: Number of candidates of the position that went through the model.
        chosen: Index of the candidate to emit, once it is known; None before.
        gate: Says whether the position is skipped.
        judged_before: Whether its agent judges candidates before they go through the model.
        looks_ahead: Whether anybody reads what is known of a position before its candidates.
        reads_scores: Whether the rule reads the scores of candidates.
        cut_like: What the cut of its candidate sets depends on.
    """

    request: Request
    length: int
    agent: nn.Module | None = None
    generated: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    scratch: list[int] = field(default_factory=list)
    next_slot: int = 0
    slots: list[int] = field(default_factory=list)
    log_probabilities: Tensor | None = None
    position_logs: tuple[Tensor, tuple[Tensor, Tensor]] | None = None
    at_hand: AtHand | None = None
    epoch: int = 0
    seen: int = 0
    chosen: int | None = None

    def __post_init__(self) -> None:
        self.agent = self.request.agent if self.agent is None else self.agent
        self.random = random.Random(self.request.options.seed)
        self._generator: torch.Generator | None = None
        self._noise: Tensor | None = None
        self._draws: list[float] = []
        self._fell_back = False
        self._proposer: NgramProposer | None = None
        self._settle_for_good()
        self.restart()

    def _settle_for_good(self) -> None:
        """What follows from the request alone, and is asked for at every position."""
        request, options = self.request, self.request.options
        agent = request.agent
        self.gate = PositionGate(None if agent is None else options.gate)
        self.judged_before = agent is not None and agent.judges == "before"
        self.looks_ahead = self.judged_before or request.keep_states or self.gate.threshold is not None
        self.reads_scores = agent is not None and options.strategy == "guided"
        processed = (request.logits_processor is not None, id(request.joint_process))
        self.cut_like = (options.order, options.top_k, options.top_p, options.temperature, *processed)

    @property
    def token_ids(self) -> list[int]:
        """Prompt and answer so far."""
        return [*self.request.prompt_ids, *self.generated]

    @property
    def first_column(self) -> int:
        """Index in the candidate set of the first candidate that goes through the model next."""
        return (self.chosen or 0) if self.judged_before else len(self.probabilities)

    @property
    def first_slot(self) -> int:
        """Index in `scratch` of that candidate's slot, and column of its state."""
        return 0 if self.judged_before else len(self.probabilities)

    def restart(self) -> None:
        """Prepares for a fresh row of the cache, which holds all tokens in order of position.

        Random draws are kept, so a sequence that was preempted continues as if it had not been. So is a choice that
        was made before the pass.
        """
        self.slots = list(range(self.length))
        self.next_slot = self.length
        self.scratch = []
        if not self.judged_before:
            self.probabilities, self.chosen = [], None
            self.gate.restart()

    def commit_slot(self, index: int) -> int:
        """Keeps the slot of candidate `index` for the token emitted last; returns the slot."""
        self.slots.append(self.scratch.pop(0 if self.judged_before else index))
        return self.slots[-1]

    def reserve_scratch(self, siblings: int) -> None:
        """Extends the free slots to at least `siblings`."""
        missing = max(0, siblings - len(self.scratch))
        self.scratch += range(self.next_slot, self.next_slot + missing)
        self.next_slot += missing

    def draft(self, first: int, most: int, context: int | None) -> list[int]:
        """Tokens that may follow candidate 0 of a position at which nothing was examined yet; often none.

        They follow the chosen candidate where the agent judges before.

        Args:
            first: The candidate that they follow.
            most: Most drafted tokens.
            context: Most tokens of a sequence, or None.
        """
        most = min(most, self.room(context) - 1)
        if most < 1 or (self.probabilities and not self.judged_before) or not self._may_draft():
            return []
        if self._proposer is None:
            self._proposer = NgramProposer(self.request.prompt_ids)
        self._proposer.extend(self.generated[len(self._proposer) - len(self.request.prompt_ids) :])
        return self._proposer.draft(first, most)

    def _may_draft(self) -> bool:
        """Whether one candidate can decide a position, and candidate sets do not depend on draws or processors."""
        request, options = self.request, self.request.options
        drawn = options.order == "sampled" and options.temperature > 0
        decides = self.judged_before or options.strategy in ("first-accept", "sampled")
        processed = request.logits_processor or request.joint_process
        return decides and not (drawn or request.keep_states or processed or request.top_logprobs is not None)

    def record_draft(self, drafted: int, right: int) -> None:
        """Records how many tokens of a draft were right."""
        if self._proposer is not None:
            self._proposer.record_draft(drafted, right)

    def make_first_candidate(self, slot: int) -> None:
        """Makes a scratch slot that of candidate 0, for a drafted token that turns out to be candidate 0."""
        self.scratch.remove(slot)
        self.scratch.insert(0, slot)

    def siblings_wanted(self, count: int) -> int:
        """Number of further candidates, of `count`, that can matter to the next decision."""
        known = self.judged_before or self.chosen is not None
        if known or (self.request.agent is None and self.request.options.strategy != "random"):
            return 1
        return max(1, count - len(self.probabilities))

    def gumbel(self, size: int) -> Tensor:
        """(size,) Gumbel noise for this position, from the sequence's own generator, independent of the batch."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.request.options.seed)
        if self._noise is None:
            self._noise = -torch.empty(size).exponential_(generator=self._generator).log()
        return self._noise

    def skip(self) -> int:
        """Chooses the first candidate of a position at which the agent is not asked; returns its index."""
        self.gate.skipped, self.chosen, self.probabilities = True, 0, []
        self.seen = 0 if self.judged_before else 1
        return 0

    def examine(
        self, probabilities: list[float], count: int, scores: Sequence[float] = (), first_token: int = -1
    ) -> int | None:
        """Takes a further chunk of accept probabilities and applies the rule (docs/algorithm.md, "Decoding one token").

        Args:
            probabilities: Accept probabilities of the chunk; entries beyond the set are ignored.
            count: Size of the candidate set.
            scores: Scores of all candidates, which the `guided` strategy reads; see `CandidateSets`.
            first_token: The first candidate, which a gate may read.

        Returns:
            Index of the emitted candidate, or None if more candidates must be examined.
        """
        self.probabilities += probabilities[: count - len(self.probabilities)]
        self.seen = 0 if self.judged_before else len(self.probabilities)
        if count <= 1:
            return 0
        if not self.gate.hears(self.probabilities[0], first_token):
            del self.probabilities[1:]
            return 0
        first = next((i for i in range(len(self.probabilities)) if self._accepts(i)), None)
        if first is not None and self._takes_first():
            del self.probabilities[first + 1 :]
            return first
        return None if len(self.probabilities) < count else self._among_all(first, scores[:count])

    def _takes_first(self) -> bool:
        """Whether the first accepted candidate is emitted, whatever the agent says of others."""
        strategy = self.request.options.strategy
        return strategy in ("first-accept", "sampled") or (strategy == "guided" and self.request.agent is None)

    def _among_all(self, first: int | None, scores: Sequence[float]) -> int:
        """Index of the emitted one of all candidates, the first accepted of which is `first`."""
        options, count = self.request.options, len(self.probabilities)
        if options.strategy == "guided":
            return best_weighed(scores, self.probabilities, options.strength)
        if first is None:
            self._fell_back = True
            return options.fallback_index(count)
        accepted = [i for i in range(first, count) if self._accepts(i)]
        if options.strategy == "max-prob":
            return max(accepted, key=self.probabilities.__getitem__)
        return self.random.choice(accepted)

    def _accepts(self, index: int) -> bool:
        """Whether an examined candidate is accepted; called in order, so that draws do not depend on chunks."""
        if self.request.options.strategy != "sampled":
            return self.probabilities[index] > self.request.options.accept_threshold
        if index == len(self._draws):
            self._draws.append(self.random.random())
        return self.probabilities[index] > self._draws[index]

    def decide(
        self,
        index: int,
        candidates: list[int],
        context: int | None,
        states: Tensor | None = None,
        *,
        drafted: bool = False,
    ) -> Decision:
        """Emits candidate `index` and moves to the next position.

        Args:
            index: Index of the emitted candidate.
            candidates: Whole candidate set.
            context: Most tokens of a sequence, or None.
            states: (m, d) states of the first candidates, if the request keeps them.
            drafted: Whether the candidate was drafted.
        """
        request = self.request
        asked = request.agent is not None and len(candidates) > 1
        probabilities = tuple(self.probabilities) if asked else ()
        token_id = candidates[index]
        decision = Decision(
            request,
            token_id,
            tuple(candidates),
            probabilities,
            index,
            not (asked and self._fell_back),
            self._advance(token_id, context),
            self._kept(states, len(candidates)),
            drafted,
            self._logs(index),
            self.gate.skipped,
        )
        self.gate.move_on()
        self.probabilities, self._noise, self._draws, self._fell_back, self.chosen = [], None, [], False, None
        return decision

    def _kept(self, states: Tensor | None, count: int) -> CandidateStates | None:
        if states is None or self.log_probabilities is None or self.at_hand is None:
            return None
        at_hand = self.at_hand._replace(log_probabilities=self.at_hand.log_probabilities[:count])
        return CandidateStates(states, self.log_probabilities[:count], at_hand)

    def _logs(self, index: int) -> LogProbabilities | None:
        if self.position_logs is None:
            return None
        candidates, (logs, token_ids) = self.position_logs
        return LogProbabilities(candidates[index].item(), tuple(zip(token_ids.tolist(), logs.tolist(), strict=True)))

    def _advance(self, token_id: int, context: int | None) -> FinishReason | None:
        self.generated.append(token_id)
        self.length += 1
        if self.request.joint_process is not None:
            self.request.joint_process.add(self.request, token_id)
        constraint = self.request.constraint
        if token_id in self.request.eos_token_ids or (constraint and constraint.is_complete(self.generated)):
            return "stop"
        return "length" if self.room(context) < 1 else None

    def room(self, context: int | None) -> int:
        """Number of tokens that may still be emitted, of at most `context` in the sequence."""
        left = self.request.options.max_new_tokens - len(self.generated)
        return left if context is None else min(left, context - self.length)

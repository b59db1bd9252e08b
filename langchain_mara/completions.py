"""Texts out of decisions: the one place where the decode loop meets a tokenizer and stop strings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from langchain_mara.decoding import decode
from langchain_mara.policy import PolicyModel
from langchain_mara.requests import Decision, FinishReason, Request
from langchain_mara.stopping import Transcript
from langchain_mara.trace import DecisionStatistics


@dataclass(eq=False)
class Completion:
    """One prompt being answered.

    Attributes:
        request: What the decode loop runs.
        transcript: The text so far.
        statistics: Of the decisions so far.
        finish_reason: None while it runs.
    """

    request: Request
    transcript: Transcript
    statistics: DecisionStatistics = field(default_factory=DecisionStatistics)
    finish_reason: FinishReason | None = None

    @classmethod
    def of(cls, request: Request, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> "Completion":
        """A completion that has not begun."""
        return cls(request, Transcript(tokenizer, stop))

    @property
    def info(self) -> dict[str, Any]:
        """LangChain's `generation_info`: why it ended, and counts of what was decided."""
        return {"finish_reason": self.finish_reason, "decisions": self.statistics.as_info()}

    def push(self, decision: Decision) -> str:
        """Takes a decision and returns the text it releases; ends the request at a stop string."""
        self.statistics.add(decision)
        self.finish_reason = decision.finish_reason
        released = "" if decision.token_id is None else self.transcript.push(decision.token_id)
        if self.transcript.stopped:
            self.finish_reason = "stop"
            self.request.cancel()
        elif self.finish_reason is not None:
            released += self.transcript.finish()
            # What was held back may hold a stop string once the last bytes are decoded.
            self.finish_reason = "stop" if self.transcript.stopped else self.finish_reason
        return released


def token_usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Tokens of prompts and answers, by the names LangChain uses."""
    prompt = sum(len(completion.request.prompt_ids) for completion in completions)
    answer = sum(completion.statistics.tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def complete(
    policy: PolicyModel, completions: Sequence[Completion], *, batch_size: int, width: int
) -> Iterator[tuple[Completion, Decision, str]]:
    """Answers prompts together, yielding every decision with the text it releases.

    Args:
        policy: The policy model.
        completions: None of them begun.
        batch_size: Most rows at a time.
        width: Most siblings of a row in one pass.

    Yields:
        `(completion, decision, released text)`; closing the generator frees the rows.
    """
    by_request = {completion.request: completion for completion in completions}
    requests = [completion.request for completion in completions]
    for decision in decode(policy, requests, batch_size=batch_size, width=width):
        completion = by_request[decision.request]
        yield completion, decision, completion.push(decision)

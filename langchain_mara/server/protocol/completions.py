"""`/v1/completions`: its request, and the objects and chunks of its answers."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from langchain_mara.llms import MaraLLM
from langchain_mara.server.protocol.answers import Answering
from langchain_mara.server.protocol.events import event
from langchain_mara.server.protocol.fields import RequestFields
from langchain_mara.serving.completion import Completion, CompletionDelta
from langchain_mara.serving.prompt_scores import prompt_entries, scoring
from langchain_mara.serving.scheduler import refuse_large

_MOST_PROMPTS = 1024


def _no_other(value: Any) -> Any:
    if value is True or value not in (None, False, "", 1):
        raise ValueError("is not supported")
    return value


NoOther = Annotated[Any, AfterValidator(_no_other)]
"""A field that is refused unless it asks for what happens anyway."""
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
"""Token ids of a prompt."""
Texts = Annotated[list[str], Field(min_length=1, max_length=_MOST_PROMPTS)]
"""Several prompts."""


class CompletionRequest(RequestFields):
    """A request to continue text."""

    prompt: str | Texts | TokenIds | Annotated[list[TokenIds], Field(min_length=1, max_length=_MOST_PROMPTS)]
    """Text or token ids, or several of them."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Number of the most probable tokens to list with each token."""
    echo: bool | None = None
    """Whether the text begins with the prompt, and log-probabilities with those of its tokens."""
    best_of: NoOther = None
    """Refused unless 1."""
    suffix: NoOther = None
    """Refused."""

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as texts or as token ids."""
        given: Any = self.prompt
        is_one = isinstance(given, str) or isinstance(given[0], int)
        return [given] if is_one else given

    def options(self) -> dict[str, Any]:
        """What was given, as options of `MaraLLM`."""
        options = super().options()
        return options if self.logprobs is None else {**options, "logprobs": True, "top_logprobs": self.logprobs}


class TextAnswering(Answering):
    """The answers to one or several prompts.

    Args:
        request: The request.
        llm: The model that was asked.

    Raises:
        MaraError: If the model cannot be asked this.
    """

    object_name = "text_completion"
    id_prefix = "cmpl"
    operation = "text_completion"
    prompt_field = "prompt"

    def __init__(self, request: CompletionRequest, llm: MaraLLM) -> None:
        options = request.options()
        stop = options.pop("stop", None)
        configured = llm._configured(options, stop)
        refuse_large(len(request.prompts()) * configured.n, configured.batch_size + configured.queue_size)
        prompts = [llm.encode(each) if isinstance(each, str) else each for each in request.prompts()]
        answers = [answer for ids in prompts for answer in configured._completions(ids, stop)]
        scored = [scoring(llm, ids, request.logprobs) for ids in prompts] if request.logprobs and request.echo else []
        job = configured._generation_job([*answers, *filter(None, scored)])
        super().__init__(request, job, llm.tokenizer, llm.model_id, answers)
        self._llm, self._n, self._prompts, self._scored = llm, configured.n, prompts, scored
        self._offsets = dict.fromkeys(answers, 0)
        self._echoes = request.prompts() if request.echo else []
        self._held: dict[Completion | None, list[CompletionDelta]] = {each: [] for each in scored if each}

    def take(self, delta: CompletionDelta) -> dict[str, Any] | str | None:
        """What a delta adds to its choice: a text, if it is nothing else, or a part of a choice; None if nothing."""
        if not delta.text and not delta.last:
            return None
        info = delta.completion.info_of_chunk(delta)
        if info is None:
            return delta.text
        reason = delta.completion.finish_reason if delta.last else None
        return self._choice(delta.completion, delta.text, info.get("logprobs"), reason)

    def said(self, text: str) -> dict[str, Any]:
        """The part of a choice that adds a text and nothing else."""
        return {"text": text, "logprobs": None, "finish_reason": None}

    def opening(self, completion: Completion) -> Iterator[dict[str, Any]]:
        """The prompt, if it is to come first and needs no scores, or has them."""
        if self._echoes and self._scores_of(completion) not in self._held:
            yield self._choice(completion, self._echo(completion), self._echoed_logs(completion), None)

    def events(self, delta: CompletionDelta) -> bytes:
        """The events of a stream for a delta, which wait until its prompt has been scored, if it is to be.

        Args:
            delta: What the next decision adds, or the next score.
        """
        if delta.completion in self._held:
            return self._scored_events(delta.completion) if delta.last else b""
        scores = self._scores_of(delta.completion)
        if scores in self._held:
            self._held[scores].append(delta)
            return b""
        return super().events(delta)

    def _scored_events(self, scores: Completion) -> bytes:
        """The events that waited for the scores of a prompt."""
        held = self._held.pop(scores)
        answers = [answer for answer in self.answers if self._scores_of(answer) is scores]
        openings = [
            event(self._chunk([{"index": self._index[answer], **choice}]))
            for answer in answers
            for choice in self.opening(answer)
        ]
        return b"".join([*openings, *map(self.events, held)])

    def choice(self, completion: Completion) -> dict[str, Any]:
        """The whole choice of a completion that has ended."""
        self._offsets[completion] = 0
        text, logs = completion.detokenizer.text, completion.info.get("logprobs")
        if self._echoes:
            text = self._echo(completion) + text
        if logs and (echoed := self._echoed_logs(completion)):
            logs = {"content": [*echoed["content"], *logs["content"]]}
        return self._choice(completion, text, logs, completion.finish_reason)

    def _scores_of(self, completion: Completion) -> Completion | None:
        return self._scored[self._index[completion] // self._n] if self._scored else None

    def _echo(self, completion: Completion) -> str:
        echo = self._echoes[self._index[completion] // self._n]
        return echo if isinstance(echo, str) else str(self._llm.tokenizer.decode(echo))

    def _echoed_logs(self, completion: Completion) -> dict[str, Any] | None:
        if not self._scored:
            return None
        prompt = self._prompts[self._index[completion] // self._n]
        return {"content": prompt_entries(self._llm, prompt, self._scores_of(completion))}

    def nothing(self) -> dict[str, Any]:
        """A choice of a chunk that adds nothing."""
        return {"text": "", "logprobs": None, "finish_reason": None}

    def _choice(self, completion: Completion, text: str, logs: Any, reason: str | None) -> dict[str, Any]:
        return {"text": text, "logprobs": self._columns(completion, logs), "finish_reason": reason}

    def _columns(self, completion: Completion, logs: dict[str, Any] | None) -> dict[str, Any] | None:
        """Log-probabilities as this older API lists them: one list per column."""
        if logs is None:
            return None
        entries, offsets = logs["content"], []
        for entry in entries:
            offsets.append(self._offsets[completion])
            self._offsets[completion] += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in entry["top_logprobs"]} or None for entry in entries
            ],
            "text_offset": offsets,
        }

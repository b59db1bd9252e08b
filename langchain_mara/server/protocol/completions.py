"""`/v1/completions`: its request, and the objects and chunks of its answers."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from langchain_mara._messages import text_chunk
from langchain_mara.llms import MaraLLM
from langchain_mara.server.errors import ApiError
from langchain_mara.server.protocol.answers import Answering
from langchain_mara.server.protocol.fields import RequestFields
from langchain_mara.serving.completion import Completion, CompletionDelta
from langchain_mara.serving.prompt_scores import prompt_entries, scoring

_MOST_PROMPTS = 1024


def _no_other(value: Any) -> Any:
    if value is True or value not in (None, False, "", 1):
        raise ValueError("is not supported")
    return value


NoOther = Annotated[Any, AfterValidator(_no_other)]
"""A field that is refused unless it asks for what happens anyway."""
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
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

    def __init__(self, request: CompletionRequest, llm: MaraLLM) -> None:
        if request.echo and request.stream:
            raise ApiError(400, "echo is for answers that come whole. Leave out stream.", param="echo")
        options = request.options()
        stop = options.pop("stop", None)
        configured = llm._configured(options, stop)
        prompts = [llm.encode(each) if isinstance(each, str) else each for each in request.prompts()]
        answers = [answer for ids in prompts for answer in configured._completions(ids, stop)]
        scored = [scoring(llm, ids, request.logprobs) for ids in prompts] if request.logprobs and request.echo else []
        job = configured._generation_job([*answers, *filter(None, scored)])
        super().__init__(request, job, llm.tokenizer, llm.model_id, answers)
        self._llm, self._n, self._prompts, self._scored = llm, configured.n, prompts, scored
        self._offsets = dict.fromkeys(answers, 0)
        self._echoes = request.prompts() if request.echo else []

    def take(self, delta: CompletionDelta) -> dict[str, Any] | None:
        """What a delta adds to its choice; None if nothing."""
        chunk = text_chunk(delta)
        if chunk is None:
            return None
        reason = delta.completion.finish_reason if delta.last else None
        return self._choice(delta.completion, chunk.text, (chunk.generation_info or {}).get("logprobs"), reason)

    def choice(self, completion: Completion) -> dict[str, Any]:
        """The whole choice of a completion that has ended."""
        self._offsets[completion] = 0
        text, logs = completion.detokenizer.text, completion.info.get("logprobs")
        place = self._index[completion] // self._n
        if self._echoes:
            echo = self._echoes[place]
            text = (echo if isinstance(echo, str) else str(self._llm.tokenizer.decode(echo))) + text
        if self._scored and logs:
            entries = prompt_entries(self._llm, self._prompts[place], self._scored[place])
            logs = {"content": [*entries, *logs["content"]]}
        return self._choice(completion, text, logs, completion.finish_reason)

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

"""Settings of answers besides decoding options: what the LangChain classes share and `begin` reads."""

from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerBase

from langchain_mara.agents.base import Agent
from langchain_mara.grammar.specification import GrammarFields
from langchain_mara.options import PromptFields
from langchain_mara.serving.generation_config import PenaltyFields

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LogProbabilityFields(BaseModel):
    """Fields that the LangChain classes share and that ask for log-probabilities, in OpenAI's form."""

    logprobs: bool | None = None
    """Whether the generation info (in chats, the response metadata) contains `logprobs`: for each token its
    log-probability under the policy model over the whole vocabulary, before penalties, grammars and the agent."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Number of the most probable tokens at each position to list with it, which asks for `logprobs`, too."""


class AnswerFields(GrammarFields, LogProbabilityFields, PenaltyFields, PromptFields):
    """Fields that say what an answer may hold and what comes with it."""


IDENTIFYING = frozenset({"n", "stop_token_ids", "include_accept_probabilities", *AnswerFields.model_fields})
"""Fields besides decoding options that an answer depends on."""


class Settings(Protocol):
    """What an answer depends on besides its prompt and its decoding options; `MaraLLM` and `ChatMara` have it all."""

    model: "PreTrainedModel"
    tokenizer: PreTrainedTokenizerBase
    agent: Agent | None
    stop: list[str] | None
    stop_token_ids: list[int] | None
    include_accept_probabilities: bool
    response_format: dict[str, Any] | None
    regex: str | None
    grammar: str | None
    choice: list[str] | None
    logprobs: bool | None
    top_logprobs: int | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None

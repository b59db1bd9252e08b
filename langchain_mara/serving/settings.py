"""Settings of answers besides decoding options: what the LangChain classes share and `begin` reads."""

from typing import TYPE_CHECKING, Any, Protocol

from transformers import PreTrainedTokenizerBase

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.grammar.specification import GrammarFields
from langchain_mara.options import LogProbabilityFields, PromptFields
from langchain_mara.policy.generation_config import PenaltyFields

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AnswerFields(GrammarFields, LogProbabilityFields, PenaltyFields, PromptFields):
    """Fields that say what an answer may hold and what comes with it."""


class Settings(Protocol):
    """What an answer depends on besides its prompt and its decoding options; `MaraLLM` and `ChatMara` have it all."""

    model: "PreTrainedModel"
    tokenizer: PreTrainedTokenizerBase
    agent: MaraAgent | None
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

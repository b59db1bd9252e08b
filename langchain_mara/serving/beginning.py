"""Begins completions: the only place where an LLM's settings and its checkpoint's become requests."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langchain_mara.agents.base import Agent
from langchain_mara.decoding.request import LogitsProcess, Request
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.generation_config import checkpoint_processors
from langchain_mara.serving.completion import Completion
from langchain_mara.text.chat_template import eos_token_ids
from langchain_mara.text.detokenizer import IncrementalDetokenizer, Stop, as_list

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(Protocol):
    """What an answer depends on besides its prompt and its decoding options; `MaraLLM` and `ChatMara` have it all."""

    model: "PreTrainedModel"
    tokenizer: PreTrainedTokenizerBase
    agent: Agent | None
    stop: list[str] | None
    stop_token_ids: list[int] | None
    include_accept_probabilities: bool


def begin(
    llm: Settings,
    prompt_ids: Sequence[int],
    options: DecodingOptions,
    answer_ids: Sequence[int] = (),
    *,
    stop: Stop = None,
    markers: Sequence[str] = (),
    processor: LogitsProcess | None = None,
) -> Completion:
    """The completion of a prompt, from its start or from given tokens on.

    Args:
        llm: Model, tokenizer, agent, and what ends an answer. The model's generation config counts, too.
        prompt_ids: Token ids of the prompt.
        options: Decoding options of the whole answer, including the tokens it begins with.
        answer_ids: Token ids that the answer begins with.
        stop: Stop strings instead of the LLM's own, or else of the generation config's.
        markers: Special tokens that stay in the text.
        processor: Changes the logits after the processors that the generation config asks for.

    Returns:
        The completion, which has a finish reason if nothing is left to generate.
    """
    eos = eos_token_ids(llm.model, llm.tokenizer)
    configured = getattr(llm.model.generation_config, "stop_strings", None) if llm.stop is None else llm.stop
    strings = as_list(configured if stop is None else stop) or ()
    processors = checkpoint_processors(llm.model, prompt_ids, options, eos)
    request = Request(
        [*prompt_ids, *answer_ids] if answer_ids else prompt_ids,
        _remaining(options, len(answer_ids)),
        llm.agent,
        eos,
        _in_turn(processors, processor),
    )
    completion = Completion(
        request,
        IncrementalDetokenizer(llm.tokenizer, strings, markers, llm.stop_token_ids or ()),
        accept_probabilities=[] if llm.include_accept_probabilities else None,
    )
    _repeat(completion, answer_ids, options)
    return completion


def _remaining(options: DecodingOptions, begun: int) -> DecodingOptions:
    """The options of an answer without its first tokens."""
    if not begun:
        return options
    lengths = {
        "max_new_tokens": max(1, options.max_new_tokens - begun),
        "min_new_tokens": max(0, options.min_new_tokens - begun),
    }
    return options.model_copy(update=lengths)


def _in_turn(first: LogitsProcess | None, second: LogitsProcess | None) -> LogitsProcess | None:
    if first is None or second is None:
        return first or second

    def both(ids: Tensor, scores: Tensor) -> Tensor:
        return second(ids, first(ids, scores))

    return both


def _repeat(completion: Completion, answer_ids: Sequence[int], options: DecodingOptions) -> None:
    """Takes the first tokens of an answer, and ends a completion that has ended with them."""
    detokenizer = completion.detokenizer
    for token in answer_ids:
        if not detokenizer.stopped:
            detokenizer.push(token)
    if detokenizer.stopped or (answer_ids and answer_ids[-1] in completion.request.eos_token_ids):
        completion.finish_reason = "stop"
    elif len(answer_ids) >= options.max_new_tokens:
        completion.finish_reason = "length"
    if completion.finish_reason is not None:
        detokenizer.finish()

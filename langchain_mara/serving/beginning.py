"""Begins completions: the only place where an LLM's settings and its checkpoint's become requests."""

from collections.abc import Collection, Sequence

from torch import Tensor

from langchain_mara.decoding.request import LogitsProcess, Request
from langchain_mara.grammar.constraint import GrammarConstraint
from langchain_mara.grammar.engine import GrammarEngine
from langchain_mara.grammar.specification import grammar_text, or_calls
from langchain_mara.options import DecodingOptions
from langchain_mara.serving.completion import Completion
from langchain_mara.serving.generation_config import checkpoint_processors
from langchain_mara.serving.settings import Settings
from langchain_mara.text.chat_template import eos_token_ids
from langchain_mara.text.detokenizer import IncrementalDetokenizer, Stop, as_list
from langchain_mara.text.token_texts import TokenTexts, pieces


def begin(
    llm: Settings,
    prompt_ids: Sequence[int],
    options: DecodingOptions,
    answer_ids: Sequence[int] = (),
    *,
    stop: Stop = None,
    markers: Sequence[str] = (),
    openings: Sequence[str] | None = (),
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
        openings: Beginnings of tool calls, which an answer may be instead of what `response_format` promises. None
            for an answer that continues a call, of which nothing is promised.
        processor: Changes the logits after the processors that the generation config asks for.

    Returns:
        The completion, which has a finish reason if nothing is left to generate.

    Raises:
        GrammarError: If the answer cannot be held to the form that the LLM promises.
    """
    eos = eos_token_ids(llm.model, llm.tokenizer)
    configured = getattr(llm.model.generation_config, "stop_strings", None) if llm.stop is None else llm.stop
    strings = as_list(configured if stop is None else stop) or ()
    processors = checkpoint_processors(llm.model, prompt_ids, options, eos, penalties=llm)
    constraint = _constraint(llm, eos, answer_ids, openings)
    request = Request(
        [*prompt_ids, *answer_ids] if answer_ids else prompt_ids,
        _remaining(options, len(answer_ids)),
        llm.agent,
        eos,
        _in_turn(processors, processor),
        constraint=constraint,
        top_logprobs=(llm.top_logprobs or 0) if llm.logprobs or (llm.top_logprobs and llm.logprobs is None) else None,
    )
    completion = Completion(
        request,
        IncrementalDetokenizer(llm.tokenizer, strings, markers, llm.stop_token_ids or ()),
        accept_probabilities=[] if llm.include_accept_probabilities else None,
        token_texts=None if request.top_logprobs is None else TokenTexts(llm.tokenizer),
    )
    _repeat(completion, answer_ids, options)
    return completion


def _constraint(
    llm: Settings, eos: Collection[int], answer_ids: Sequence[int], openings: Sequence[str] | None
) -> GrammarConstraint | None:
    grammar = grammar_text(llm)
    if grammar is None or openings is None:
        return None
    if openings and grammar.option == "response_format":
        grammar = or_calls(grammar, [pieces(llm.tokenizer, opening) for opening in openings])
    return GrammarConstraint(GrammarEngine.of(llm.tokenizer), grammar, eos, answer_ids)


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
    constraint = completion.request.constraint if answer_ids else None
    ended = answer_ids and answer_ids[-1] in completion.request.eos_token_ids
    if detokenizer.stopped or ended or (constraint and constraint.is_complete([])):
        completion.finish_reason = "stop"
    elif len(answer_ids) >= options.max_new_tokens:
        completion.finish_reason = "length"
    if completion.finish_reason is not None:
        detokenizer.finish()

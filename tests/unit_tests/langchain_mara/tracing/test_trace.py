"""Traces: pairs of decision and text as before, with the candidates as they would continue the text."""

from trace_pages import Page
from transformers import PreTrainedTokenizerBase

from langchain_mara.decoding.request import Decision, Request
from langchain_mara.llms import MaraLLM
from langchain_mara.tracing.trace import Step, Trace
from langchain_mara.tracing.views import prompt_text


def test_a_trace_is_a_sequence_of_decisions_and_texts(llm: MaraLLM, trace: Trace) -> None:
    pairs: list[Step] = list(trace)
    assert len(trace) == len(pairs) == 16
    assert (trace[0], trace[-1], trace[2:4]) == (pairs[0], pairs[-1], pairs[2:4])
    assert all(isinstance(decision, Decision) and isinstance(text, str) for decision, text in trace)
    assert trace.text == "".join(text for _, text in pairs) == llm.invoke("hi", accept_threshold=0.6)
    assert trace.prompt == "hi"
    assert repr(trace) == f"Trace(prompt='hi', text={trace.text!r})"


def test_each_prompt_has_its_traces_in_order(llm: MaraLLM) -> None:
    options = {"order": "sampled", "temperature": 2.0}
    traces = llm.trace(["hi", "no"], n=2, **options)
    assert [answer_trace.prompt for answer_trace in traces] == ["hi", "hi", "no", "no"]
    drawn = llm.generate(["hi", "no"], n=2, **options).generations
    assert [answer.text for answer in traces] == [answer.text for answers in drawn for answer in answers]
    assert len({trace.text for trace in traces}) == 4


def test_a_chat_is_traced_as_it_is_answered(llm: MaraLLM) -> None:
    chat = llm.as_chat()
    conversations = ["hi", [("system", "be"), ("human", "no")]]
    traces = chat.trace(conversations, top_k=5)
    assert [trace.text for trace in traces] == [message.text for message in chat.batch(conversations, top_k=5)]
    assert prompt_text(traces[1].prompt) == "system: be\nuser: no"
    assert Page(traces[1].to_html()).prompt == "system: be\nuser: no"
    assert [answer.text for answer in llm.trace([answer.prompt for answer in traces], top_k=5)] == [
        answer.text for answer in traces
    ]


def test_candidates_are_shown_as_they_would_continue_the_text(
    tokenizer: PreTrainedTokenizerBase, sentencepiece_tokenizer: PreTrainedTokenizerBase
) -> None:
    def shown(kind: PreTrainedTokenizerBase, before: str, *candidates: str) -> list[str]:
        ids, [*before_ids] = kind.convert_tokens_to_ids([*candidates]), kind(before, add_special_tokens=False).input_ids
        first = [Decision(Request([0]), token_id, (token_id,), (), 0, accepted=True) for token_id in before_ids]
        last = Decision(Request([0]), ids[0], tuple(ids), (0.9,) * len(ids), 0, accepted=True)
        page = Page(Trace("", [(decision, "x") for decision in [*first, last]], kind).to_html())
        return [text for text, *_ in page.tokens[-1].candidates]

    assert shown(tokenizer, "th", "Ġth", "he", "</s>") == [" th", "he", "</s>"]
    assert shown(sentencepiece_tokenizer, "ab", "▁a", "cd", "<0xC3>") == [" a", "cd", "<0xC3>"]
    # The second byte of é is a character only after its first.
    first, second = tokenizer.convert_ids_to_tokens(tokenizer("é", add_special_tokens=False).input_ids)
    assert shown(tokenizer, "th", first) == [first]
    assert shown(tokenizer, "é", second) == [second]

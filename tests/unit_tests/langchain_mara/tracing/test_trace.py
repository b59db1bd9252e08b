"""Traces: pairs of decision and text as before, and an HTML view that says exactly what was decided."""

import re
import sys
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from math import isnan, nan
from pathlib import Path

import pytest
from families import tiny_agent
from transformers import PreTrainedTokenizerBase

import langchain_mara
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.llms import MaraLLM
from langchain_mara.tracing.statistics import DecisionStatistics, outcome
from langchain_mara.tracing.trace import Step, Trace
from langchain_mara.tracing.views import prompt_text, visible

STYLE = Path(langchain_mara.__file__).with_name("tracing").joinpath("trace.html.j2").read_text(encoding="utf-8")
TWENTIETHS = [step / 20 for step in range(21)]
VOID = {"br", "meta"}


@dataclass
class Token:
    """A token as the page shows it: classes, accept probability, text, and candidates on hover."""

    classes: list[str]
    accept: float | None
    text: str = ""
    note: str = ""
    candidates: list[tuple[str, float, bool]] = field(default_factory=list)


class Page(HTMLParser):
    """Reads a trace's HTML back; every element must be closed where it belongs."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, list[str]]] = []
        self.tags: set[str] = set()
        self.tokens: list[Token] = []
        self.prompt = self.caption = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        classes = given.get("class", "").split()
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append((tag, classes))
        style = re.fullmatch(r"--accept:(\d\.\d{4})", given.get("style", ""))
        accept = float(style[1]) if style else None
        if "token" in classes and not self._inside("figcaption"):
            assert given["tabindex"] == "0"
            self.tokens.append(Token(classes, accept))
        if "candidate" in classes and accept is not None:
            self.tokens[-1].candidates.append(("", accept, "emitted" in classes))
        if "candidates" in classes:
            assert "hidden" in given

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._inside("code"):
            text, *rest = self.tokens[-1].candidates[-1]
            self.tokens[-1].candidates[-1] = (text + data, *rest)  # type: ignore[assignment]
        elif self._inside("candidates"):
            self.tokens[-1].note += data
        elif self._inside("answer"):
            self.tokens[-1].text += data
        elif self._inside("prompt"):
            self.prompt += data
        elif self._inside("figcaption"):
            self.caption += data

    def _inside(self, name: str) -> bool:
        return any(name == tag or name in classes for tag, classes in self.open)


def rewritten(trace: Trace, place: int, text: str, **changes: object) -> Trace:
    """The trace with another text, and perhaps another decision, at one place."""
    steps = list(trace)
    steps[place] = (replace(steps[place][0], **changes), text)
    return Trace(trace.prompt, steps, trace._tokenizer)


@pytest.fixture
def trace(llm: MaraLLM) -> Trace:
    """Of an agent that accepts and rejects, to the token limit."""
    return llm.trace(["hi"], accept_threshold=0.6)[0]


def test_a_trace_is_a_sequence_of_decisions_and_texts(llm: MaraLLM, trace: Trace) -> None:
    pairs: list[Step] = list(trace)
    assert len(trace) == len(pairs) == 16
    assert (trace[0], trace[-1], trace[2:4]) == (pairs[0], pairs[-1], pairs[2:4])
    assert all(isinstance(decision, Decision) and isinstance(text, str) for decision, text in trace)
    assert trace.text == "".join(text for _, text in pairs) == llm.invoke("hi", accept_threshold=0.6)
    assert trace.prompt == "hi"
    assert repr(trace) == f"Trace(prompt='hi', text={trace.text!r})"


def test_statistics_are_those_of_the_decisions(trace: Trace) -> None:
    assert trace.statistics == DecisionStatistics.of(decision for decision, _ in trace)
    assert 0 < trace.statistics.fallbacks < trace.statistics.decided
    caption = " ".join(Page(trace.to_html()).caption.split())
    counts = trace.statistics
    assert f"{counts.tokens} tokens, agent asked at {counts.decided} positions" in caption
    assert f"{counts.examined} candidates examined, fallbacks: {counts.fallbacks}." in caption


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


def test_page_shows_the_answer_and_what_was_decided(trace: Trace) -> None:
    page = Page(trace.to_html())
    assert page.prompt == "hi"
    assert "".join(token.text for token in page.tokens) == trace.text
    assert [token.text for token in page.tokens] == [text for _, text in trace]
    for token, (decision, text) in zip(page.tokens, trace, strict=True):
        assert outcome(decision) in token.classes
        assert ("silent" in token.classes) is (text == "")
        shown = [accept for _, accept, _ in token.candidates]
        assert shown == pytest.approx(decision.accept_probabilities, abs=1e-4)
        emitted = [place for place, one in enumerate(token.candidates) if one[2]]
        assert emitted == ([decision.index] if decision.accept_probabilities else [])
        assert token.accept == (shown[decision.index] if shown else None)
        unseen = len(decision.candidates) - len(shown)
        assert (f"{unseen} more not examined" in token.note) is bool(shown and unseen)
    assert {"accepted", "steered", "fallback"} <= {name for token in page.tokens for name in token.classes}


def test_plain_decoding_asked_nobody(llm: MaraLLM) -> None:
    page = Page(llm.trace(["hi"], agent=None)[0].to_html())
    assert all("unasked" in token.classes and token.accept is None and not token.candidates for token in page.tokens)
    assert re.search(r"No agent was asked about these \d+ candidates", page.tokens[0].note)
    alone = Page(llm.trace(["hi"], top_k=1)[0].to_html())
    assert all("The only candidate" in token.note for token in alone.tokens)


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


def test_characters_of_several_tokens_stand_where_they_are_whole(llm: MaraLLM) -> None:
    ids = llm.tokenizer("a😀", add_special_tokens=False).input_ids
    assert len(ids) == 5
    decisions = [Decision(Request([0]), token_id, (token_id,), (), 0, accepted=True) for token_id in ids]
    steps = list(zip(decisions, ["a", "", "", "", "😀"], strict=True))
    page = Page(Trace("", steps, llm.tokenizer).to_html())
    assert ["silent" in token.classes for token in page.tokens] == [False, True, True, True, False]
    assert "its text comes with a later token" in page.tokens[1].note
    assert page.tokens[4].text == "😀"


def test_text_is_inert_and_faithful(trace: Trace) -> None:
    text = '</span><script>alert("1")</script> & &amp;\n\n  two\tthree é 😀 '
    html = rewritten(rewritten(trace, 1, text), 2, "\0\x1b\u202e\u2066\x85").to_html()
    page = Page(html)
    assert page.tokens[1].text == text
    assert page.tokens[2].text == "␀␛␦␦␦"
    assert "script" not in page.tags
    assert html.isascii()
    hostile = Trace([{"role": "user", "content": "<b>&"}], list(trace), trace._tokenizer).to_html()
    assert Page(hostile).prompt == "user: <b>&"
    assert "b" not in Page(hostile).tags
    assert visible("<\n") == '&lt;<span class="newline"></span>\n'


def test_nothing_is_loaded_or_run(trace: Trace) -> None:
    html = trace.to_html()
    assert Page(html).tags == {"style", "figure", "p", "div", "span", "code", "figcaption", "br"}
    assert not re.search(r"https?:|url\(|@import|\son\w+=|src=|href=", html)
    assert trace._repr_html_() == html == trace.to_html()


def test_states_that_were_not_finite_are_named(trace: Trace) -> None:
    decision = replace(trace[0][0], accept_probabilities=(nan, 0.25), index=0, accepted=False)
    token = Page(Trace("", [(decision, "x")], trace._tokenizer).to_html()).tokens[0]
    assert isnan(decision.accept_probabilities[0])
    assert (token.accept, [accept for _, accept, _ in token.candidates]) == (0.0, [0.0, 0.25])
    assert "not finite" in token.note


def luminance(color: list[float]) -> float:
    """Relative luminance of sRGB in [0, 1], by WCAG 2."""
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_scale_is_monotone_and_legible_without_hues(scheme: int) -> None:
    variables = re.findall(r"--(sure|doubtful|ink): #(\w{6});", STYLE)[3 * scheme : 3 * scheme + 3]
    colors = {name: [channel / 255 for channel in bytes.fromhex(code)] for name, code in variables}
    assert "color-mix(in srgb, var(--sure) calc(var(--accept) * 100%), var(--doubtful))" in STYLE
    ends = list(zip(colors["sure"], colors["doubtful"], strict=True))
    shades = [luminance([accept * sure + (1 - accept) * doubtful for sure, doubtful in ends]) for accept in TWENTIETHS]
    # Greys that rise, or fall, with every step: whoever sees no hues still sees the order.
    steps = [after - before for before, after in pairwise(shades)]
    assert all(step > 0 for step in steps) if scheme == 0 else all(step < 0 for step in steps)
    assert max(shades) + 0.05 > 1.8 * (min(shades) + 0.05)
    ink = luminance(colors["ink"])
    assert all((max(ink, shade) + 0.05) / (min(ink, shade) + 0.05) >= 4.5 for shade in shades)


def test_plot_is_the_histogram_of_accepted_indices(llm: MaraLLM) -> None:
    pytest.importorskip("matplotlib").use("agg")
    trace = llm.trace(["hi"], agent=tiny_agent(seed=3), accept_threshold=0.6)[0]
    heights = [bar.get_height() for bar in trace.plot().patches]
    assert heights == trace.statistics.as_info()["accepted_index"]
    assert len(heights) > 1


def test_plot_says_what_it_needs(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"Plots need matplotlib: pip install 'langchain-mara\[plot\]'"):
        trace.plot()

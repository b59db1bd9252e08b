"""Answers that conform to a schema, an expression, a grammar or a choice, all of them judged by the agent."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from families import tiny_agent, tiny_look_ahead
from grammars import EOS, TOKENIZER, engine, ids, json_llm, promised, text_of
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from transformers import LogitsProcessorList

from langchain_mara.agents.base import Agent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Decision, Request
from langchain_mara.exceptions import GrammarError
from langchain_mara.grammar.constraint import GrammarConstraint
from langchain_mara.llms import MaraLLM
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.beginning import begin
from langchain_mara.serving.completion import Completion, complete

SCHEMAS = json.loads((Path(__file__).parents[3] / "data/json_schema/schemas.json").read_text())
JUDGES = {
    "draft2020-12": jsonschema.Draft202012Validator,
    "draft2019-09": jsonschema.Draft201909Validator,
    "draft7": jsonschema.Draft7Validator,
    "draft6": jsonschema.Draft6Validator,
    "draft4": jsonschema.Draft4Validator,
}
FORMS: list[dict[str, Any]] = [
    {},
    {"regex": "(ab|abc)*( the end)?"},
    {"grammar": 'start: "(" (start | "x"*) ")"'},
    {"choice": ["yes", "no", "yes yes yes yes yes yes yes yes yes"]},
    {"response_format": promised({"type": "array", "items": {"enum": [1, 22, True]}})},
    {"regex": "[0-9]{3}"},
]


@pytest.fixture(scope="module")
def llm() -> MaraLLM:
    return json_llm(max_new_tokens=60)


@pytest.fixture(scope="module")
def plain() -> MaraLLM:
    """An LLM without processors, for which drafts are made, and without an agent."""
    llm = json_llm(max_new_tokens=60, agent=None, accept_threshold=0.5)
    llm.model.generation_config.sequence_bias = None
    return llm


def completions(llm: MaraLLM, changes: list[dict[str, Any]]) -> list[Completion]:
    """The answers to one prompt, in one batch, each with options of its own."""
    prompt = llm.encode("Hi")
    begun = [each for change in changes for each in llm._configured(change)._completions(prompt, None)]
    list(complete(llm._generation_job(begun)))
    return begun


def facts(llm: MaraLLM, requests: list[Request], **how: Any) -> tuple[list[list[Any]], int]:
    """What was decided for each request, and the number of drafted tokens."""
    decided: dict[Request, list[Decision]] = {request: [] for request in requests}
    for decision in decode(PolicyModel(llm.model), requests, **how):
        decided[decision.request].append(decision)
    rows = [[(d.token_id, d.candidates, d.index, d.finish_reason) for d in row] for row in decided.values()]
    return rows, sum(d.drafted for row in decided.values() for d in row)


def request(llm: MaraLLM, form: dict[str, Any], prompt: str = "ab ab (x) yes yes", **options: Any) -> Request:
    (completion,) = llm._configured({**form, **options})._completions(llm.encode(prompt), None)
    return completion.request


def test_two_hundred_schemas_of_the_official_suite(llm: MaraLLM) -> None:
    assert len(SCHEMAS) == 200
    how = {"order": "sampled", "max_new_tokens": 400, "batch_size": 32}
    sampled = llm._configured(how)
    answers = completions(
        sampled, [{"response_format": promised(each["schema"]), "seed": i} for i, each in enumerate(SCHEMAS)]
    )
    faults = []
    for entry, answer in zip(SCHEMAS, answers, strict=True):
        judge = JUDGES[entry["from"].partition("/")[0]](entry["schema"])
        text = answer.detokenizer.text
        valid = answer.finish_reason == "stop" and judge.is_valid(json.loads(text))
        faults += [] if valid else [(entry["description"], text)]
    assert faults == []
    examined, fallbacks, decided = (
        sum(getattr(answer.statistics, name) for answer in answers) for name in ("examined", "fallbacks", "decided")
    )
    assert 0.4 < (decided - fallbacks) / examined < 0.6


@given(
    width=st.sampled_from([None, 1, 2, 7]), batch_size=st.integers(1, 6), draft=st.integers(0, 5),
    forms=st.lists(st.integers(0, len(FORMS) - 1), min_size=1, max_size=6), accepts=st.sampled_from([0.0, 100.0]),
    strategy=st.sampled_from(["first-accept", "guided"]),
)  # fmt: skip
@settings(max_examples=12, deadline=None, phases=[Phase.generate])
def test_a_batch_with_drafts_is_each_answer_alone(
    plain: MaraLLM, width: int | None, batch_size: int, draft: int, forms: list[int], accepts: float, strategy: str
) -> None:
    agents = [tiny_agent(seed=3, bias=accepts), tiny_look_ahead(seed=4), None]

    def all_requests() -> list[Request]:
        return [
            request(plain.with_agent(agents[i % 3]), FORMS[form], max_new_tokens=20, strategy=strategy)
            for i, form in enumerate(forms)
        ]

    alone = [facts(plain, [each], width=1)[0][0] for each in all_requests()]
    together, _ = facts(plain, all_requests(), width=width, batch_size=batch_size, draft=draft)
    assert together == alone


def test_drafts_are_verified_by_the_grammar(plain: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_mara.decoding.ngram.LOOKUP_TOKENS", 1)
    drafted_tokens = 0
    for form in FORMS[1:]:
        for prompt in ("ab ab (x) yes yes", "abcabcabc the end, 1, 22, 1, 22"):
            alone, none = facts(plain, [request(plain, form, prompt)])
            with_drafts, drafted = facts(plain, [request(plain, form, prompt)], draft=4)
            assert with_drafts == alone
            assert none == 0
            drafted_tokens += drafted
    assert drafted_tokens > 5


@pytest.mark.parametrize("processed", [True, False])
def test_the_agent_judges_grammatical_candidates_only(llm: MaraLLM, plain: MaraLLM, processed: bool) -> None:
    llm = llm if processed else plain.with_agent(llm.agent)
    form = FORMS[4]
    fresh = GrammarConstraint(engine(), text_of(**form), {EOS})
    (trace,) = llm.trace(["Hi"], top_p=1.0, **form)
    decisions = [decision for decision, _ in trace]
    assert any(len(decision.accept_probabilities) > 1 for decision in decisions)
    for i, decision in enumerate(decisions):
        allowed = set(fresh.allowed([d.token_id for d in decisions[:i]]).nonzero().flatten().tolist())
        assert set(decision.candidates) <= allowed
        assert len(decision.candidates) == min(len(allowed), 40)


@pytest.mark.parametrize("kind", [tiny_agent, tiny_look_ahead])
@pytest.mark.parametrize("options", [{}, {"strategy": "guided", "strength": 0.9}], ids=["first-accept", "guided"])
def test_the_agent_still_decides(llm: MaraLLM, kind: Callable[..., Agent], options: dict[str, Any]) -> None:
    answers = {llm.with_agent(kind(seed=seed)).invoke("Hi", regex="[a-z]{6}", **options) for seed in range(6)}
    assert len(answers) > 1
    assert all(re.fullmatch("[a-z]{6}", answer) for answer in answers)


def test_an_answer_ends_when_it_is_complete(llm: MaraLLM) -> None:
    (answer,) = completions(llm, [{"regex": "[0-9]{3}"}])
    assert answer.finish_reason == "stop"
    assert re.fullmatch("[0-9]{3}", answer.detokenizer.text)
    assert answer.statistics.tokens == len(ids(answer.detokenizer.text)) == 3


@pytest.mark.parametrize("form", FORMS[1:])
def test_all_ways_to_ask_give_the_same(llm: MaraLLM, form: dict[str, Any]) -> None:
    whole = llm.invoke("Hi", **form)
    assert "".join(llm.stream("Hi", **form)) == whole
    assert llm.batch(["Hi", "Ho"], **form)[0] == whole
    bound = MaraLLM(model=llm.model, tokenizer=TOKENIZER, agent=llm.agent, accept_threshold=0.3, **form)
    assert bound.invoke("Hi", max_new_tokens=60) == whole


def test_a_wrong_schema_fails_its_own_call_only(llm: MaraLLM) -> None:
    inputs = ["Hi", "Ho"]
    refused = llm.batch(inputs, return_exceptions=True, response_format=promised({"not": {}}))
    assert [type(each) for each in refused] == [GrammarError, GrammarError]
    assert llm.batch(inputs, choice=["yes"]) == ["yes", "yes"]


def test_an_engine_that_gives_up_ends_its_own_row_only(llm: MaraLLM) -> None:
    good, bad, late = (request(llm, FORMS[form]) for form in (5, 1, 5))
    expected, _ = facts(llm, [request(llm, FORMS[5])])

    class Raises(GrammarConstraint):
        after = 0

        def allowed(self, answer: Any) -> torch.Tensor:
            if len(answer) >= self.after:
                raise GrammarError("gave up")
            return super().allowed(answer)

    bad.constraint = Raises(engine(), text_of(**FORMS[1]), {EOS})
    late.constraint = Raises(engine(), text_of(**FORMS[5]), {EOS})
    late.constraint.after = 2
    decided: dict[Request, list[int]] = {each: [] for each in (good, bad, late)}
    for decision in decode(PolicyModel(llm.model), [bad, good, late], on_leave=lambda _: None):
        decided[decision.request].append(decision.token_id)
    assert decided[good] == [fact[0] for fact in expected[0]]
    assert isinstance(bad.error, GrammarError)
    assert isinstance(late.error, GrammarError)
    assert good.error is None
    assert (len(decided[bad]), len(decided[late])) == (0, 2)


def test_what_has_ended_keeps_no_matcher(llm: MaraLLM) -> None:
    done, running = (request(llm, {"regex": regex}) for regex in ("[0-9]{2}", "[a-z]{60}"))
    decisions = decode(PolicyModel(llm.model), [done, running])
    for decision in decisions:
        if decision.request is done and decision.finish_reason:
            break
    next(decisions), next(decisions)
    assert done.constraint._matcher is None
    assert running.constraint._matcher is not None
    decisions.close()
    assert running.constraint._matcher is None


def test_a_position_may_be_cut_again(llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = [FORMS[i] for i in (1, 2, 4, 5)]
    expected, _ = facts(llm, [request(llm, form) for form in forms])
    logits, calls = PolicyModel.logits, iter(range(10**6))

    def sometimes_full(self: PolicyModel, states: torch.Tensor) -> torch.Tensor:
        if len(states) > 1 and next(calls) % 3 == 0:
            raise torch.OutOfMemoryError("full")
        return logits(self, states)

    monkeypatch.setattr(PolicyModel, "logits", sometimes_full)
    assert facts(llm, [request(llm, form) for form in forms])[0] == expected
    assert next(calls) > 3


def test_an_answer_may_go_on(llm: MaraLLM) -> None:
    form = llm._configured(FORMS[4])
    prompt, options = llm.encode("Hi"), llm._options()
    whole = begin(form, prompt, options)
    tokens = [delta.decision.token_id for delta in complete(llm._generation_job([whole]))]
    rest = begin(form, prompt, options, tokens[:2])
    assert [d.decision.token_id for d in complete(llm._generation_job([rest]))] == tokens[2:]
    assert begin(form, prompt, options, tokens).finish_reason == "stop"
    with pytest.raises(GrammarError, match="beginning"):
        begin(form, prompt, options, ids("x"))


def test_penalties_yield_to_the_grammar(llm: MaraLLM) -> None:
    one = ids("1")
    answer = llm.invoke("Hi", regex="1{8}", no_repeat_ngram_size=1)
    assert answer == "1" * 8
    forbids = LogitsProcessorList([lambda _, scores: scores.index_fill(1, torch.tensor(one), -torch.inf)])
    bound = request(llm, {"regex": "(1|2){5}"})
    bound.logits_processor = forbids
    assert TOKENIZER.decode([fact[0] for fact in facts(llm, [bound])[0][0]]) == "22222"


def test_a_processor_forces_nothing_ungrammatical(llm: MaraLLM) -> None:
    bound = request(llm, {"regex": "[12]{5}"})
    bound.logits_processor = lambda _, scores: scores.fill_(0.0).index_fill(1, torch.tensor(ids("7")), torch.inf)
    assert re.fullmatch("[12]{5}", TOKENIZER.decode([fact[0] for fact in facts(llm, [bound])[0][0]]))


def test_processors_compare_grammatical_tokens(llm: MaraLLM) -> None:
    seen = []
    bound = request(llm, {"regex": "[12]"})
    bound.logits_processor = lambda _, scores: seen.append(scores.isfinite().sum().item()) or scores
    facts(llm, [bound])
    assert seen == [2]


def test_the_form_is_part_of_the_cache_key(llm: MaraLLM) -> None:
    keys = {str(llm._configured(form)._identifying_params) for form in FORMS}
    assert len(keys) == len(FORMS)
    cache = InMemoryCache()
    with_cache = json_llm(cache=cache, max_new_tokens=20)
    answers = [with_cache.invoke("Hi", **form) for form in FORMS]
    assert len(cache._cache) == len(FORMS)
    assert [with_cache.invoke("Hi", **form) for form in FORMS] == answers


def test_a_model_without_eos_ends_with_its_grammar(llm: MaraLLM) -> None:
    policy = PolicyModel(llm.model)
    grammar = GrammarConstraint(engine(), text_of(regex="ab{2}"), ())
    options = DecodingOptions(max_new_tokens=9)
    last = list(decode(policy, [Request(llm.encode("Hi"), options, constraint=grammar)]))[-1]
    assert last.finish_reason == "stop"

"""Completions: text and finish reason out of decisions, and counts over them."""

from collections.abc import Callable
from math import inf, nan

import pytest
import torch
from families import decoding_threads, tiny_agent, wait_until
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.decoding.request import Decision, FinishReason, Request
from langchain_mara.exceptions import NonFiniteError
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.completion import Completion, CompletionDelta, GenerationJob, complete
from langchain_mara.serving.scheduler import BatchConfig
from langchain_mara.text.detokenizer import IncrementalDetokenizer

PROMPTS = {"hi": [0, 12, 13], "the": [0, 40, 9], "b": [0, 6]}
MakeCompletion = Callable[..., Completion]


@pytest.fixture(scope="module")
def policy(model: PreTrainedModel) -> PolicyModel:
    return PolicyModel(model)


@pytest.fixture
def completion_of(tokenizer: PreTrainedTokenizerFast, agent: MaraAgent) -> MakeCompletion:
    """A completion of one of the prompts that has not begun."""

    def make(prompt: str = "hi", stop: tuple[str, ...] = (), eos: int = 1, new: int = 12) -> Completion:
        request = Request(PROMPTS[prompt], DecodingOptions(max_new_tokens=new), agent, frozenset({eos}))
        return Completion(request, IncrementalDetokenizer(tokenizer, stop))

    return make


def run(policy: PolicyModel, *completions: Completion) -> list[tuple[Completion, Decision, str]]:
    return [delta[:3] for delta in complete(GenerationJob(policy, completions, BatchConfig(batch_size=4, width=4)))]


def passes_of(policy: PolicyModel, completion: Completion) -> tuple[list[tuple[Completion, Decision, str]], int]:
    """A completion's steps, and the passes made until nothing was left to do."""
    before = policy.passes
    steps = run(policy, completion)
    wait_until(lambda: not decoding_threads())
    return steps, policy.passes - before


def decision(
    request: Request,
    token_id: int | None,
    probabilities: tuple[float, ...] = (),
    finish: FinishReason | None = None,
) -> Decision:
    """A decision whose last examined candidate is the emitted one if it was accepted, else the first."""
    accepted = not probabilities or probabilities[-1] > 0.5
    index = max(0, len(probabilities) - 1) if accepted else 0
    return Decision(request, token_id, (5, 6, 7, 8), probabilities, index, accepted, finish)


def test_text_is_the_decoded_tokens_and_the_deltas_joined(
    policy: PolicyModel, tokenizer: PreTrainedTokenizerFast, completion_of: MakeCompletion
) -> None:
    completion = completion_of()
    steps = run(policy, completion)
    ids = [step.token_id for _, step, _ in steps]
    assert completion.detokenizer.text == "".join(text for _, _, text in steps)
    assert completion.detokenizer.text == tokenizer.decode(ids, skip_special_tokens=True) != ""


def test_token_limit_finishes_with_length(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completion = completion_of(new=5)
    steps = run(policy, completion)
    assert completion.finish_reason == "length"
    assert [step.finish_reason for _, step, _ in steps] == [None] * 4 + ["length"]


def test_eos_finishes_with_stop(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    emitted = [step.token_id for _, step, _ in run(policy, completion_of())]
    eos = emitted[6]
    completion = completion_of(eos=eos)
    steps = run(policy, completion)
    assert completion.finish_reason == "stop"
    assert [step.token_id for _, step, _ in steps] == emitted[: emitted.index(eos) + 1]
    assert not completion.request.cancelled


def test_stop_string_finishes_with_stop_and_no_further_pass(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    free = completion_of()
    run(policy, free)
    text = free.detokenizer.text
    stop = text[5:8]
    completion = completion_of(stop=(stop,))
    steps, passes = passes_of(policy, completion)
    assert completion.finish_reason == "stop"
    assert completion.detokenizer.text == text[: text.index(stop)]
    assert completion.request.cancelled
    assert passes == passes_of(policy, completion_of(new=len(steps)))[1]
    assert completion.statistics.tokens == len(steps) < free.statistics.tokens


def test_sequence_that_stops_leaves_its_neighbors_alone(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    alone = {prompt: completion_of(prompt) for prompt in PROMPTS}
    for completion in alone.values():
        run(policy, completion)
    stopped = completion_of("hi", stop=(alone["hi"].detokenizer.text[2:4],))
    others = [completion_of("the"), completion_of("b")]
    run(policy, others[0], stopped, others[1])
    assert stopped.finish_reason == "stop"
    for neighbor, expected in zip(others, (alone["the"], alone["b"]), strict=True):
        assert neighbor.detokenizer.text == expected.detokenizer.text
        assert neighbor.statistics == expected.statistics


def test_an_answer_without_a_next_token_is_an_error(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    def forbids_all_after_three(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -inf) if ids.shape[1] >= len(PROMPTS["hi"]) + 3 else scores

    expected = completion_of(new=3)
    run(policy, expected)
    completion = completion_of()
    completion.request.logits_processor = forbids_all_after_three
    with pytest.raises(NonFiniteError, match="the logits processor or min_new_tokens forbids every token"):
        run(policy, completion)
    assert expected.detokenizer.text.startswith(completion.detokenizer.text)
    assert completion.statistics.tokens == 3


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_last_decision_releases_what_was_held_back(completion_of: MakeCompletion, finish: FinishReason) -> None:
    completion = completion_of(stop=("az",))
    assert completion.push(decision(completion.request, 5)) == ""
    last = decision(completion.request, 3, finish=finish)
    assert completion.push(last) == "a"
    assert completion.finish_reason == finish


def test_stop_string_counts_before_the_token_limit(completion_of: MakeCompletion) -> None:
    completion = completion_of(stop=("a",))
    assert completion.push(decision(completion.request, 5, finish="length")) == ""
    assert completion.finish_reason == "stop"


def test_stop_string_in_the_last_broken_bytes_is_met(
    tokenizer: PreTrainedTokenizerFast, completion_of: MakeCompletion
) -> None:
    completion = completion_of(stop=("a\N{REPLACEMENT CHARACTER}",))
    first_byte = tokenizer("€", add_special_tokens=False).input_ids[0]
    assert completion.push(decision(completion.request, 5)) == ""
    assert completion.push(decision(completion.request, first_byte, finish="length")) == ""
    assert completion.finish_reason == "stop"


def test_closing_early_leaves_the_policy_usable(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    expected = completion_of()
    run(policy, expected)
    steps = complete(GenerationJob(policy, [completion_of()], BatchConfig(batch_size=1, width=2)))
    next(steps)
    steps.close()
    again = completion_of()
    run(policy, again)
    assert again.detokenizer.text == expected.detokenizer.text


@pytest.mark.parametrize(
    ("bias", "accepted_index", "fallbacks"), [(100.0, [12], 0), (-100.0, [], 12)], ids=["always", "never"]
)
def test_always_accepts_the_first_and_never_always_falls_back(
    policy: PolicyModel,
    completion_of: MakeCompletion,
    bias: float,
    accepted_index: list[int],
    fallbacks: int,
) -> None:
    completion = completion_of(eos=96)
    completion.request.agent = tiny_agent(bias=bias)
    steps = run(policy, completion)
    info = completion.statistics.as_info()
    assert all(len(step.candidates) > 1 for _, step, _ in steps)
    assert (info["decided"], info["accepted_index"], info["fallbacks"]) == (12, accepted_index, fallbacks)
    examined = [1 if bias > 0 else len(step.candidates) for _, step, _ in steps]
    assert info["examined"] == sum(examined)


def test_sometimes_accepts_later_candidates(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completion = completion_of()
    steps = run(policy, completion)
    info = completion.statistics.as_info()
    asked = [step for _, step, _ in steps if step.accept_probabilities]
    assert sum(info["accepted_index"]) + info["fallbacks"] == info["decided"] == len(asked)
    assert info["examined"] == sum(len(step.accept_probabilities) for step in asked)
    assert len(info["accepted_index"]) > 1


def test_plain_decoding_asks_nobody(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completion = completion_of()
    completion.request.agent = None
    run(policy, completion)
    info = completion.statistics.as_info()
    assert info["tokens"] > 0
    assert (info["decided"], info["examined"], info["accepted_index"]) == (0, 0, [])


def pushed(completion: Completion, step: Decision) -> CompletionDelta:
    """The delta of a decision, as the decoding thread makes it."""
    text = completion.push(step)
    return CompletionDelta(completion, step, text, completion.finish_reason is not None, completion.decisions)


def test_a_chunk_has_the_accept_probabilities_up_to_its_delta(completion_of: MakeCompletion) -> None:
    """The decoding thread may be ahead: here it has decided all before the reader sees the first delta."""
    completion = completion_of()
    completion.accept_probabilities = []
    steps = [(0.9,), (0.1, nan, 0.8), (), (0.2, 0.7)]
    ends: list[FinishReason | None] = [None, None, None, "length"]
    deltas = [
        pushed(completion, decision(completion.request, 5, step, end)) for step, end in zip(steps, ends, strict=True)
    ]
    infos = [completion.info_of_chunk(delta) or {} for delta in deltas]
    assert [info["accept_probabilities"] for info in infos] == [[[0.9]], [[0.1, None, 0.8]], [[]], [[0.2, 0.7]]]
    assert ["finish_reason" in info for info in infos] == [False, False, False, True]
    assert infos[-1] == {**completion.info, "accept_probabilities": [[0.2, 0.7]]}


def test_a_chunk_of_several_deltas_has_the_probabilities_of_all(completion_of: MakeCompletion) -> None:
    completion = completion_of()
    completion.accept_probabilities = []
    deltas = [pushed(completion, decision(completion.request, 5, (p,))) for p in (0.6, 0.7, 0.8)]
    assert completion.info_of_chunk(deltas[1]) == {"accept_probabilities": [[0.6], [0.7]]}
    assert completion.info_of_chunk(deltas[2]) == {"accept_probabilities": [[0.8]]}


def test_only_the_last_chunk_has_info_without_probabilities(completion_of: MakeCompletion) -> None:
    completion = completion_of()
    first = pushed(completion, decision(completion.request, 5, (0.6,)))
    last = pushed(completion, decision(completion.request, 5, (0.6,), "length"))
    assert completion.info_of_chunk(first) is None
    assert completion.info_of_chunk(last) == completion.info


def test_a_slow_reader_gets_every_delta_before_the_error(policy: PolicyModel, completion_of: MakeCompletion) -> None:
    completion = completion_of(eos=-1)

    def fail_at_the_sixth(input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == len(PROMPTS["hi"]) + 5:
            raise LookupError("the sixth token")
        return scores

    completion.request.logits_processor = fail_at_the_sixth
    deltas = []

    def read_slowly() -> None:
        for delta in complete(GenerationJob(policy, [completion], BatchConfig(width=4))):
            wait_until(lambda: not decoding_threads())  # the request has failed before the first delta is read
            deltas.append(delta)

    with pytest.raises(LookupError, match="the sixth token"):
        read_slowly()
    # The pass that decided the fifth token failed when it cut the sixth's candidates.
    assert [delta.decisions for delta in deltas] == [1, 2, 3, 4]

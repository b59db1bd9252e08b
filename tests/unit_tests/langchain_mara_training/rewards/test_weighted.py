"""Weighted sums of reward functions: synchronous or not, named, weighted, checked and called with what they name."""

import asyncio
import functools
import math
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.data.readers import Prompt
from langchain_mara_training.rewards.weighted import WeightedRewards

from langchain_mara.exceptions import RewardError

PROMPTS = ["one", "two", "three"]
COMPLETIONS = ["a", "bb", "cccc"]


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def only_short(completions: list[str], **_: Any) -> list[float | None]:
    return [10.0 if len(text) < 3 else None for text in completions]


async def slow_length(completions: list[str], **_: Any) -> list[float]:
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


class Constant:
    def __init__(self, value: Any, name: str | None = None) -> None:
        self.value = value
        if name is not None:
            self.name = name

    def __call__(self, completions: list[str], **kwargs: Any) -> list[Any]:
        return [self.value] * len(completions)


def score(functions: Any, weights: list[float] | None = None, **columns: Any) -> list[float]:
    return WeightedRewards(functions, weights)(prompts=PROMPTS, completions=COMPLETIONS, **columns).tolist()


def test_one_function_is_itself() -> None:
    rewards = WeightedRewards(length)(prompts=PROMPTS, completions=COMPLETIONS)
    assert rewards.dtype == np.float64
    assert rewards.tolist() == [1.0, 2.0, 4.0]


def test_weighted_sum_runs_over_those_that_scored() -> None:
    assert score([length, only_short]) == [11.0, 12.0, 4.0]
    assert score([length, only_short], [2.0, -0.5]) == [-3.0, -1.0, 8.0]


@pytest.mark.parametrize("nothing", [None, math.nan, np.float32("nan")])
@pytest.mark.filterwarnings("ignore:The reward function Constant returned NaN")
def test_what_no_function_scores_is_nan(nothing: Any) -> None:
    assert np.isnan(score(Constant(nothing))).all()
    assert score([Constant(nothing), length]) == [1.0, 2.0, 4.0]
    rewards = score([only_short, Constant(nothing)])
    assert rewards[:2] == [10.0, 10.0]
    assert math.isnan(rewards[2])


def test_a_weight_of_zero_still_counts_as_scored() -> None:
    assert score([Constant(None), length], [1.0, 0.0]) == [0.0, 0.0, 0.0]


def test_each_function_on_its_own() -> None:
    table = WeightedRewards([length, only_short], [3.0, 3.0]).each(prompts=PROMPTS, completions=COMPLETIONS)
    assert list(table) == ["length", "only_short"]
    assert table["length"].tolist() == [1.0, 2.0, 4.0]
    assert np.isnan(table["only_short"]).tolist() == [False, False, True]


@pytest.mark.parametrize("given", [True, 1, np.int64(1), np.float16(1), torch.tensor(1.0)])
def test_numbers_of_any_make(given: Any) -> None:
    assert score(Constant(given)) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("whole", [(1, 2, 3), np.array([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0])])
def test_arrays_tensors_and_tuples(whole: Any) -> None:
    assert score(lambda **_: whole) == [1.0, 2.0, 3.0]


def test_names() -> None:
    functions = [length, Constant(1), Constant(2), Constant(3, "three"), length, lambda **_: [], length]
    partial = functools.partial(length, extra=1)
    names = WeightedRewards([*functions, partial]).names
    assert names == ["length", "Constant", "Constant_2", "three", "length_2", "lambda", "length_3", "length_4"]


def test_a_numbered_name_is_taken_once() -> None:
    names = [Constant(0, "a"), Constant(0, "a_2"), Constant(0, "a")]
    assert WeightedRewards(names).names == ["a", "a_2", "a_3"]


def test_dataset_columns_reach_the_functions() -> None:
    def right(completions: list[str], answer: list[str], completion_ids: Any, **kwargs: Any) -> list[float]:
        assert completion_ids == [[1], [2], [3]]
        assert kwargs == {"prompts": PROMPTS, "topic": ["x"] * 3}
        return [float(text == item) for text, item in zip(completions, answer, strict=True)]

    ids = [[1], [2], [3]]
    assert score(right, completion_ids=ids, answer=["a", "c", "cccc"], topic=["x"] * 3) == [1.0, 0.0, 1.0]


def test_a_function_gets_only_what_it_names() -> None:
    function = lambda prompts, completions: [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]  # noqa: E731
    assert score(function, topic=["x"] * 3) == [4.0, 5.0, 9.0]
    assert score(lambda completions, bonus=5: [bonus] * len(completions), topic=["x"] * 3) == [5.0, 5.0, 5.0]


def test_a_function_that_asks_for_more_than_there_is() -> None:
    with pytest.raises(RewardError, match=r"reward function lambda needs answer, but only prompts, .*add the col"):
        score(lambda completions, answer: [completions, answer])


def test_messages_pass_unchanged() -> None:
    seen: list[Any] = []

    def look(prompts: list[Prompt], completions: list[Prompt], **_: Any) -> list[float]:
        seen.extend([*prompts, *completions])
        return [1.0]

    prompt, completion = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hello"}]
    WeightedRewards(look)(prompts=[prompt], completions=[completion])
    assert seen == [prompt, completion]


def test_no_completions_ask_nobody() -> None:
    def never(**kwargs: Any) -> list[float]:
        raise NotImplementedError

    assert WeightedRewards(never)(prompts=[], completions=[]).shape == (0,)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda **_: [1.0], r"lambda returned 1 rewards for 3 completions"),
        (lambda **_: 1.0, r"lambda returned float; return a list"),
        (lambda **_: None, r"lambda returned NoneType; return a list"),
        (Constant("good"), r"Constant returned 'good' as a reward"),
        (Constant([1.0]), r"Constant returned \[1.0\] as a reward"),
        (Constant(math.inf), r"Constant returned inf as a reward"),
        (lambda completions: completions[7], r"lambda failed with IndexError: list index out of range"),
    ],
)
def test_refused_results(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score([length, function])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0], [1.0, math.nan]])
def test_weights_must_fit(weights: list[float]) -> None:
    with pytest.raises(RewardError, match="2 reward functions need as many finite weights"):
        WeightedRewards([length, only_short], weights)


@pytest.mark.parametrize("functions", [[], ["length"], 3])
def test_something_to_call(functions: Any) -> None:
    with pytest.raises((RewardError, TypeError)):
        WeightedRewards(functions)


def test_as_many_prompts_as_completions() -> None:
    with pytest.raises(RewardError, match="2 prompts but 3 completions"):
        WeightedRewards(length)(prompts=["a", "b"], completions=COMPLETIONS)


def test_sums_nest() -> None:
    assert score([WeightedRewards([length, slow_length]), length], [1.0, 1.0]) == [3.0, 6.0, 12.0]


class Meeting:
    """Functions that wait for one another; alone, each would wait in vain."""

    def __init__(self, size: int) -> None:
        self.missing, self.complete = size, asyncio.Event()

    async def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        self.missing -= 1
        if not self.missing:
            self.complete.set()
        await asyncio.wait_for(self.complete.wait(), 20)
        return [1.0] * len(completions)


def returns_awaitable(completions: list[str], **_: Any) -> Awaitable[list[float]]:
    return slow_length(completions)


def test_asynchronous_functions() -> None:
    assert score([slow_length, length, returns_awaitable], [1.0, 10.0, 100.0]) == [111.0, 222.0, 444.0]


def test_asynchronous_functions_run_concurrently() -> None:
    meeting = Meeting(2)
    assert score([meeting, meeting]) == [2.0, 2.0, 2.0]


async def test_asynchronous_functions_under_a_running_loop() -> None:
    assert score([slow_length, length]) == [2.0, 4.0, 8.0]


def test_one_loop_for_all_calls() -> None:
    loops = []

    async def remember(completions: list[str]) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    threads = threading.active_count()
    for _ in range(3):
        score(remember)
    assert len(set(loops)) == 1
    assert threading.active_count() <= threads + 1


def test_a_forked_process_has_a_loop_of_its_own() -> None:
    score(slow_length)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        signal.alarm(20)
        os.write(writer, str(score(slow_length)).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"[1.0, 2.0, 4.0]"


async def fails(**_: Any) -> list[float]:
    await asyncio.sleep(0)
    raise OSError("no route")


def test_asynchronous_failures_name_the_function() -> None:
    with pytest.raises(RewardError, match="The reward function fails failed with OSError: no route"):
        score([slow_length, fails])


@pytest.mark.filterwarnings("error")
def test_a_failure_leaves_nothing_unawaited() -> None:
    with pytest.raises(RewardError, match="lambda failed"):
        score([slow_length, lambda completions: completions[7]])


def test_trl_functions_plug_in_unchanged() -> None:
    trl = pytest.importorskip("trl.rewards")
    thought = "<think>\nHm.\n</think>\nYes."
    completions = [[{"role": "assistant", "content": text}] for text in (thought, "Yes.")]
    prompts = [[{"role": "user", "content": "Is it?"}]] * 2
    repetition = trl.get_repetition_penalty_reward(ngram_size=1, max_penalty=-1.0)
    overlong = trl.get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)
    rewards = WeightedRewards([trl.think_format_reward, repetition, overlong])
    ids = [[1, 1], [1, 2, 3]]
    table = rewards.each(prompts, completions, completion_ids=ids, topic=["x", "y"])
    assert table[rewards.names[0]].tolist() == [1.0, 0.0]
    assert table[rewards.names[1]].tolist() == repetition(completions=completions, completion_ids=ids) != [0.0, 0.0]
    assert table[rewards.names[2]].tolist() == [0.0, -0.5]


def half(completions: list[str]) -> list[Any]:
    return [math.nan, None, np.float64("nan")][: len(completions)]


def test_nan_is_named_and_counted_once_per_call(recwarn: pytest.WarningsRecorder) -> None:
    score([half, length])
    (warning,) = recwarn.list
    assert "half returned NaN for 2 of 3 completions, which count as not scored. Return None" in str(warning.message)
    recwarn.clear()
    assert np.isnan(score([only_short, Constant(None)])).tolist() == [False, False, True]
    assert score([WeightedRewards(only_short), length]) == [11.0, 12.0, 4.0]
    assert not recwarn.list

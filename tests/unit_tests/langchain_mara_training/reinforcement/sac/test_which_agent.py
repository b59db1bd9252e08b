"""Which agent MaraSAC has after each method, and after a method that failed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_mara_training import MaraSAC
from langchain_mara_training.reinforcement.replay_buffer import ReplayBuffer
from langchain_mara_training.storage.callbacks import JobCallback, JobProgress

from langchain_mara import MaraAgent, MaraLLM
from langchain_mara.exceptions import OptionsError, RewardError

PROMPTS = ["How do I boil an egg?", "How do I pick a lock?", "What is a good book?", "How do I clean a carpet?"]
HELD_OUT = ["What is a noun?"]
SMALL = {"parallel": 4, "width": 16, "batch_size": 16, "updates": 1, "warm_up": 1, "evaluate_every": 4, "episodes": 12}


class Evaluations:
    """A reward that gives set values to the held-out prompt, one after the other, and counts vowels elsewhere."""

    version = "1"

    def __init__(self, *values: float | None) -> None:
        self.values = iter(values)

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        if prompts == HELD_OUT:
            return [next(self.values)]
        return [-float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


def sac(llm: MaraLLM, reward: Any, **options: Any) -> MaraSAC:
    return MaraSAC(llm, reward, **{**SMALL, **options})


def same(first: MaraAgent, second: MaraAgent) -> bool:
    return first.fingerprint == second.fingerprint


def start_of(llm: MaraLLM) -> MaraAgent:
    """The agent that a training begins with."""
    with pytest.warns(UserWarning, match="Nothing was learned"):
        return sac(llm, Evaluations(), warm_up=1000, episodes=1).fit(PROMPTS).agent_


def last(trained: MaraSAC) -> MaraAgent:
    return trained._training.learner.actor


@pytest.mark.parametrize("values", [(None, 1.0, 0.0, 2.0), (0.0, 1.0, None, 3.0), (None, None, None, None)])
def test_an_evaluation_without_a_score_is_beaten_and_beats_nothing(short: MaraLLM, values: Any) -> None:
    trained = sac(short, Evaluations(*values)).fit(PROMPTS, evaluation=HELD_OUT)
    assert [entry["episodes"] for entry in trained.history_] == [0, 4, 8, 12]
    assert same(trained.agent_, last(trained))


@pytest.mark.slow
def test_the_best_is_kept_although_later_ones_have_no_score(short: MaraLLM) -> None:
    trained = sac(short, Evaluations(0.0, 1.0, 2.0, None)).fit(PROMPTS, evaluation=HELD_OUT)
    shorter = sac(short, Evaluations(), episodes=8).fit(PROMPTS)
    assert same(trained.agent_, shorter.agent_)
    assert not same(trained.agent_, last(trained))


@pytest.mark.slow
def test_a_training_that_made_it_worse_keeps_the_starting_agent_and_says_so(short: MaraLLM) -> None:
    with pytest.warns(UserWarning, match="better than the one that training started from, so agent_ is that one"):
        trained = sac(short, Evaluations(0.0, -1.0, -2.0, -3.0)).fit(PROMPTS, evaluation=HELD_OUT)
    assert same(trained.agent_, start_of(short))


@pytest.mark.slow
def test_partial_fit_goes_on_visibly_after_an_evaluated_fit(short: MaraLLM) -> None:
    trained = sac(short, Evaluations(0.0, 9.0, -1.0, -2.0)).fit(PROMPTS, evaluation=HELD_OUT)
    best = trained.agent_
    trained.partial_fit(PROMPTS)
    assert not same(trained.agent_, best)
    assert same(trained.agent_, last(trained))


@pytest.mark.slow
def test_evaluations_of_other_prompts_or_rewards_are_never_compared(short: MaraLLM) -> None:
    trained = sac(short, Evaluations(0.0, 9.0, -1.0, -2.0)).fit(PROMPTS, evaluation=HELD_OUT)
    best = trained.agent_
    # The new judge gives that best agent 0.1, and the one after the call 0.2.
    trained.set_params(reward_funcs=Evaluations(0.1, 0.2)).partial_fit(PROMPTS, evaluation=HELD_OUT)
    assert same(trained.agent_, last(trained))
    improved = trained.agent_
    trained.set_params(reward_funcs=Evaluations(0.1, 0.0)).partial_fit(PROMPTS, evaluation=HELD_OUT)
    assert same(trained.agent_, improved)
    assert not same(best, improved)


@pytest.mark.slow
def test_scores_of_a_fit_that_failed_are_not_averaged_with_those_of_another_reward(short: MaraLLM) -> None:
    def fails_late(completions: list[str]) -> list[float]:
        calls.append(len(completions))
        if len(calls) > 1:
            raise ValueError("the judge is gone")
        return [1000.0] * len(completions)

    calls: list[int] = []
    trained = sac(short, fails_late, evaluate_every=12)
    with pytest.raises(RewardError):
        trained.fit(PROMPTS)
    trained.set_params(reward_funcs=Evaluations()).partial_fit(PROMPTS)
    assert trained.history_[-1]["score"] <= 0


@pytest.mark.slow
def test_partial_fit_takes_the_present_parameters(short: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    sample = ReplayBuffer.sample
    monkeypatch.setattr(
        ReplayBuffer, "sample", lambda self, count, generator: (counts.append(count), sample(self, count, generator))[1]
    )
    scored: list[str] = []

    def recording(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        scored.extend(prompts)
        return [float(len(text)) for text in completions]

    trained = sac(short, Evaluations()).fit(PROMPTS)
    counts.clear()
    trained.set_params(batch_size=7, reward_funcs=recording).partial_fit(PROMPTS)
    assert set(counts) == {7}
    assert sorted(scored) == sorted(PROMPTS)
    assert trained.rewards_.names == ["recording"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"width": 32}, "width"), ({"buffer_size": 99}, "buffer_size"), ({"parallel": 64}, "parallel")],
)
def test_partial_fit_refuses_other_sizes(short: MaraLLM, changes: dict[str, Any], named: str) -> None:
    trained = sac(short, Evaluations()).fit(PROMPTS)
    with pytest.raises(OptionsError, match=f"these have changed: {named}.*start over with sklearn.base.clone"):
        trained.set_params(**changes).partial_fit(PROMPTS)


def digests(folder: Path) -> dict[Path, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
def test_partial_fit_leaves_the_files_of_a_finished_fit_alone(short: MaraLLM, tmp_path: Path) -> None:
    trained = sac(short, Evaluations(), output=tmp_path).fit(PROMPTS)
    finished, before = trained.agent_, digests(tmp_path)
    in_memory = sac(short, Evaluations()).fit(PROMPTS).partial_fit(PROMPTS).partial_fit(PROMPTS)
    trained.partial_fit(PROMPTS).partial_fit(PROMPTS)
    assert same(trained.agent_, in_memory.agent_)
    assert digests(tmp_path) == before
    assert same(sac(short, Evaluations(), output=tmp_path).fit(PROMPTS).agent_, finished)


class Failing(Evaluations):
    """A reward that fails, or is interrupted, when the third round is scored."""

    def __init__(self, error: type[BaseException], *values: float) -> None:
        super().__init__(*values)
        self.error, self.rounds = error, 0

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        self.rounds += prompts != HELD_OUT
        if self.rounds == 3:
            raise self.error("in the last round")
        return super().__call__(prompts, completions, **columns)


@pytest.mark.slow
@pytest.mark.parametrize(("error", "raised"), [(ValueError, RewardError), (KeyboardInterrupt, KeyboardInterrupt)])
@pytest.mark.parametrize("evaluated", [True, False])
def test_a_failure_in_the_last_round_leaves_the_best_agent_so_far(
    short: MaraLLM, error: type[BaseException], raised: type[BaseException], evaluated: bool
) -> None:
    failed = sac(short, Failing(error, 0.0, 2.0, 1.0))
    with pytest.raises(raised) as caught:
        failed.fit(PROMPTS, evaluation=HELD_OUT if evaluated else None)
    which = "the best one measured on the evaluation prompts, that after 4" if evaluated else "the agent as it was then"
    assert f"of 12 episodes. agent_ is {which}" in caught.value.__notes__[-1]
    shorter = sac(short, Evaluations(), episodes=4 if evaluated else 8).fit(PROMPTS)
    assert same(failed.agent_, shorter.agent_)
    assert failed.predict(HELD_OUT) == shorter.predict(HELD_OUT)


def test_a_failure_before_anything_was_learned_leaves_no_agent(short: MaraLLM) -> None:
    failed = sac(short, Failing(ValueError), warm_up=1000)
    with pytest.raises(RewardError) as caught:
        failed.fit(PROMPTS)
    assert not hasattr(failed, "agent_")
    assert not hasattr(caught.value, "__notes__")


class Recorder(JobCallback):
    """Notes what it is told, and does something at one of the steps."""

    def __init__(self, at: int = -1, action: Any = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.at, self.action, self.error = at, action, None

    def on_start(self, progress: JobProgress) -> None:
        assert (progress.job, progress.unit, progress.total) == ("reinforce", "episodes", 12)
        self.events.append(("start", progress.done))

    def on_step(self, progress: JobProgress) -> None:
        assert "score" in progress.values
        self.events.append(("step", progress.done))
        if progress.done == self.at:
            self.action(progress)

    def on_checkpoint(self, progress: JobProgress) -> None:
        assert progress.values["episodes"] in (4, 8, 12)
        self.events.append(("checkpoint", progress.done))

    def on_end(self, progress: JobProgress) -> None:
        self.events.append(("end", progress.done))
        self.error = progress.error


def refuse(_: JobProgress) -> None:
    raise ConnectionError("the tracker's server is gone")


@pytest.mark.slow
def test_callbacks_hear_of_start_rounds_checkpoints_and_end(short: MaraLLM) -> None:
    recorder = Recorder()
    sac(short, Evaluations(), callbacks=recorder, evaluate_every=8).fit(PROMPTS)
    names = [name for name, _ in recorder.events]
    assert names == ["start", "step", "checkpoint", "step", "checkpoint", "step", "end"]
    assert recorder.events[-1] == ("end", 12)


@pytest.mark.slow
def test_a_callback_stops_the_training(short: MaraLLM) -> None:
    stopped = sac(short, Evaluations(), callbacks=[Recorder(8, JobProgress.stop)], evaluate_every=12).fit(PROMPTS)
    assert [entry["episodes"] for entry in stopped.history_] == [8]
    assert same(stopped.agent_, sac(short, Evaluations(), episodes=8).fit(PROMPTS).agent_)


def test_a_callback_that_raises_loses_no_work(short: MaraLLM, tmp_path: Path) -> None:
    recorder = Recorder(8, refuse)
    failed = sac(short, Evaluations(), callbacks=recorder, output=tmp_path)
    with pytest.raises(ConnectionError) as caught:
        failed.fit(PROMPTS)
    assert "The callback Recorder raised this in on_step, at 8 of 12 episodes." in caught.value.__notes__
    assert recorder.error is caught.value
    assert same(failed.agent_, sac(short, Evaluations(), episodes=8).fit(PROMPTS).agent_)
    resumed = Recorder()
    whole = sac(short, Evaluations(), callbacks=resumed, output=tmp_path).fit(PROMPTS)
    assert resumed.events == [("start", 8), ("checkpoint", 8), ("step", 12), ("end", 12)]
    assert same(whole.agent_, sac(short, Evaluations()).fit(PROMPTS).agent_)


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_the_default_dtype_changes_nothing(short: MaraLLM, request: pytest.FixtureRequest) -> None:
    single = sac(short, Evaluations(0.0, 1.0, 2.0, 3.0)).fit(PROMPTS, evaluation=HELD_OUT)
    request.getfixturevalue("double_by_default")
    double = sac(short, Evaluations(0.0, 1.0, 2.0, 3.0)).fit(PROMPTS, evaluation=HELD_OUT)
    assert double.agent_.ln.weight.dtype is torch.float32
    assert same(double.agent_, single.agent_)

"""Callbacks are told in order, stop a job, and never hide what ended it."""

from typing import Any

import pytest
from langchain_mara_training.storage.callbacks import JobCallback, JobProgress, as_callbacks, job_events

from langchain_mara.exceptions import OptionsError


class Recorder(JobCallback):
    """Notes each event in a list that it may share with others, and fails at one of them."""

    def __init__(self, told: list[str], name: str = "", failing: str = "") -> None:
        self.told, self.name, self.failing = told, name, failing

    def _note(self, event: str, progress: JobProgress) -> None:
        self.told.append(f"{self.name}{event} {progress.done}")
        if event == self.failing:
            raise ConnectionError("the tracker's server is gone")

    def on_start(self, progress: JobProgress) -> None:
        self._note("start", progress)

    def on_step(self, progress: JobProgress) -> None:
        self._note("step", progress)

    def on_checkpoint(self, progress: JobProgress) -> None:
        self._note("checkpoint", progress)

    def on_end(self, progress: JobProgress) -> None:
        self._note(f"end {progress.error!r}" if progress.error else "end", progress)


def test_all_callbacks_are_told_in_order() -> None:
    told: list[str] = []
    with job_events([Recorder(told, "a "), Recorder(told, "b ")], "count", "numbers", 3, 1) as events:
        assert not events.step(2, loss=0.5)
        events.checkpoint(size=7)
        assert events.progress.values == {"loss": 0.5, "size": 7}
    steps = ["start 1", "step 2", "checkpoint 2", "end 2"]
    assert told == [f"{name} {step}" for step in steps for name in "ab"]


def test_a_step_says_whether_to_stop() -> None:
    class Stopping(JobCallback):
        def on_step(self, progress: JobProgress) -> None:
            if progress.done == 2:
                progress.stop()

    with job_events(Stopping(), "count", "numbers", 3) as events:
        assert [events.step(number) for number in (1, 2)] == [False, True]


@pytest.mark.parametrize("event", ["start", "step", "checkpoint"])
def test_an_exception_names_its_callback_and_all_hear_of_the_end(event: str) -> None:
    told: list[str] = []

    def job() -> None:
        with job_events([Recorder(told, "a ", event), Recorder(told, "b ")], "count", "numbers", 3) as events:
            events.step(1)
            events.checkpoint()

    with pytest.raises(ConnectionError) as caught:
        job()
    done = int(event != "start")
    assert caught.value.__notes__ == [f"The callback Recorder raised this in on_{event}, at {done} of 3 numbers."]
    ended = f'end ConnectionError("the tracker\'s server is gone") {done}'
    assert told[-2:] == [f"a {ended}", f"b {ended}"]


def test_an_exception_at_the_end_hides_neither_the_job_s_nor_the_other_callbacks() -> None:
    told: list[str] = []
    failing = [Recorder(told, "a ", "end"), Recorder(told, "b ")]
    with pytest.raises(ConnectionError, match="server is gone"), job_events(failing, "count", "numbers", 3):
        pass
    assert told[-2:] == ["a end 0", "b end 0"]
    failing[0].failing = "end ValueError('mine')"
    with pytest.raises(ValueError, match="mine") as caught, job_events(failing, "count", "numbers", 3):
        raise ValueError("mine")
    assert "A callback failed as well" in caught.value.__notes__[-1]
    assert told[-1] == "b end ValueError('mine') 0"


@pytest.mark.parametrize(
    ("given", "count"), [(None, 0), ((), 0), (JobCallback(), 1), ([JobCallback(), JobCallback()], 2)]
)
def test_one_or_several_callbacks(given: Any, count: int) -> None:
    assert len(as_callbacks(given)) == count


@pytest.mark.parametrize(("given", "what"), [(JobCallback, "a class"), ([object()], "without on_start, on_step")])
def test_what_is_none_is_refused(given: Any, what: str) -> None:
    with pytest.raises(OptionsError, match=f"is {what}.*Give an instance of a class that inherits from JobCallback"):
        as_callbacks(given)

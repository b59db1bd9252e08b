"""The history reaches trackers and log: each entry once and in order, whatever happens in between."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from interruptions import interrupted_after
from langchain_mara_training import MaraSAC
from langchain_mara_training.reinforcement import tracking
from langchain_mara_training.reinforcement.actor_critic import ActorCritic
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint
from sklearn.base import clone
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError, TrainingError

PROMPTS = ["How do I boil an egg?", "How do I pick a lock?"]
SMALL = {"parallel": 4, "width": 16, "batch_size": 16, "updates": 2, "warm_up": 1, "evaluate_every": 8, "episodes": 24}


def fewer_vowels(completions: list[str], **_: Any) -> list[float]:
    return [-float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


class Recorder(GeneralTracker):
    """A user's own tracker; it remembers what it was told."""

    name = "recorder"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self.calls.append(("start", None))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(("configuration", values))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.calls.append(("log", {"episodes": step, **values}))

    def finish(self) -> None:
        self.calls.append(("finish", None))

    @property
    def order(self) -> list[str]:
        return [name for name, _ in self.calls]

    @property
    def entries(self) -> list[Any]:
        return [values for name, values in self.calls if name == "log"]


@pytest.fixture
def short(demo_llm: MaraLLM) -> MaraLLM:
    return demo_llm.with_agent(None).model_copy(update={"max_new_tokens": 6, "top_k": 6, "batch_size": 4})


def sac(llm: MaraLLM, **options: Any) -> MaraSAC:
    return MaraSAC(llm, fewer_vowels, **{**SMALL, **options})


def logged(folder: Path) -> list[dict[str, Any]]:
    """Entries of a log, as in a history."""
    entries = []
    for line in (folder / "log.jsonl").read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.pop("event") == "noted":
            del record["time"], record["command"]
            entries.append(record)
    return entries


@pytest.mark.slow
def test_tensorboard_holds_the_history(short: MaraLLM, tmp_path: Path) -> None:
    trained = sac(short, output=tmp_path, trackers="tensorboard").fit(PROMPTS, evaluation=PROMPTS[:1])
    events = EventAccumulator(str(tmp_path / "langchain-mara")).Reload()
    history = trained.history_
    assert [entry["episodes"] for entry in history] == [0, 8, 16, 24]
    names = set(events.Tags()["scalars"])
    assert names >= {"score", "critic_loss", "actor_loss", "temperature", "evaluation", "passes"}
    for name in names:
        drawn = {event.step: event.value for event in events.Scalars(name)}
        expected = {entry["episodes"]: entry[name] for entry in history if name in entry}
        assert drawn == pytest.approx(expected, rel=1e-6, nan_ok=True)
    [hparams] = (tmp_path / "langchain-mara").rglob("hparams.yml")
    assert "batch_size: 16" in hparams.read_text()


@pytest.mark.slow
def test_trackers_are_started_told_and_finished(short: MaraLLM) -> None:
    recorder = Recorder()
    trained = sac(short, trackers=[recorder], random_state=3).fit(PROMPTS)
    assert recorder.order == ["start", "configuration", "log", "log", "log", "finish"]
    assert recorder.entries == trained.history_
    configuration = recorder.calls[1][1]
    assert all(isinstance(value, bool | int | float | str) for value in configuration.values())
    assert (configuration["model"], configuration["rewards"]) == (short.model_id, "fewer_vowels")
    assert (configuration["random_state"], configuration["episodes"]) == (3, 24)
    assert configuration["environment.penalty"] == 0.1
    assert configuration["update.discount"] == 0.99


def test_partial_fit_tells_new_entries_only(short: MaraLLM) -> None:
    recorder = Recorder()
    trained = sac(short, trackers=recorder)
    trained.partial_fit(PROMPTS)
    trained.partial_fit(PROMPTS)
    assert recorder.entries == trained.history_
    assert [entry["episodes"] for entry in recorder.entries] == [2, 4]
    assert recorder.order.count("finish") == recorder.order.count("start") == 2


def test_a_failing_fit_finishes_its_trackers(short: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(ActorCritic, "update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sac(short, trackers=recorder).fit(PROMPTS)
    assert recorder.order == ["start", "configuration", "finish"]


def test_trackers_that_started_are_finished_when_another_does_not(short: MaraLLM) -> None:
    class Offline(Recorder):
        name = "offline"

        def start(self) -> None:
            raise ConnectionError("no server")

    recorder, offline = Recorder(), Offline()
    with pytest.raises(TrainingError, match="The tracker offline does not start: no server"):
        sac(short, trackers=[recorder, offline]).fit(PROMPTS)
    assert recorder.order == ["start", "configuration", "finish"]
    assert offline.order == []


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [1, 9, 20])
def test_a_killed_fit_logs_each_entry_once(short: MaraLLM, tmp_path: Path, killed_after: int) -> None:
    recorder = Recorder()
    with interrupted_after(killed_after):
        sac(short, output=tmp_path, trackers=recorder).fit(PROMPTS)
    held = JobCheckpoint(tmp_path, {}).file.exists()
    assert held is (killed_after > 1)
    trained = sac(short, output=tmp_path, trackers=recorder).fit(PROMPTS)
    assert logged(tmp_path) == recorder.entries == trained.history_
    assert len(trained.history_) == 3


@pytest.mark.parametrize("half", ["", '{"event": "noted", "epis'])
def test_an_entry_that_a_crash_kept_from_the_log_is_caught_up(
    short: MaraLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    append = tracking.append_record

    def killed(folder: Path, *event: str, **values: Any) -> None:
        if values["episodes"] < 16:
            append(folder, *event, **values)
        else:
            with (tmp_path / "log.jsonl").open("a") as log:
                log.write(half)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "append_record", killed)
        with pytest.raises(KeyboardInterrupt):
            sac(short, output=tmp_path).fit(PROMPTS)
    assert [entry["episodes"] for entry in logged(tmp_path)] == [8]
    # Nothing is left to play, and yet the log is made whole.
    trained = sac(short, output=tmp_path, episodes=16).fit(PROMPTS)
    assert logged(tmp_path) == trained.history_
    assert [entry["episodes"] for entry in trained.history_] == [8, 16]


def test_a_fit_that_began_anew_is_logged_anew(short: MaraLLM, tmp_path: Path) -> None:
    first = sac(short, output=tmp_path, episodes=8).fit(PROMPTS).history_
    (tmp_path / "fitting.pt").unlink()
    again = sac(short, output=tmp_path, episodes=8).fit(PROMPTS).history_
    assert logged(tmp_path) == [*first, *again]


def test_numbers_that_are_not_known_are_null_in_the_log(short: MaraLLM, tmp_path: Path) -> None:
    def silent(completions: list[str], **_: Any) -> list[None]:
        return [None] * len(completions)

    trained = MaraSAC(short, silent, **{**SMALL, "episodes": 4}, output=tmp_path)
    with pytest.warns(
        UserWarning, match=r"Nothing was learned: 0 transitions were played, .* begins at 16\. Give more"
    ):
        trained.fit(PROMPTS)
    assert np.isnan(trained.history_[0]["score"])
    assert logged(tmp_path)[0]["score"] is None


def test_trackers_are_no_part_of_the_job(short: MaraLLM, tmp_path: Path) -> None:
    recorder = Recorder()
    sac(short, output=tmp_path, episodes=8).fit(PROMPTS)
    trained = clone(sac(short, output=tmp_path, episodes=16, trackers=[recorder])).fit(PROMPTS)
    assert recorder.entries == trained.history_[1:] == logged(tmp_path)[1:]


def test_names_are_checked_before_anything_is_played(short: MaraLLM, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"There is no tracker 'tensorbord'. Give one of aim, clearml, .*wandb\."):
        sac(short, trackers="tensorbord", output=tmp_path).fit(PROMPTS)
    with pytest.raises(OptionsError, match=r"The tracker tensorboard writes files. Give a folder: output=…\."):
        sac(short, trackers="tensorboard").fit(PROMPTS)
    missing = sorted(set(LOGGER_TYPE_TO_CLASS) - set(map(str, get_available_trackers())))
    if missing:
        with pytest.raises(OptionsError, match=f"The tracker {missing[0]} is not installed: pip install {missing[0]}"):
            sac(short, trackers=["tensorboard", missing[0]], output=tmp_path).partial_fit(PROMPTS)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_comes_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(OptionsError, match=r"tensorboard is not installed: pip install 'langchain-mara\[tracking\]'$"):
        tracking.make_trackers("tensorboard", "folder")


def test_a_name_given_twice_is_one_tracker(tmp_path: Path) -> None:
    recorder = Recorder()
    trackers = tracking.make_trackers(["tensorboard", recorder, "tensorboard"], tmp_path)
    assert [tracker.name for tracker in trackers] == ["tensorboard", "recorder"]
    assert trackers[1] is recorder

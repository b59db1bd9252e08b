"""The loop of reinforcement learning: play episodes, learn from the replay buffer, evaluate, write a checkpoint."""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from langchain_mara import MaraLLM
from langchain_mara.agents.base import Agent
from langchain_mara_training.data.readers import Row
from langchain_mara_training.evaluation.evaluate import decode_system
from langchain_mara_training.reinforcement.actor_critic import ActorCritic
from langchain_mara_training.reinforcement.environment import score_steps
from langchain_mara_training.reinforcement.penalties import EnvironmentOptions
from langchain_mara_training.reinforcement.replay_buffer import ReplayBuffer
from langchain_mara_training.reinforcement.rollout_workers import PlayedRound, RolloutWorkers
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint

HistoryEntry: TypeAlias = dict[str, float]
"""Counts and means of one period, by name; see `MaraSAC.history_`."""

_ORDER, _PLAY, _DRAW = range(3)  # purposes of seeds: order of the prompts, playing, drawing from the buffer


class _Round(NamedTuple):
    """A round of episodes that has begun.

    Attributes:
        numbers: Numbers of its episodes.
        rows: Row of each episode's prompt.
        collect: Waits for the round and returns what was played.
    """

    numbers: range
    rows: list[Row]
    collect: Callable[[], PlayedRound]


class TrainingOptions(NamedTuple):
    """Settings that stay the same throughout a training.

    Attributes:
        environment: How episodes are played and rewarded.
        parallel: Episodes per round.
        batch_size: Transitions per gradient step.
        updates: Gradient steps per episode.
        warm_up: Batches the buffer must hold before learning begins.
        evaluate_every: Episodes per period, that is, between two history entries.
        seed: Seed of all randomness.
    """

    environment: EnvironmentOptions
    parallel: int
    batch_size: int
    updates: int
    warm_up: int
    evaluate_every: int
    seed: int


class Training:
    """A training and its state.

    Every draw derives its seed from its own number, so a resumed training replays nothing.

    Args:
        llm: Policy model and decoding options; the learner's actor replaces its agent.
        rewards: Rewards that score the answers.
        learner: The networks and their optimizers.
        buffer: Replay buffer; it must have room for the longest possible round.
        options: Settings of the training.
        checkpoint: Checkpoint to resume from and to write to, if any.

    Attributes:
        episodes: Number of episodes played so far.
        updates: Number of episodes after which the networks were updated.
        passes: Passes of the policy model for playing these episodes.
        history: One entry for each period.
        best: Of the agents measured on the evaluation prompts of this call, the one with the best `reward`: its
            `weights`, and the number of `episodes` after which it was seen. None if none was measured, or no answer
            of any was scored.
    """

    def __init__(
        self,
        llm: MaraLLM,
        rewards: WeightedRewards,
        learner: ActorCritic,
        buffer: ReplayBuffer,
        options: TrainingOptions,
        checkpoint: JobCheckpoint | None,
    ) -> None:
        self.llm, self.rewards = llm.with_agent(learner.actor), rewards
        self.learner, self.buffer, self.options, self.checkpoint = learner, buffer, options, checkpoint
        self.episodes = self.updates = self.passes = 0
        self.history: list[HistoryEntry] = []
        self.best: dict[str, Any] | None = None
        # The actor one round ago. Workers that play ahead use it after a restart, as they would have without one.
        self._before = copy.deepcopy(learner.actor.state_dict())
        self._period: dict[str, list[float]] = {}
        self._resume()

    @property
    def chosen_weights(self) -> dict[str, Any]:
        """Weights of the best agent that was measured; of the actor if none was."""
        return dict(self.learner.actor.state_dict() if self.best is None else self.best["weights"])

    @property
    def choice(self) -> str:
        """Which agent has the chosen weights, in words."""
        if self.best is None:
            return "the agent as it was then"
        return f"the best one measured on the evaluation prompts, that after {self.best['episodes']} episodes"

    @property
    def complaint(self) -> str | None:
        """What was disappointing about the training, in words."""
        needed = self.options.warm_up * self.options.batch_size
        if not self.updates:
            return (
                f"Nothing was learned: {len(self.buffer):,} transitions were played, and learning begins at "
                f"{needed:,}. Give more episodes, or a smaller warm_up or batch_size."
            )
        if self.best is not None and self.best["episodes"] == 0:
            return (
                "No agent measured on the evaluation prompts was better than the one that training started from, so "
                "agent_ is that one. Give more episodes or lower learning rates, and look at history_."
            )
        return None

    def continue_with(self, llm: MaraLLM, rewards: WeightedRewards, options: TrainingOptions) -> None:
        """Replaces what the coming episodes are played, scored and learned from with; drops scores of a failed call."""
        self.llm, self.rewards, self.options, self._period = llm.with_agent(self.learner.actor), rewards, options, {}

    def leave_folder(self, folder: Path) -> None:
        """Leaves checkpoint and buffer of a finished job as they are, and goes on with a copy of the buffer.

        Args:
            folder: Folder of the copy.
        """
        self.checkpoint, self.buffer = None, self.buffer.copy(folder)

    def measure_start(self, held_out: Sequence[Row] | None, agent: Agent) -> None:
        """Forgets earlier measurements, which may be of other prompts or rewards, and measures the agent at the start.

        Args:
            held_out: Prompts to evaluate on, if any.
            agent: The agent that this training starts from.
        """
        self.best = None
        if held_out is not None:
            counts = {"episodes": self.episodes, "passes": self.passes, "updates": self.updates}
            entry: HistoryEntry = {**counts, "temperature": self.learner.temperature}
            self._evaluate(entry, held_out, agent)
            self.history.append(entry)

    def run(
        self,
        rows: Sequence[Row],
        until: int,
        held_out: Sequence[Row] | None,
        workers: RolloutWorkers,
        on_round: Callable[[HistoryEntry], bool],
        first: int = 0,
        on_history: Callable[[Sequence[HistoryEntry]], None] = lambda _: None,
    ) -> None:
        """Plays and learns.

        Args:
            rows: Prompts. All are used in random order, then all again in another order, and so on.
            until: Number of episodes to stop at, counted from the start of the training.
            held_out: Prompts to evaluate on at the end of each period.
            workers: Workers that play the episodes.
            on_round: Called after every round with the number of `episodes` so far and the round's mean `score`;
                returns whether to stop.
            first: Number of the episode that starts the order of the prompts.
            on_history: Called with the whole history after each checkpoint.
        """
        longest_round = self.buffer.slack // 2
        for numbers, round_rows, collect in self._rounds(rows, until, workers, first):
            score = self._learn_from(round_rows, collect())
            period = self.options.evaluate_every
            period_ends = self.episodes // period > numbers.start // period or self.episodes == until
            if period_ends or self.buffer.room < longest_round:
                self._save(held_out, on_history, period_ends=period_ends)
            # After the checkpoint, so that it is written even if this raises.
            if on_round({"episodes": self.episodes, "score": score}):
                if not period_ends:
                    self._save(held_out, on_history, period_ends=True)
                return

    def _rounds(self, rows: Sequence[Row], until: int, workers: RolloutWorkers, first: int) -> Iterator[_Round]:
        """The rounds in order; each begins as late as it can.

        Workers that play ahead play a round while this process learns from the one before. They use the actor as it
        was when that learning began.
        """
        begun: deque[_Round] = deque()
        weights = self._before if workers.plays_ahead else self.learner.actor.state_dict()
        for start in range(self.episodes, until, self.options.parallel):
            numbers = range(start, min(start + self.options.parallel, until))
            round_rows = [rows[self._row_number(number - first, len(rows))] for number in numbers]
            prompts = [self.llm.encode(row["prompt"]) for row in round_rows]
            collect = workers.begin(prompts, [self._seed(number) for number in numbers], weights)
            begun.append(_Round(numbers, round_rows, collect))
            if len(begun) > workers.plays_ahead:
                yield begun.popleft()
            weights = self.learner.actor.state_dict()
        yield from begun

    def _row_number(self, episode: int, rows: int) -> int:
        """Number of the row that holds an episode's prompt."""
        order = np.random.default_rng([self.options.seed, _ORDER, episode // rows]).permutation(rows)
        return int(order[episode % rows])

    def _seed(self, episode: int) -> int:
        return int(np.random.SeedSequence([self.options.seed, _PLAY, episode]).generate_state(1)[0])

    def _learn_from(self, rows: Sequence[Row], played: PlayedRound) -> float:
        """Scores a round, learns after each of its episodes, and returns the mean score."""
        self._before = copy.deepcopy(self.learner.actor.state_dict())
        self.passes += played.passes
        self.episodes += len(rows)
        episodes = score_steps(played.steps, rows, self.rewards, self.options.environment)
        for episode in episodes:
            self._add("score", episode.score)
            self._add("tokens", len(episode.answer.token_ids))
            self._add("unusable", float(not episode.usable))
            if episode.usable:
                self.buffer.add_episode(episode.states, episode.actions, episode.rewards)
                self._learn()
        return _mean([episode.score for episode in episodes])

    def _learn(self) -> None:
        options = self.options
        if len(self.buffer) < options.warm_up * options.batch_size:
            return
        generator = np.random.default_rng([options.seed, _DRAW, self.updates])
        losses = self.learner.update(self.buffer.sample(options.batch_size, generator) for _ in range(options.updates))
        self.updates += 1
        for step in losses:
            self._add("critic_loss", step.critic)
            self._add("actor_loss", step.actor)

    def _add(self, name: str, value: float) -> None:
        self._period.setdefault(name, []).append(value)

    def _close_period(self, held_out: Sequence[Row] | None) -> None:
        """Adds the period's entry to the history."""
        means = {name: _mean(values) for name, values in self._period.items()}
        entry: HistoryEntry = {"episodes": self.episodes, "passes": self.passes, "updates": self.updates, **means}
        entry["temperature"] = self.learner.temperature
        if held_out is not None:
            self._evaluate(entry, held_out, self.learner.actor)
        self.history.append(entry)
        self._period = {}

    def _evaluate(self, entry: HistoryEntry, held_out: Sequence[Row], agent: Agent) -> None:
        """Adds an agent's mean reward to an entry, and keeps the agent if it is the best so far."""
        llm = self.llm.with_agent(agent)
        reward = entry["evaluation"] = decode_system(llm, list(held_out), self.rewards, "MARA").mean_reward
        # Comparisons with NaN are false, so an agent none of whose answers was scored is never the best.
        if reward > (-math.inf if self.best is None else self.best["reward"]):
            weights = copy.deepcopy(agent.state_dict())
            self.best = {"reward": reward, "weights": weights, "episodes": self.episodes}

    def _save(
        self,
        held_out: Sequence[Row] | None,
        on_history: Callable[[Sequence[HistoryEntry]], None],
        *,
        period_ends: bool,
    ) -> None:
        if period_ends:
            self._close_period(held_out)
        buffer = self.buffer.state_dict()
        if self.checkpoint is not None:
            # These names, and the keys below, are the file format of checkpoints.
            names = ("episodes", "updates", "passes", "history", "best", "_before", "_period")
            attributes = {name: getattr(self, name) for name in names}
            self.checkpoint.write({"own": attributes, "buffer": buffer, "learner": self.learner.state_dict()})
        on_history(self.history)

    def _resume(self) -> None:
        saved = None if self.checkpoint is None else self.checkpoint.read()
        if saved is not None:
            self.learner.load_state_dict(saved["learner"])
            self.buffer.load_state_dict(saved["buffer"])
            for name, value in saved["own"].items():
                setattr(self, name, value)


def _mean(values: Sequence[float]) -> float:
    numbers = [value for value in values if not math.isnan(value)]  # NaN where there was no score
    return math.fsum(numbers) / len(numbers) if numbers else math.nan

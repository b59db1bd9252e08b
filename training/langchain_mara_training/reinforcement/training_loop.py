"""The course of reinforcement: play episodes, learn from the replay buffer, look at the result, keep it all."""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from langchain_mara import MaraLLM
from langchain_mara_training.data.readers import Row
from langchain_mara_training.evaluation.evaluate import decode_system
from langchain_mara_training.reinforcement.actor_critic import ActorCritic
from langchain_mara_training.reinforcement.environment import EnvironmentOptions, score_steps
from langchain_mara_training.reinforcement.replay_buffer import ReplayBuffer
from langchain_mara_training.reinforcement.rollout_workers import PlayedRound, RolloutWorkers
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint

HistoryEntry = dict[str, float]
"""What the history says of a period."""

_ORDER, _PLAY, _DRAW = range(3)  # what a seed is for


class TrainingOptions(NamedTuple):
    """What stays the same while an agent is trained; see `MaraSAC`."""

    environment: EnvironmentOptions
    parallel: int
    batch_size: int
    updates: int
    warm_up: int
    evaluate_every: int
    seed: int


class Training:
    """Training as far as it is.

    Every draw has a seed of its own number, so that nothing has to be replayed after a restart.

    Args:
        llm: The policy model; its agent is replaced by the learner's actor.
        rewards: Score the answers.
        learner: The networks.
        buffer: What was played; it must have room for the longest round of episodes.
        options: See `TrainingOptions`.
        checkpoint: Where to keep all of it, if anywhere.

    Attributes:
        episodes: Played so far.
        passes: Of the policy model in playing them.
        history: What was noted at the end of each period.
        best: Weights of the actor that did best on the evaluation prompts so far, and its reward there.
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
        # With this, the actor as it was a round ago, players that are ahead play the next round.
        self._before = copy.deepcopy(learner.actor.state_dict())
        self._period: dict[str, list[float]] = {}
        self._resume()

    def run(
        self,
        rows: Sequence[Row],
        until: int,
        held_out: Sequence[Row] | None,
        players: RolloutWorkers,
        tell: Callable[[HistoryEntry], None],
        first: int = 0,
        note: Callable[[Sequence[HistoryEntry]], None] = lambda _: None,
    ) -> None:
        """Plays and learns.

        Args:
            rows: Prompts, gone through in random order, again and again.
            until: Number of episodes to stop at, counted from the very first.
            held_out: Prompts to measure on at the end of each period.
            players: Play the episodes.
            tell: Is told after every round how many `episodes` there were, and with what `score`.
            first: Number of the episode whose prompt is the first one drawn.
            note: Is given the whole history whenever a checkpoint holds it.
        """
        longest = self.buffer.slack // 2
        for numbers, some, collect in self._rounds(rows, until, players, first):
            score = self._learn_from(some, collect())
            tell({"episodes": self.episodes, "score": score})
            period = self.options.evaluate_every
            due = self.episodes // period > numbers.start // period or self.episodes == until
            if due:
                self._note(held_out)
            if due or self.buffer.room < longest:
                self._save()
                note(self.history)

    def _rounds(
        self, rows: Sequence[Row], until: int, players: RolloutWorkers, first: int
    ) -> Iterator[tuple[range, list[Row], Callable[[], PlayedRound]]]:
        """Numbers of the episodes of each round, their rows, and how to get what was played; begun when it is due.

        Workers that are ahead play a round while this process learns from the one before, with the actor as it was
        when learning from that one began.
        """
        begun: deque[tuple[range, list[Row], Callable[[], PlayedRound]]] = deque()
        starts = range(self.episodes, until, self.options.parallel)
        weights = self._before if players.ahead else self.learner.actor.state_dict()
        for start in starts:
            numbers = range(start, min(start + self.options.parallel, until))
            some = [rows[self._place(n - first, len(rows))] for n in numbers]
            prompts = [self.llm.encode(row["prompt"]) for row in some]
            begun.append((numbers, some, players.begin(prompts, [self._seed(n) for n in numbers], weights)))
            if len(begun) > players.ahead:
                yield begun.popleft()
            weights = self.learner.actor.state_dict()
        yield from begun

    def _place(self, number: int, rows: int) -> int:
        """Which row the prompt of an episode is."""
        order = np.random.default_rng([self.options.seed, _ORDER, number // rows]).permutation(rows)
        return int(order[number % rows])

    def _seed(self, number: int) -> int:
        return int(np.random.SeedSequence([self.options.seed, _PLAY, number]).generate_state(1)[0])

    def _learn_from(self, rows: Sequence[Row], played: PlayedRound) -> float:
        """Scores a round and learns after each of its episodes; mean score."""
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
        return _mean([one.score for one in episodes])

    def _learn(self) -> None:
        options = self.options
        if len(self.buffer) < options.warm_up * options.batch_size:
            return
        draw = np.random.default_rng([options.seed, _DRAW, self.updates])
        steps = self.learner.update(self.buffer.sample(options.batch_size, draw) for _ in range(options.updates))
        self.updates += 1
        for step in steps:
            self._add("critic_loss", step.critic)
            self._add("actor_loss", step.actor)

    def _add(self, name: str, value: float) -> None:
        self._period.setdefault(name, []).append(value)

    def _note(self, held_out: Sequence[Row] | None) -> None:
        means = {name: _mean(values) for name, values in self._period.items()}
        noted: HistoryEntry = {"episodes": self.episodes, "passes": self.passes, "updates": self.updates, **means}
        noted["temperature"] = self.learner.temperature
        if held_out is not None:
            noted["evaluation"] = decode_system(self.llm, list(held_out), self.rewards, "MARA").mean_reward
            if self.best is None or noted["evaluation"] > self.best["reward"]:
                weights = copy.deepcopy(self.learner.actor.state_dict())
                self.best = {"reward": noted["evaluation"], "weights": weights}
        self.history.append(noted)
        self._period = {}

    def _save(self) -> None:
        buffer = self.buffer.state_dict()
        if self.checkpoint is not None:
            names = ("episodes", "updates", "passes", "history", "best", "_before", "_period")
            own = {name: getattr(self, name) for name in names}
            self.checkpoint.write({"own": own, "buffer": buffer, "learner": self.learner.state_dict()})

    def _resume(self) -> None:
        saved = None if self.checkpoint is None else self.checkpoint.read()
        if saved is not None:
            self.learner.load_state_dict(saved["learner"])
            self.buffer.load_state_dict(saved["buffer"])
            for name, value in saved["own"].items():
                setattr(self, name, value)


def _mean(values: Sequence[float]) -> float:
    """Over what is known; NaN where nothing is."""
    known = [one for one in values if not np.isnan(one)]
    return float(np.mean(known)) if known else float("nan")

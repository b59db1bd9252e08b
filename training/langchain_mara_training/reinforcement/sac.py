"""MaraSAC: trains an agent by discrete soft actor-critic, with scikit-learn's `fit` and `predict`."""

import copy
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Self, get_args

from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara_training.data.readers import Row, Source, read_prompts
from langchain_mara_training.evaluation.evaluate import decode_system
from langchain_mara_training.evaluation.systems import Decoding
from langchain_mara_training.fitting.networks import AgentKind
from langchain_mara_training.reinforcement.actor_critic import UpdateOptions
from langchain_mara_training.reinforcement.penalties import EnvironmentOptions
from langchain_mara_training.reinforcement.recipe import Recipe
from langchain_mara_training.reinforcement.rollout_workers import InProcessWorkers, RayWorkers, RolloutWorkers
from langchain_mara_training.reinforcement.setup import (
    configuration,
    continue_with,
    describe_job,
    environment_of,
    new_training,
)
from langchain_mara_training.reinforcement.tracking import Trackers, make_trackers, tracked
from langchain_mara_training.reinforcement.training_loop import HistoryEntry
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.callbacks import JobCallback, as_callbacks, job_events
from langchain_mara_training.storage.lock import job_lock
from langchain_mara_training.storage.progress import progress_bar

_COUNTS = ("episodes", "parallel", "batch_size", "updates", "warm_up", "buffer_size", "evaluate_every", "width")
_DEFAULTS = Recipe()
_SYSTEM = "MARA"
# scikit-learn would copy weights and connections.
_SHARED_BY_CLONES = {"llm", "reward_funcs", "trackers"}


class MaraSAC(BaseEstimator):  # type: ignore[misc]
    """Trains an agent by reinforcement learning: it answers prompts, is rewarded, and learns from what it tried.

    The algorithm is discrete soft actor-critic with twin critics, a learned temperature, and a replay buffer on disk
    (paper section 4, reference `train/`). The networks learn on the device of the LLM's model.

    Args:
        llm: Policy model and decoding options. If it has an agent, training starts from that agent.
        reward_funcs: One or several reward functions in TRL's signature.
        reward_weights: Weight of each reward function; by default 1.
        preset: `default`, or `reference` for the environment of the paper's code, defects included.
        environment: `EnvironmentOptions` that replace those of the preset.
        update: `UpdateOptions`; by default the paper's.
        episodes: Number of episodes to play in `fit`.
        parallel: Number of episodes played at the same time, one round.
        kind: Kind of agent to train, `state` or `look-ahead`, if the LLM has none to start from.
        width: Units of the first hidden layer of agent and critics; ignored if the LLM has an agent.
        batch_size: Transitions per gradient step.
        updates: Gradient steps per episode.
        warm_up: Batches the buffer must hold before learning begins.
        buffer_size: Largest number of transitions to learn from; each takes 2 d + 6 bytes on disk.
        workers: Number of Ray processes that play (`pip install "langchain-mara[ray]"`); with 0, this process plays.
            Each loads its own copy of the policy model by the name of the LLM's model. The workers play a round while
            this process learns from the one before. If a worker dies, it is replaced and its episodes are played
            again. Answers are scored in this process.
        worker_options: Resources of each worker, as Ray takes them; by default a CPU, and a GPU if the LLM is on one.
        evaluate_every: Episodes between two checkpoints, each with a history entry and a look at evaluation prompts.
        output: Folder of the buffer, the checkpoint, and the history as `log.jsonl`. A killed `fit` resumes there
            exactly where it stopped; with more `episodes`, a finished one continues. By default there is no checkpoint.
        trackers: Trackers that also get the history: accelerate's by name (`tensorboard`, `wandb`, …), or instances.
            TensorBoard's files are written to `output`.
        callbacks: One or several `JobCallback`s: a step is a round, a checkpoint the end of each `evaluate_every`.
        random_state: Seed of all randomness. On a CPU, equal seeds give equal agents, to the bit.
        verbose: Whether to show progress on standard error.

    Attributes:
        agent_: The trained agent. With evaluation prompts, it is the best on them of the agent that the call started
            from and those seen at each `evaluate_every`; without, the last. A call that fails after the first update
            leaves the same choice among what it has seen, and raises with a note that says so.
        llm_: The LLM with that agent.
        rewards_: The `WeightedRewards` that score the answers.
        history_: A dict for every `evaluate_every` episodes: episodes, passes of the policy model for playing, mean
            score of the answers since the previous entry, losses, temperature, mean reward on the evaluation prompts.
            If there are evaluation prompts, the first entry of each call is the reward of the agent at its start.

    Example:
        >>> sac = MaraSAC(MaraLLM.demo(agent=None), reward, episodes=400).fit(prompts)
        >>> sac.predict(["How do I boil an egg?"])
    """

    def __init__(
        self,
        llm: MaraLLM,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        *,
        reward_weights: Sequence[float] | None = None,
        preset: Literal["default", "reference"] = _DEFAULTS.preset,
        environment: EnvironmentOptions | None = None,
        update: UpdateOptions | None = None,
        episodes: int = _DEFAULTS.episodes,
        parallel: int = _DEFAULTS.parallel,
        kind: AgentKind = _DEFAULTS.kind,
        width: int = _DEFAULTS.width,
        batch_size: int = _DEFAULTS.batch_size,
        updates: int = _DEFAULTS.updates,
        warm_up: int = _DEFAULTS.warm_up,
        buffer_size: int = _DEFAULTS.buffer_size,
        workers: int = _DEFAULTS.workers,
        worker_options: dict[str, Any] | None = None,
        evaluate_every: int = _DEFAULTS.evaluate_every,
        output: str | Path | None = None,
        trackers: Trackers = (),
        callbacks: JobCallback | Sequence[JobCallback] = (),
        random_state: int = _DEFAULTS.seed,
        verbose: bool = False,
    ) -> None:
        self.llm = llm
        self.reward_funcs = reward_funcs
        self.reward_weights = reward_weights
        self.preset = preset
        self.environment = environment
        self.update = update
        self.episodes = episodes
        self.parallel = parallel
        self.kind = kind
        self.width = width
        self.batch_size = batch_size
        self.updates = updates
        self.warm_up = warm_up
        self.buffer_size = buffer_size
        self.workers = workers
        self.worker_options = worker_options
        self.evaluate_every = evaluate_every
        self.output = output
        self.trackers = trackers
        self.callbacks = callbacks
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Source, y: None = None, *, evaluation: Source | None = None) -> Self:  # noqa: ARG002, N803
        """Trains the agent.

        Args:
            X: Prompts, from any source that `read_prompts` reads, used again and again in random order; other columns
                go to the reward functions.
            y: Ignored.
            evaluation: Prompts to measure the agent on, at the start and during training; the best agent is kept.

        Raises:
            OptionsError: If a parameter is out of range.
            DataError: If a row has no prompt.
            RewardError: If a reward function fails.
            TrainingError: If the output folder belongs to another job, or another process works there.
            CheckpointError: If the checkpoint or the buffer is damaged.
        """
        self._check()
        self.rewards_ = WeightedRewards(self.reward_funcs, self.reward_weights)
        rows, held_out = read_prompts(X), None if evaluation is None else read_prompts(evaluation)
        with job_lock(self.output):
            self._begin(None if self.output is None else describe_job(self, self.rewards_, rows, held_out))
            if not self._training.history:
                self._training.measure_start(held_out, self._training.learner.actor)
            self._run(rows, self.episodes, held_out)
        if complaint := self._training.complaint:
            warnings.warn(complaint, stacklevel=2)
        return self

    def partial_fit(self, X: Source, y: None = None, *, evaluation: Source | None = None) -> Self:  # noqa: ARG002, N803
        """Plays each prompt once and learns from it, continuing from where the last call ended.

        The present parameters, such as `reward_funcs` or `batch_size`, count from this call on. Files in `output` are
        not changed, except those of trackers.

        Args:
            X: Prompts, as in `fit`.
            y: Ignored.
            evaluation: Prompts to measure the agent on. `agent_` becomes the best of the one it was and those seen in
                this call; without evaluation prompts it is the last.

        Raises:
            OptionsError: If a parameter changed that sizes the networks or the buffer, or the LLM has another model.
            MaraError: For the same reasons as `fit`.
        """
        self._check()
        rows, held_out = read_prompts(X), None if evaluation is None else read_prompts(evaluation)
        rewards = WeightedRewards(self.reward_funcs, self.reward_weights)
        if hasattr(self, "_training"):
            continue_with(self, self._training, rewards)
            if self._training.checkpoint is not None:
                self._training.leave_folder(self._temporary_folder() / "buffer")
        self.rewards_ = rewards
        if not hasattr(self, "_training"):
            self._begin(None)
        training = self._training
        training.measure_start(held_out, getattr(self, "agent_", training.learner.actor))
        first = training.episodes
        self._run(rows, first + len(rows), held_out, first, training.updates)
        return self

    def predict(self, X: Source) -> list[str]:  # noqa: N803
        """Aligned answers to prompts, in order. No reward function is called."""
        check_is_fitted(self, "agent_")
        rows = read_prompts(X)
        answers = Decoding(_SYSTEM, self.llm_).answer(rows, [self.llm_.seed] * len(rows))
        return [costed.answer.text for costed in answers]

    def score(self, X: Source, y: None = None) -> float:  # noqa: ARG002, N803
        """Mean reward of the aligned answers that could be scored."""
        check_is_fitted(self, "agent_")
        return decode_system(self.llm_, X, self.rewards_, _SYSTEM).mean_reward

    def __sklearn_clone__(self) -> Self:
        parameters = self.get_params(deep=False)
        copied = {name: clone(parameters[name], safe=False) for name in parameters.keys() - _SHARED_BY_CLONES}
        return type(self)(**parameters | copied)

    def _check(self) -> None:
        least = {**dict.fromkeys(_COUNTS, 1), "workers": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise OptionsError(f"{name}={getattr(self, name)} must be at least {value}.")
        if self.preset not in ("default", "reference"):
            raise OptionsError(f"preset={self.preset!r} is unknown. Give default or reference.")
        if self.kind not in get_args(AgentKind):
            raise OptionsError(f"kind={self.kind!r} is unknown. Give one of {get_args(AgentKind)}.")
        if self.llm.agent is not None and self.llm.agent.kind not in get_args(AgentKind):
            raise OptionsError(
                f"MaraSAC trains one agent, and the LLM has a {self.llm.agent.kind}. Train from one of its members, or "
                "from llm.with_agent(None)."
            )
        make_trackers(self.trackers, self.output)
        as_callbacks(self.callbacks)

    def _begin(self, job: dict[str, Any] | None) -> None:
        folder = self._temporary_folder() if self.output is None or job is None else Path(self.output).expanduser()
        self._training = new_training(self, self.rewards_, folder, job)

    def _temporary_folder(self) -> Path:
        # Deleted together with this estimator.
        self._temporary = tempfile.TemporaryDirectory(prefix="mara-sac-")
        return Path(self._temporary.name)

    def _new_workers(self) -> RolloutWorkers:
        llm = self._training.llm
        if self.workers:
            return RayWorkers(llm, environment_of(self), self.workers, self.worker_options)
        return InProcessWorkers(llm, environment_of(self), self.parallel)

    def _run(
        self, rows: list[Row], until: int, held_out: list[Row] | None, first: int = 0, learned_before: int = 0
    ) -> None:
        """Trains, and keeps the agent however training ends, if it has learned."""
        try:
            self._train(rows, until, held_out, first)
        except BaseException as error:
            if self._training.updates > learned_before:
                self._keep()
                done = f"Training ended after {self._training.episodes} of {until} episodes."
                error.add_note(f"{done} agent_ is {self._training.choice}.")
            raise

    def _train(self, rows: list[Row], until: int, held_out: list[Row] | None, first: int) -> None:
        training = self._training
        log = None if training.checkpoint is None else training.checkpoint.folder
        trackers = make_trackers(self.trackers, self.output)
        with (
            job_events(self.callbacks, "reinforce", "episodes", until, training.episodes) as events,
            tracked(trackers, configuration(self, self.rewards_), log, training.history) as send,
            progress_bar("episodes", shown=self.verbose) as bar,
        ):
            task = bar.add_task("playing", total=until, completed=training.episodes)

            def on_round(entry: HistoryEntry) -> bool:
                bar.update(task, completed=entry["episodes"], description=f"score {entry['score']:.3f}")
                return events.step(int(entry["episodes"]), score=entry["score"])

            def on_history(history: Sequence[HistoryEntry]) -> None:
                send(history)
                events.checkpoint(**(history[-1] if history else {}))

            with closing(self._new_workers()) as workers:
                training.run(rows, until, held_out, workers, on_round, first, on_history)
            self._keep()

    def _keep(self) -> None:
        training = self._training
        self.agent_ = copy.deepcopy(training.learner.actor).cpu().eval()
        self.agent_.load_state_dict(training.chosen_weights)
        self.llm_ = self.llm.with_agent(self.agent_)
        self.history_ = copy.copy(training.history)

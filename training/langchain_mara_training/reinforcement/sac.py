"""MaraSAC: trains an agent by discrete soft actor-critic, with scikit-learn's `fit` and `predict`."""

import tempfile
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Self

import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError
from langchain_mara_training.data.readers import Row, Source, read_prompts
from langchain_mara_training.evaluation.evaluate import decode_system
from langchain_mara_training.evaluation.systems import Decoding
from langchain_mara_training.fitting.net import initialize_weights, make_agent
from langchain_mara_training.reinforcement.actor_critic import ActorCritic, TwinCritics, UpdateOptions
from langchain_mara_training.reinforcement.environment import EnvironmentOptions
from langchain_mara_training.reinforcement.recipe import Recipe
from langchain_mara_training.reinforcement.replay_buffer import ReplayBuffer
from langchain_mara_training.reinforcement.rollout_workers import InProcessWorkers, RayWorkers, RolloutWorkers
from langchain_mara_training.reinforcement.tracking import Trackers, make_trackers, tracked
from langchain_mara_training.reinforcement.training_loop import HistoryEntry, Training, TrainingOptions
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.identity.content_digest import digest
from langchain_mara_training.storage.identity.job_identity import describe_llm, describe_rewards
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint
from langchain_mara_training.storage.lock import job_lock
from langchain_mara_training.storage.progress import progress_bar
from langchain_mara_training.storage.records import flat

_COUNTS = ("episodes", "parallel", "batch_size", "updates", "warm_up", "buffer_size", "evaluate_every", "width")
# A job may resume elsewhere, for more episodes, and with other displays. `_job` describes LLM and rewards itself.
_NOT_OF_A_JOB = {"llm", "reward_funcs", "episodes", "output", "trackers", "verbose", "workers", "worker_options"}
_DEFAULTS = Recipe()
_SYSTEM = "MARA"


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
        random_state: Seed of all randomness. On a CPU, equal seeds give equal agents, to the bit.
        verbose: Whether to show progress on standard error.

    Attributes:
        agent_: The trained `MaraAgent`: the best one on the evaluation prompts if there are any, otherwise the last.
        llm_: The LLM with that agent.
        rewards_: The `WeightedRewards` that score the answers.
        history_: A dict for every `evaluate_every` episodes: episodes, passes of the policy model for playing, mean
            score of the answers since the previous entry, losses, temperature, mean reward on the evaluation prompts.

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
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Source, y: None = None, *, evaluation: Source | None = None) -> Self:  # noqa: ARG002, N803
        """Trains the agent.

        Args:
            X: Prompts, from any source that `read_prompts` reads, used again and again in random order; other columns
                go to the reward functions.
            y: Ignored.
            evaluation: Prompts to measure the agent on during training; the best agent is kept.

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
            self._training = self._new_training(None if self.output is None else self._job(rows, held_out))
            self._run(rows, self.episodes, held_out)
        if not self._training.updates:
            warnings.warn(
                f"Nothing was learned: {len(self._training.buffer):,} transitions were played, and learning begins at "
                f"{self.warm_up * self.batch_size:,}. Give more episodes, or a smaller warm_up or batch_size.",
                stacklevel=2,
            )
        return self

    def partial_fit(self, X: Source, y: None = None, *, evaluation: Source | None = None) -> Self:  # noqa: ARG002, N803
        """Plays each prompt once and learns from it, continuing from the last call; only trackers use `output`.

        Args:
            X: Prompts, as in `fit`.
            y: Ignored.
            evaluation: Prompts to measure the agent on, as in `fit`.

        Raises:
            MaraError: For the same reasons as `fit`.
        """
        self._check()
        rows, held_out = read_prompts(X), None if evaluation is None else read_prompts(evaluation)
        if not hasattr(self, "_training"):
            self.rewards_ = WeightedRewards(self.reward_funcs, self.reward_weights)
            self._training = self._new_training(None)
        first = self._training.episodes
        return self._run(rows, first + len(rows), held_out, first)

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
        # scikit-learn's own clone would copy the model's weights.
        return type(self)(**self.get_params(deep=False))

    def _check(self) -> None:
        least = {**dict.fromkeys(_COUNTS, 1), "workers": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise OptionsError(f"{name}={getattr(self, name)} must be at least {value}.")
        if self.preset not in ("default", "reference"):
            raise OptionsError(f"preset={self.preset!r} is unknown. Give default or reference.")
        make_trackers(self.trackers, self.output)

    def _new_training(self, job: dict[str, Any] | None) -> Training:
        learner = self._new_learner()
        if self.output is None or job is None:
            # Deleted together with this estimator.
            self._temporary = tempfile.TemporaryDirectory(prefix="mara-sac-")
            folder, checkpoint = Path(self._temporary.name), None
        else:
            folder = Path(self.output).expanduser()
            checkpoint = JobCheckpoint(folder, job)
        # Room for two rounds of the longest possible episodes; the files take disk space as rows are written.
        slack = 2 * self.parallel * self.llm.max_new_tokens * self.llm.top_k
        buffer = ReplayBuffer(folder / "buffer", learner.actor.hidden_size, self.buffer_size, slack)
        options = TrainingOptions(
            environment=self._environment,
            parallel=self.parallel,
            batch_size=self.batch_size,
            updates=self.updates,
            warm_up=self.warm_up,
            evaluate_every=self.evaluate_every,
            seed=self.random_state,
        )
        return Training(self.llm, self.rewards_, learner, buffer, options, checkpoint)

    @property
    def _environment(self) -> EnvironmentOptions:
        return self.environment or _PRESETS[self.preset]

    def _new_workers(self) -> RolloutWorkers:
        llm = self._training.llm
        if self.workers:
            return RayWorkers(llm, self._environment, self.workers, self.worker_options)
        return InProcessWorkers(llm, self._environment, self.parallel)

    def _new_learner(self) -> ActorCritic:
        size = int(self.llm.model.config.get_text_config().hidden_size)
        width = self.width if self.llm.agent is None else self.llm.agent.width
        actor = initialize_weights(make_agent(size, width, self.llm.model_id), self.random_state)
        # PyTorch draws initial weights from its global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            critics = TwinCritics(size, width)
        if self.llm.agent is not None:
            actor.load_state_dict(self.llm.agent.state_dict())
        device = self.llm.model.device
        return ActorCritic(actor.to(device), critics.to(device), self.update or UpdateOptions())

    def _run(self, rows: list[Row], until: int, held_out: list[Row] | None, first: int = 0) -> Self:
        training = self._training
        log = None if training.checkpoint is None else training.checkpoint.folder
        trackers = make_trackers(self.trackers, self.output)
        with (
            tracked(trackers, self._configuration(), log, training.history) as on_history,
            progress_bar("episodes", shown=self.verbose) as bar,
        ):
            task = bar.add_task("playing", total=until, completed=training.episodes)

            def on_round(entry: HistoryEntry) -> None:
                bar.update(task, completed=entry["episodes"], description=f"score {entry['score']:.3f}")

            with closing(self._new_workers()) as workers:
                training.run(rows, until, held_out, workers, on_round, first, on_history)
        actor = training.learner.actor
        self.agent_ = make_agent(actor.hidden_size, actor.width, actor.policy_model).eval()
        self.agent_.load_state_dict(actor.state_dict() if training.best is None else training.best["weights"])
        self.llm_ = self.llm.with_agent(self.agent_)
        self.history_ = training.history
        return self

    def _configuration(self) -> dict[str, Any]:
        """Settings for trackers to store."""
        settings = {name: value for name, value in self.get_params(deep=False).items() if name not in _NOT_OF_A_JOB}
        settings["environment"] = self._environment.model_dump()
        settings["update"] = (self.update or UpdateOptions()).model_dump()
        rewards = ", ".join(self.rewards_.names)
        return flat({"model": self.llm.model_id, "rewards": rewards, "episodes": self.episodes, **settings})

    def _job(self, rows: list[Row], held_out: list[Row] | None) -> dict[str, Any]:
        """Everything that the trained agent depends on; a checkpoint resumes only the same job."""
        parameters = {name: repr(value) for name, value in self.get_params(deep=False).items()}
        return {
            **{name: value for name, value in parameters.items() if name not in _NOT_OF_A_JOB},
            "workers": self.workers > 0,  # their number changes only the last digits
            "llm": {name: value for name, value in describe_llm(self.llm).items() if name != "model_id"},
            "rewards": describe_rewards(self.rewards_),
            "prompts": digest([rows, held_out]),
        }


_PRESETS = {"default": EnvironmentOptions(), "reference": EnvironmentOptions.reference()}

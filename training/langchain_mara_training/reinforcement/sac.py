"""MaraSAC: trains an agent by discrete soft actor-critic, behind `fit` and `predict`."""

import hashlib
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
from langchain_mara.policy.loaded_model import model_fingerprint
from langchain_mara_training.data.readers import Row, Source, read_prompts
from langchain_mara_training.evaluation.evaluate import decode_system
from langchain_mara_training.fitting.net import initialise, make_agent
from langchain_mara_training.reinforcement.actor_critic import ActorCritic, TwinCritics, UpdateOptions
from langchain_mara_training.reinforcement.environment import EnvironmentOptions
from langchain_mara_training.reinforcement.replay_buffer import ReplayBuffer
from langchain_mara_training.reinforcement.rollout_workers import InProcessWorkers, RayWorkers, RolloutWorkers
from langchain_mara_training.reinforcement.tracking import Trackers, make_trackers, tracked
from langchain_mara_training.reinforcement.training_loop import HistoryEntry, Training, TrainingOptions
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint
from langchain_mara_training.storage.progress import progress_bar
from langchain_mara_training.storage.records import flat

_COUNTS = ("episodes", "parallel", "batch_size", "updates", "warm_up", "buffer_size", "evaluate_every", "width")
# A job may go on elsewhere, for longer, and be looked at differently.
_NOT_OF_A_JOB = {"llm", "reward_funcs", "episodes", "output", "trackers", "verbose", "workers", "worker_options"}


class MaraSAC(BaseEstimator):  # type: ignore[misc]
    """Trains an agent by reinforcement: it answers prompts, is rewarded, and learns from what it tried.

    Discrete soft actor-critic with twin critics, a learnt temperature, and a replay buffer on disk (paper section 4,
    reference `train/`). Episodes are played many at once on the decode path of the LLM, and the networks learn on the
    device of its model.

    Args:
        llm: The policy model; an agent it has already is what training begins with.
        reward_funcs: One or several reward functions in TRL's signature.
        reward_weights: One for each; by default 1.
        preset: `default`, or `reference` for the environment of the paper's code, its defects included.
        environment: `EnvironmentOptions` in place of the preset's.
        update: `UpdateOptions`; by default the paper's.
        episodes: To play in `fit`.
        parallel: Episodes played at once.
        width: Units of the first hidden layer of agent and critics, where the LLM has no agent.
        batch_size: Transitions of a gradient step.
        updates: Gradient steps per episode.
        warm_up: Batches the buffer must hold before learning begins.
        buffer_size: Most transitions to learn from; a row takes 2 d + 6 bytes on disk.
        workers: Processes that play, through Ray (`pip install "langchain-mara[ray]"`), each with a policy model of its
            own loaded by the name of the LLM's; 0 plays in this process. They play a round of `parallel` episodes
            while this process learns from the one before. A worker that dies is replaced and its episodes are played
            again. Answers are scored in this process.
        worker_options: Resources of each worker, as Ray takes them; by default `{"num_cpus": 1}`, and a GPU where the
            LLM is on one.
        evaluate_every: Episodes between two looks at the evaluation prompts, and between two checkpoints.
        output: Folder of buffer and checkpoint; a `fit` that was killed goes on there, exactly. By default the buffer
            lies in a temporary folder. With more `episodes` than before it goes on, too. Its `log.jsonl` gets the
            history, entry by entry.
        trackers: Who gets the history, too: accelerate's trackers by name (`tensorboard`, `wandb`, …), or instances.
            TensorBoard's files lie in `output`.
        random_state: Seed of everything; on a CPU, equal seeds give equal agents, to the bit.
        verbose: Whether to show progress on standard error.

    Attributes:
        agent_: The trained `MaraAgent`: with evaluation prompts the best that was seen, else the last.
        llm_: The LLM with that agent.
        rewards_: The `WeightedRewards` that score.
        history_: A dict every `evaluate_every` episodes: episodes, passes of the policy model in playing, mean score
            of the answers since the last one, losses, temperature, and the mean reward on the evaluation prompts.

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
        preset: Literal["default", "reference"] = "default",
        environment: EnvironmentOptions | None = None,
        update: UpdateOptions | None = None,
        episodes: int = 21_000,
        parallel: int = 16,
        width: int = 1024,
        batch_size: int = 1024,
        updates: int = 10,
        warm_up: int = 64,
        buffer_size: int = 1_000_000,
        workers: int = 0,
        worker_options: dict[str, Any] | None = None,
        evaluate_every: int = 160,
        output: str | Path | None = None,
        trackers: Trackers = (),
        random_state: int = 0,
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
            X: Prompts, from wherever `read_prompts` reads; other columns go to the reward functions. They are gone
                through in random order, again and again.
            y: Ignored.
            evaluation: Prompts to measure the agent on meanwhile; the best agent is kept.

        Raises:
            OptionsError: If a parameter makes no sense.
            DataError: If a row has no prompt.
            RewardError: If a reward function fails.
            TrainingError: If the output folder belongs to another job.
            CheckpointError: If the checkpoint is corrupt.
        """
        self._check()
        self.rewards_ = WeightedRewards(self.reward_funcs, self.reward_weights)
        rows, held_out = self._read(X, evaluation)
        self._training = self._new_training(self._job(rows, held_out))
        self._run(rows, self.episodes, held_out)
        if not self._training.updates:
            warnings.warn(
                f"Nothing was learnt: {len(self._training.buffer):,} transitions were played, and learning begins at "
                f"{self.warm_up * self.batch_size:,}. Give more episodes, or a smaller warm_up or batch_size.",
                stacklevel=2,
            )
        return self

    def partial_fit(self, X: Source, y: None = None, *, evaluation: Source | None = None) -> Self:  # noqa: ARG002, N803
        """Plays each prompt once more and learns from it, going on from the last call.

        Args:
            X: As in `fit`.
            y: Ignored.
            evaluation: As in `fit`.

        Raises:
            MaraError: As `fit` does. `output` plays no part, but for the files of trackers.
        """
        self._check()
        rows, held_out = self._read(X, evaluation)
        if not hasattr(self, "_training"):
            self.rewards_ = WeightedRewards(self.reward_funcs, self.reward_weights)
            self._training = self._new_training(None)
        first = self._training.episodes
        return self._run(rows, first + len(rows), held_out, first)

    def predict(self, X: Source) -> list[str]:  # noqa: N803
        """Aligned answers to prompts, in order."""
        check_is_fitted(self, "agent_")
        return decode_system(self.llm_, X, self.rewards_, "MARA").completions

    def score(self, X: Source, y: None = None) -> float:  # noqa: ARG002, N803
        """Mean reward of the aligned answers, over those that are scored."""
        check_is_fitted(self, "agent_")
        return decode_system(self.llm_, X, self.rewards_, "MARA").mean_reward

    def __sklearn_clone__(self) -> Self:
        # scikit-learn would copy the model's weights.
        return type(self)(**self.get_params(deep=False))

    def _check(self) -> None:
        least = {**dict.fromkeys(_COUNTS, 1), "workers": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise OptionsError(f"{name}={getattr(self, name)} must be at least {value}.")
        if self.preset not in ("default", "reference"):
            raise OptionsError(f"preset={self.preset!r} is unknown. Give default or reference.")
        make_trackers(self.trackers, self.output)

    def _read(self, prompts: Source, evaluation: Source | None) -> tuple[list[Row], list[Row] | None]:
        return read_prompts(prompts), None if evaluation is None else read_prompts(evaluation)

    def _new_training(self, job: dict[str, str] | None) -> Training:
        learner = self._new_learner()
        if self.output is None or job is None:
            # Goes when this estimator does.
            self._temporary = tempfile.TemporaryDirectory(prefix="mara-sac-")
            folder, checkpoint = Path(self._temporary.name), None
        else:
            folder = Path(self.output).expanduser()
            checkpoint = JobCheckpoint(folder, job)
        # Room for two rounds of the longest episodes there could be; files take only what is written.
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

    def _new_players(self) -> RolloutWorkers:
        llm = self._training.llm
        if self.workers:
            return RayWorkers(llm, self._environment, self.workers, self.worker_options)
        return InProcessWorkers(llm, self._environment, self.parallel)

    def _new_learner(self) -> ActorCritic:
        size = int(self.llm.model.config.get_text_config().hidden_size)
        width = self.width if self.llm.agent is None else self.llm.agent.width
        actor = initialise(make_agent(size, width, self.llm.model_id), self.random_state)
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
            tracked(trackers, self._configuration(), log, training.history) as note,
            progress_bar("episodes", shown=self.verbose) as bar,
        ):
            task = bar.add_task("playing", total=until, completed=training.episodes)

            def tell(noted: HistoryEntry) -> None:
                bar.update(task, completed=noted["episodes"], description=f"score {noted['score']:.3f}")

            with closing(self._new_players()) as players:
                training.run(rows, until, held_out, players, tell, first, note)
        actor = training.learner.actor
        self.agent_ = make_agent(actor.hidden_size, actor.width, actor.policy_model).eval()
        self.agent_.load_state_dict(actor.state_dict() if training.best is None else training.best["weights"])
        self.llm_ = self.llm.with_agent(self.agent_)
        self.history_ = training.history
        return self

    def _configuration(self) -> dict[str, Any]:
        """What trackers store."""
        own = {name: value for name, value in self.get_params(deep=False).items() if name not in _NOT_OF_A_JOB}
        own["environment"] = self._environment.model_dump()
        own["update"] = (self.update or UpdateOptions()).model_dump()
        rewards = ", ".join(self.rewards_.names)
        return flat({"model": self.llm.model_id, "rewards": rewards, "episodes": self.episodes, **own})

    def _job(self, rows: list[Row], held_out: list[Row] | None) -> dict[str, str]:
        parameters = {name: repr(value) for name, value in self.get_params(deep=False).items()}
        job = {name: value for name, value in parameters.items() if name not in _NOT_OF_A_JOB}
        decoding = {name: getattr(self.llm, name) for name in ("top_k", "top_p", "order", "max_new_tokens", "stop")}
        agent = None if self.llm.agent is None else self.llm.agent.fingerprint
        return {
            **job,
            "workers": str(self.workers > 0),  # how many changes no more than the last digits
            "model": model_fingerprint(self.llm.model),
            "agent": repr(agent),
            "rewards": repr(self.rewards_.names),
            "decoding": repr(decoding),
            "prompts": hashlib.sha256(repr((rows, held_out)).encode()).hexdigest()[:16],
        }


_PRESETS = {"default": EnvironmentOptions(), "reference": EnvironmentOptions.reference()}

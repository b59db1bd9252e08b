"""Makes what MaraSAC trains with: networks, replay buffer and settings; and continues with changed settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from langchain_mara.exceptions import OptionsError
from langchain_mara.options import DEFAULT_LOOK_AHEAD_RANK
from langchain_mara_training.data.readers import Row
from langchain_mara_training.fitting.networks import AgentKind, initialize_weights, make_agent_of
from langchain_mara_training.generation.states import columns_of
from langchain_mara_training.reinforcement.actor_critic import ActorCritic, UpdateOptions, make_critics
from langchain_mara_training.reinforcement.penalties import EnvironmentOptions
from langchain_mara_training.reinforcement.replay_buffer import ReplayBuffer
from langchain_mara_training.reinforcement.training_loop import Training, TrainingOptions
from langchain_mara_training.rewards.weighted import WeightedRewards
from langchain_mara_training.storage.identity.content_digest import digest
from langchain_mara_training.storage.identity.job_identity import describe_llm, describe_rewards
from langchain_mara_training.storage.job_checkpoint import JobCheckpoint
from langchain_mara_training.storage.records import flat

if TYPE_CHECKING:
    from langchain_mara_training.reinforcement.sac import MaraSAC

# A job may resume elsewhere, for more episodes, and with other displays. `describe_job` describes LLM and rewards.
_NOT_OF_A_JOB = {
    "llm", "reward_funcs", "kind", "episodes", "output", "trackers", "callbacks", "verbose", "workers",
    "worker_options",
}  # fmt: skip
_PRESETS = {"default": EnvironmentOptions(), "reference": EnvironmentOptions.reference()}


def environment_of(sac: "MaraSAC") -> EnvironmentOptions:
    """How a MaraSAC plays and rewards episodes."""
    return sac.environment or _PRESETS[sac.preset]


def new_training(sac: "MaraSAC", rewards: WeightedRewards, folder: Path, job: dict[str, Any] | None) -> Training:
    """A training with the parameters of a MaraSAC, resumed if its folder holds a checkpoint.

    Args:
        sac: The estimator.
        rewards: Rewards that score the answers.
        folder: Folder of the replay buffer and the checkpoint.
        job: Identity of the job; without one there is no checkpoint.
    """
    checkpoint = None if job is None else JobCheckpoint(folder, job)
    learner = _new_learner(sac)
    columns = columns_of(learner.actor.judges, learner.actor.hidden_size)
    buffer = ReplayBuffer(folder / "buffer", columns, sac.buffer_size, _slack(sac))
    return Training(sac.llm, rewards, learner, buffer, _training_options(sac), checkpoint)


def continue_with(sac: "MaraSAC", training: Training, rewards: WeightedRewards) -> None:
    """Makes a training go on with the present parameters of a MaraSAC.

    Args:
        sac: The estimator.
        training: Training that has begun; it is changed in place.
        rewards: Rewards that score the answers from now on.

    Raises:
        OptionsError: If a parameter has changed that sizes the networks or the buffer, or the policy model is another.
    """
    actor, buffer = training.learner.actor, training.buffer
    kind, width, rank = _shape(sac)
    changed = {
        "llm": sac.llm.model is not training.llm.model,
        "kind": (kind, rank) != (actor.kind, getattr(actor, "rank", None)),
        "width": width != actor.width,
        "buffer_size": sac.buffer_size != buffer.capacity,
        "parallel, or top_k or max_new_tokens of the LLM": _slack(sac) > buffer.slack,
    }
    if refused := [name for name, differs in changed.items() if differs]:
        raise OptionsError(
            f"Training continues with what it began with, but these have changed: {'; '.join(refused)}. Set them back, "
            "or start over with sklearn.base.clone."
        )
    training.continue_with(sac.llm, rewards, _training_options(sac))
    training.learner.change_options(sac.update or UpdateOptions())


def describe_job(sac: "MaraSAC", rewards: WeightedRewards, rows: list[Row], held_out: list[Row] | None) -> Any:
    """Everything that the trained agent depends on, by name; a checkpoint resumes only the same job."""
    parameters = {name: repr(value) for name, value in sac.get_params(deep=False).items()}
    return {
        **{name: value for name, value in parameters.items() if name not in _NOT_OF_A_JOB},
        **({} if sac.kind == "state" else {"kind": sac.kind}),  # jobs from before there was a choice may resume
        "workers": sac.workers > 0,  # their number changes only the last digits
        "llm": {name: value for name, value in describe_llm(sac.llm).items() if name != "model_id"},
        "rewards": describe_rewards(rewards),
        "prompts": digest([rows, held_out]),
    }


def configuration(sac: "MaraSAC", rewards: WeightedRewards) -> dict[str, Any]:
    """Settings for trackers to store."""
    settings = {name: value for name, value in sac.get_params(deep=False).items() if name not in _NOT_OF_A_JOB}
    settings["kind"] = _shape(sac)[0]
    settings["environment"] = environment_of(sac).model_dump()
    settings["update"] = (sac.update or UpdateOptions()).model_dump()
    names = ", ".join(rewards.names)
    return flat({"model": sac.llm.model_id, "rewards": names, "episodes": sac.episodes, **settings})


def _slack(sac: "MaraSAC") -> int:
    """Room for two rounds of the longest possible episodes; the files take disk space as rows are written."""
    return 2 * sac.parallel * sac.llm.max_new_tokens * sac.llm.top_k


def _training_options(sac: "MaraSAC") -> TrainingOptions:
    return TrainingOptions(
        environment=environment_of(sac),
        parallel=sac.parallel,
        batch_size=sac.batch_size,
        updates=sac.updates,
        warm_up=sac.warm_up,
        evaluate_every=sac.evaluate_every,
        seed=sac.random_state,
    )


def _shape(sac: "MaraSAC") -> tuple[AgentKind, int, int | None]:
    """Kind of the agent to train, its units, and the rank of a look-ahead agent's matrix for tokens."""
    start: Any = sac.llm.agent
    if start is None:
        return sac.kind, sac.width, DEFAULT_LOOK_AHEAD_RANK if sac.kind == "look-ahead" else None
    return start.kind, start.width, getattr(start, "rank", None)


def _new_learner(sac: "MaraSAC") -> ActorCritic:
    kind, width, rank = _shape(sac)
    size = int(sac.llm.model.config.get_text_config().hidden_size)
    columns = columns_of("before" if kind == "look-ahead" else "after", size)
    actor = initialize_weights(make_agent_of(kind, columns, width, rank, sac.llm.model_id), sac.random_state)
    # PyTorch draws initial weights from its global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sac.random_state)
        critics = make_critics(actor)
    if sac.llm.agent is not None:
        actor.load_state_dict(sac.llm.agent.state_dict())
    device = sac.llm.model.device
    return ActorCritic(actor.to(device), critics.to(device), sac.update or UpdateOptions())

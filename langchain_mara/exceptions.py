"""Errors that users meet. Each message names the cause and the repair."""


class MaraError(Exception):
    """Base of every error this library raises on purpose."""


class OptionsError(MaraError, ValueError):
    """A decoding option is out of range, unknown, or contradicts another."""


class PromptError(MaraError, ValueError):
    """A prompt cannot be decoded: empty, or longer than the policy model's context."""


class CheckpointError(MaraError, ValueError):
    """An agent checkpoint is missing, truncated, or does not hold a MARA agent."""


class UnsupportedModelError(MaraError, ValueError):
    """The policy model's architecture cannot evaluate siblings in one pass."""


class AgentMismatchError(MaraError, ValueError):
    """The agent was trained on states of another size than the policy model gives."""


class LoadingError(MaraError, ValueError):
    """A model, tokenizer, or device named by the user cannot be used."""


class QueueFullError(MaraError, RuntimeError):
    """Too many requests wait for a loaded model already."""


class DataError(MaraError, ValueError):
    """Training data cannot be read, or lacks what the job needs."""


class RewardError(MaraError, ValueError):
    """A reward function failed, or returned something else than a score for each completion."""


class TrainingError(MaraError, RuntimeError):
    """A training job cannot go on: non-finite loss, or a folder that belongs to another job."""
